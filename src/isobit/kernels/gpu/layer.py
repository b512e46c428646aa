"""What a decoder layer does beside its linears, on a GPU: norms, gates, rotation, attention (``triton/``).

Tensors are of one dtype (bfloat16, float16 or float32) and on one device; T is the tokens of a flat batch. What a
kernel computes is float32 inside; between kernels are values of the activations' dtype, whatever is fused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.gpu import row_tiles as tiles
from isobit.kernels.gpu.attending import GpuAttention
from isobit.kernels.gpu.before_tiles import RANGE
from isobit.kernels.gpu.layer_tiles import late
from isobit.kernels.gpu.rounding import Preparing
from isobit.kernels.gpu.row_tiles import RowShape
from isobit.kernels.gpu.starter import name_of, rows_of
from isobit.kernels.norm import NormSpec
from isobit.kernels.rounded import Rounded

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu2")


class GpuLayer(GpuAttention):
    """The kernels of a model's layers on one machine.

    Args:
        machine: what runs them.
        workspace: shared with the model's linears.
        alike: a token's attention has the same bits whether it comes alone, in a prompt or in a part of one: parts of
            its keys then begin at fixed positions (``triton/attention_alike.py``).
    """

    # ------------------------------------------------------------------ norms and gates

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, rounding: Preparing | None = None, *, bias: Tensor | None = None,
        centred: bool = False,
    ) -> Tensor | Rounded:  # fmt: skip
        """RMS norm of the rows of ``x [..., K]``, rounded if a linear's ``rounding`` is given.

        Args:
            weight: float32 ``[K]``; bias: likewise, added at the end.
            centred: the mean is taken away first (LayerNorm).
        """
        return self._norm(x, None, NormSpec(weight, eps, bias, centred), rounding)[1]

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, eps: float, rounding: Preparing | None = None, *,
        bias: Tensor | None = None, centred: bool = False,
    ) -> tuple[Tensor, Tensor | Rounded]:  # fmt: skip
        """``x + delta`` in their dtype, and its norm as :meth:`norm` gives it."""
        if delta.shape != x.shape or delta.dtype != x.dtype:
            raise FormatError(f"what is added to {x.dtype} {list(x.shape)} is {delta.dtype} {list(delta.shape)}")
        return self._norm(x, delta, NormSpec(weight, eps, bias, centred), rounding)

    def _norm(
        self, x: Tensor, delta: Tensor | None, spec: NormSpec, rounding: Preparing | None
    ) -> tuple[Tensor, Tensor | Rounded]:
        k = x.shape[-1]
        for part in (spec.weight, *(() if spec.bias is None else (spec.bias,))):
            if part.dtype != torch.float32 or part.shape != (k,):
                raise FormatError(f"the norm of {k} values takes float32 [{k}], not {part.dtype} {list(part.shape)}")
        x, tokens = x.contiguous(), x.numel() // k
        total = x if delta is None else torch.empty_like(x)
        fused = tiles.holds_token(k, self.machine.target)  # else rounding is a launch of its own, with the same bits
        shape = self._row_shape(x, rounding if fused else None, add=delta is not None)
        shape = replace(shape, centred=spec.centred, bias=spec.bias is not None)
        if shape.element and delta is None:
            shape = replace(shape, parts=tiles.parts_of_norm(k, tokens))
        result, arguments = self._result(x, rounding if shape.element else None)
        if tokens:
            self.kernel("norm:norm_token", tiles.norm_token, shape)(
                (tokens, shape.parts), x=x, delta=x if delta is None else delta.contiguous(),
                weight=spec.weight.contiguous(), total=total, K=k, eps=spec.eps,
                bias=spec.weight if spec.bias is None else spec.bias.contiguous(), **arguments,
            )  # fmt: skip
        if rounding is not None and isinstance(result, Tensor):
            return total, self.round(result, rounding)
        return total, result

    def gate(
        self, gate: Tensor, up: Tensor | None, activation: str = "silu", rounding: Preparing | None = None, *,
        limit: float | None = None,
    ) -> Tensor | Rounded:  # fmt: skip
        """``activation(gate) * up`` of ``[..., K]``, rounded if a linear's ``rounding`` is given.

        Args:
            gate, up: rows may be parts of longer ones, whose numbers follow each other or are every second one; without
                ``up`` it is the activation alone.
            activation: one of ``ACTIVATIONS``.
            limit: gpt-oss's gate instead: ``(up + 1) * gate * sigmoid(1.702 * gate)``, both within the limit.
        """
        alone, up = up is None, gate if up is None else up
        if activation not in ACTIVATIONS:
            raise FormatError(f"a gate's activation is one of {', '.join(ACTIVATIONS)}, not {activation}")
        if gate.shape != up.shape or gate.dtype != up.dtype:
            raise FormatError(f"a gate of {gate.dtype} {list(gate.shape)} does not fit {up.dtype} {list(up.shape)}")
        form, gates, ups = _gates(gate, up, alone=alone)
        tokens, k = gates.shape
        shape = self._row_shape(gate, rounding, activation=activation if limit is None else "limited")
        shape = replace(shape, form=form, limit=limit or 0.0)
        given = {"gate": gates, "up": ups, "K": k, "stride_gate": gates.stride(0), "stride_up": ups.stride(0)}
        whole = tiles.gates_whole(k, tokens)
        if shape.element == RANGE and not whole:
            shape = replace(shape, element="", codes="*u8")  # what is narrowed is so as a whole, or later
        if rounding is not None and shape.element and whole:
            rounded, arguments = rounding.room(gate)
            self.kernel("gate:gate_token", tiles.gate_token, shape)((tokens,), **given, **arguments)
            return rounded
        return self._gate_in_parts(gate, given, shape, rounding)

    def _gate_in_parts(
        self, like: Tensor, given: dict[str, Any], shape: RowShape, rounding: Preparing | None
    ) -> Tensor | Rounded:
        """A gate by programs of a part of a token each, and its rounding, if any, by as many more."""
        y = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        tokens, k = given["gate"].shape
        parts, peaks = tiles.parts_of_token(k), self.unused(torch.int32, y.device)
        if shape.element:
            peaks = torch.empty((tokens, parts), dtype=torch.int32, device=y.device)
        if tokens:
            self.kernel("gate:gate", tiles.gate, shape)((tokens, parts), y=y, peaks=peaks, **given)
        if rounding is None or not shape.element:
            return y if rounding is None else rounding(y)
        rounded, arguments = rounding.room(y)
        if tokens:
            plain = replace(shape, activation="silu", form="apart", limit=0.0)
            kernel = self.kernel("quantize:quantize_parts", tiles.quantize_parts, plain)
            kernel((tokens, parts), x=y, peaks=peaks, K=k, **arguments)
        return rounded

    def round(self, x: Tensor, rounding: Preparing) -> Rounded:
        """Rounds ``[..., K]`` in a launch of its own."""
        return rounding(x)

    def _result(self, x: Tensor, rounding: Preparing | None) -> tuple[Tensor | Rounded, dict[str, Any]]:
        """What activations like ``x`` leave, and the arguments of a kernel that say so."""
        if rounding is not None:
            rounded, arguments = rounding.room(x)
            return rounded, {"y": x, **arguments}
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        unused = self.unused(torch.float32, x.device)
        codes = self.unused(torch.uint8, x.device)
        return y, {"y": y, "codes": codes, "scales": unused, "static_scale": unused, "qmax": 0.0}

    def _row_shape(
        self, x: Tensor, rounding: Preparing | None, *, add: bool = False, activation: str = "silu"
    ) -> RowShape:
        dtype, k = name_of(x.dtype), x.shape[-1]
        integers = rounding is not None and rounding.ending == "int8"  # whose linears are the usual ones
        behind = late(x.numel() // k, alike=self.alike and not integers)
        if rounding is None or not rounding.ending:
            return RowShape(dtype, k, add, activation=activation, late=behind)
        static = rounding.static_scale is not None
        return RowShape(dtype, k, add, rounding.ending, rounding.pointer, static, activation, late=behind)


def _gates(gate: Tensor, up: Tensor, *, alone: bool) -> tuple[tiles.Form, Tensor, Tensor]:
    """How a gate and what it multiplies lie, and their rows; a copy of what lies in no such way."""
    if alone:
        return "alone", rows_of(gate), rows_of(gate)
    gates, ups = _columns(gate), _columns(up)
    if gates.stride(1) != ups.stride(1):
        gates, ups = gates.contiguous(), ups.contiguous()
    if gates.stride(1) == 1:
        return "apart", gates, ups
    begin, stride = gates.storage_offset(), gates.stride(0)
    neighbours = ups.storage_offset() == begin + 1 and ups.stride(0) == stride and _one_storage(gates, ups)
    if gates.element_size() != 2 or not neighbours or begin % 2 or stride % 2:
        return "turns", gates, ups
    words = gates.as_strided((len(gates), 2 * gates.shape[1]), (stride, 1), begin).view(torch.int32)
    return "words", words, words


def _one_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _columns(x: Tensor) -> Tensor:
    """``[..., K]`` as rows of which every number, or every second one, belongs to it; a copy of others."""
    return x if x.dim() == 2 and x.stride(1) == 2 else rows_of(x)
