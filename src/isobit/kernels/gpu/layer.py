"""What a decoder layer does beside its linears, on a GPU: norms, gates, rotation, attention (``triton/``).

Tensors are of one dtype (bfloat16, float16 or float32) and on one device; T is the tokens of a flat batch. What a
kernel computes is float32 inside; between kernels are values of the activations' dtype, whatever is fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.pack import code_dtype
from isobit.formats.table import element
from isobit.kernels.cached import Cached
from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.layer_tiles import AttentionShape, RopeShape, RowShape
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.tiles import Config
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.rounded import Rounded
from isobit.kernels.sequences import Sequences
from isobit.targets.spec import Target

ACTIVATIONS = ("silu", "gelu_tanh")
_MODULES = "isobit.kernels.gpu.triton"
_LOG2_E = math.log2(math.e)
Shape = AttentionShape | RopeShape | RowShape


class GpuLayer:
    """The kernels of a model's layers on one machine.

    Args:
        machine: what runs them.
        workspace: shared with the model's linears.
        alike: a token's attention has the same bits whether it comes alone, in a prompt or in a part of one: long
            sequences are then not split among programs, which takes longer for a few of them.
    """

    def __init__(self, machine: Machine, workspace: Workspace, *, alike: bool = False) -> None:
        self.machine, self.workspace, self.alike = machine, workspace, alike
        self._kernels: dict[tuple[str, Shape], Kernel] = {}
        self._nothing: dict[torch.dtype, Tensor] = {}  # what an argument is that a kernel does not read

    # ------------------------------------------------------------------ norms and gates

    def norm(self, x: Tensor, weight: Tensor, eps: float, rounding: Rounding | None = None) -> Tensor | Rounded:
        """RMS norm of the rows of ``x [..., K]``, rounded if a linear's ``rounding`` is given.

        Args:
            weight: float32 ``[K]``.
        """
        return self._norm(x, None, weight, eps, rounding)[1]

    def add_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, eps: float, rounding: Rounding | None = None
    ) -> tuple[Tensor, Tensor | Rounded]:
        """``x + delta`` in their dtype, and its norm as :meth:`norm` gives it."""
        if delta.shape != x.shape or delta.dtype != x.dtype:
            raise FormatError(f"what is added to {x.dtype} {list(x.shape)} is {delta.dtype} {list(delta.shape)}")
        return self._norm(x, delta, weight, eps, rounding)

    def _norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, rounding: Rounding | None
    ) -> tuple[Tensor, Tensor | Rounded]:
        k = x.shape[-1]
        if weight.dtype != torch.float32 or weight.shape != (k,):
            raise FormatError(f"the norm of {k} values takes float32 [{k}], not {weight.dtype} {list(weight.shape)}")
        x, tokens = x.contiguous(), x.numel() // k
        total = x if delta is None else torch.empty_like(x)
        fused = tiles.holds_token(k, self.machine.target)  # else rounding is a launch of its own, with the same bits
        shape = self._row_shape(x, rounding if fused else None, add=delta is not None)
        if shape.element and delta is None:
            shape = replace(shape, parts=tiles.parts_of_norm(k, tokens))
        result, arguments = self._result(x, rounding if shape.element else None)
        if tokens:
            self._kernel("norm:norm_token", tiles.norm_token, shape)(
                (tokens, shape.parts), x=x, delta=x if delta is None else delta.contiguous(),
                weight=weight.contiguous(), total=total, K=k, eps=eps, **arguments,
            )  # fmt: skip
        if rounding is not None and isinstance(result, Tensor):
            return total, self.round(result, rounding)
        return total, result

    def gate(
        self, gate: Tensor, up: Tensor, activation: str = "silu", rounding: Rounding | None = None
    ) -> Tensor | Rounded:
        """``activation(gate) * up`` of ``[..., K]``, rounded if a linear's ``rounding`` is given.

        Args:
            gate, up: rows may be parts of longer ones, whose numbers follow each other or are every second one.
            activation: one of ``ACTIVATIONS``.
        """
        if activation not in ACTIVATIONS:
            raise FormatError(f"a gate's activation is one of {', '.join(ACTIVATIONS)}, not {activation}")
        if gate.shape != up.shape or gate.dtype != up.dtype:
            raise FormatError(f"a gate of {gate.dtype} {list(gate.shape)} does not fit {up.dtype} {list(up.shape)}")
        gates, ups = _columns(gate), _columns(up)
        tokens, k = gates.shape
        parts, y = tiles.parts_of_token(k), torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        shape = self._row_shape(gate, rounding, activation=activation)
        shape = replace(shape, by_turns=gates.stride(1) == 2)
        peaks = self._unused(torch.int32, y.device)
        if shape.element:
            peaks = torch.empty((tokens, parts), dtype=torch.int32, device=y.device)
        if tokens:
            self._kernel("norm:gate", tiles.gate, shape)(
                (tokens, parts), gate=gates, up=ups, y=y, peaks=peaks, K=k, stride_gate=gates.stride(0),
                stride_up=ups.stride(0),
            )  # fmt: skip
        if rounding is None or not shape.element:
            return y if rounding is None else rounding(y)
        rounded, arguments = rounding.room(y)
        if tokens:
            plain = replace(shape, activation="silu", by_turns=False)
            kernel = self._kernel("quantize:quantize_parts", tiles.quantize_parts, plain)
            kernel((tokens, parts), x=y, peaks=peaks, K=k, **arguments)
        return rounded

    def round(self, x: Tensor, rounding: Rounding) -> Rounded:
        """Rounds ``[..., K]``: long rows of few tokens in parts, each by a program that looks over all of its row."""
        shape, k = self._row_shape(x, rounding), x.shape[-1]
        tokens = x.numel() // k
        parts = tiles.own_parts(k, tokens)
        if not tokens or not shape.element or parts == 1:
            return rounding(x)
        x = x.contiguous()
        rounded, arguments = rounding.room(x)
        kernel = self._kernel("quantize:quantize_parts", tiles.quantize_parts, replace(shape, parts=2))
        kernel((tokens, parts), x=x, peaks=self._unused(torch.int32, x.device), K=k, **arguments)
        return rounded

    def _result(self, x: Tensor, rounding: Rounding | None) -> tuple[Tensor | Rounded, dict[str, Any]]:
        """What activations like ``x`` leave, and the arguments of a kernel that say so."""
        if rounding is not None:
            rounded, arguments = rounding.room(x)
            return rounded, {"y": x, **arguments}
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        unused = self._unused(torch.float32, x.device)
        codes = self._unused(torch.uint8, x.device)
        return y, {"y": y, "codes": codes, "scales": unused, "static_scale": unused, "qmax": 0.0}

    def _row_shape(
        self, x: Tensor, rounding: Rounding | None, *, add: bool = False, activation: str = "silu"
    ) -> RowShape:
        dtype, k = _name(x.dtype), x.shape[-1]
        late = tiles.late(x.numel() // k)
        if rounding is None or rounding.spec.group is not None:
            return RowShape(dtype, k, add, activation=activation, late=late)
        static = rounding.static_scale is not None
        return RowShape(dtype, k, add, rounding.spec.element, rounding.pointer, static, activation, late=late)

    # ------------------------------------------------------------------ attention

    def attention(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences,
    ) -> Tensor:  # fmt: skip
        """Norms and rotates queries and keys, stores keys and values, and attends to all of the cache.

        Args:
            spec: the layer's.
            q: ``[T, heads * dim]``; rows may be parts of longer ones, as of k and v.
            k, v: ``[T, kv_heads * dim]``.
            cos, sin: ``[T, dim]`` of each token's position, of any floating-point dtype.
            held: the cache: keys and values in the dtype of q, or codes.
            sequences: where the tokens belong.

        Returns:
            ``[T, heads * dim]``; zeros for tokens of sequences of length 0.
        """
        self._check(spec, q, k, v, cos, sin, held, sequences)
        if q.shape[0] == 0:
            return torch.empty_like(q)
        rotated = self.rope_append(spec, q, k, v, cos, sin, held, sequences)
        return self.attend(spec, rotated, held, sequences)

    def rope_append(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences,
    ) -> Tensor:  # fmt: skip
        """The first part of :meth:`attention`: the rotated queries; keys and values are then in the cache."""
        tokens, at_once = q.shape[0], tiles.HEADS_AT_ONCE
        shape = RopeShape(
            _name(q.dtype), spec.heads, spec.kv_heads, spec.dim, spec.q_norm is not None, _name(cos.dtype),
            tiles.late(tokens), held.element,
        )  # fmt: skip
        unused = self._unused(torch.float32, q.device)
        rotated = torch.empty((tokens, spec.heads * spec.dim), dtype=q.dtype, device=q.device)
        q, k, v = _rows(q), _rows(k), _rows(v)
        programs = -(-spec.heads // at_once) + 2 * -(-spec.kv_heads // at_once)
        self._kernel("rope:rope_append", tiles.rope_append, shape)(
            (tokens, programs), q=q, k=k, v=v, cos=cos.contiguous(), sin=sin.contiguous(),
            q_norm=unused if spec.q_norm is None else spec.q_norm,
            k_norm=unused if spec.k_norm is None else spec.k_norm,
            slots=sequences.slots, rotated=rotated, **self._held(held), stride_q=q.stride(0),
            stride_k=k.stride(0), stride_v=v.stride(0), block=sequences.block, eps=spec.eps,
        )  # fmt: skip
        return rotated

    def attend(self, spec: AttentionSpec, rotated: Tensor, held: Cached, sequences: Sequences) -> Tensor:
        """The second part of :meth:`attention`."""
        tokens, count = rotated.shape[0], sequences.lengths.shape[0]
        window, cap = spec.window or 0, spec.softcap
        shape = AttentionShape(
            _name(rotated.dtype), spec.heads, spec.kv_heads, spec.dim, spec.window is not None, cap is not None,
            sequences.block, sequences.table.shape[1], self.alike, held.element,
        )  # fmt: skip
        gains = {"gain": 1.0, "factor": spec.factor * _LOG2_E}
        if cap is not None:
            gains = {"gain": spec.factor / cap, "factor": cap * _LOG2_E}
        out = torch.empty_like(rotated)
        arguments: dict[str, Any] = {
            "q": rotated, **self._held(held), "starts": sequences.starts, "lengths": sequences.lengths,
            "table": sequences.table, "out": out, "columns": sequences.table.shape[1], "block": sequences.block,
            "window": window, **gains,
        }  # fmt: skip
        if shape.few and (count > 1 or tokens <= shape.few):  # one sequence has all tokens
            self._attend_few(shape, arguments, count, sequences)
        if sequences.most_new > shape.few and (count > 1 or tokens > shape.few):
            kernel = self._kernel("attention_many:attention_many", tiles.attention_many, shape)
            tile = int(kernel.config.constexprs["BLOCK_M"] or 1)
            kernel((tokens // tile + count, spec.heads), sequences=count, **arguments)
        return out

    def _attend_few(self, shape: AttentionShape, arguments: dict[str, Any], count: int, sequences: Sequences) -> None:
        parts, queries = _room(shape, sequences.most, sequences.most_new, arguments["window"])
        work = stats = self._unused(torch.float32, arguments["q"].device)
        if parts > 1:
            held = count * shape.kv_heads * parts * queries
            room = self.workspace.take((held * (shape.width + 2),), torch.float32)
            work, stats = room[: held * shape.width], room[held * shape.width :]
        given = {**arguments, "work": work, "stats": stats, "room": parts, "queries": queries}
        programs = tiles.programs_of(parts, count * shape.kv_heads, self.machine.multiprocessors)
        kernel = self._kernel("attention_few:attention_few", tiles.attention_few, shape)
        kernel((programs, shape.kv_heads, count), **given)
        if parts > 1:
            kernel = self._kernel("attention_few:attention_merge", tiles.attention_merge, shape)
            kernel((queries, shape.kv_heads, count), **given)

    def _held(self, held: Cached) -> dict[str, Tensor]:
        """The arguments of a kernel that say what a cache holds."""
        none = self._unused(torch.float32, held.keys.device)
        return {
            "keys": held.keys, "values": held.values,
            "key_scales": none if held.key_scales is None else held.key_scales,
            "value_scales": none if held.value_scales is None else held.value_scales,
        }  # fmt: skip

    def reserve(self, spec: AttentionSpec, sequences: int, most_new: int, most: int) -> None:
        """Says that attention will be asked for so many sequences, before the first graph is recorded.

        Args:
            spec: a layer's.
            sequences: B at most.
            most_new, most: as in ``Sequences``.
        """
        shape = AttentionShape("float32", spec.heads, spec.kv_heads, spec.dim)
        parts, queries = _room(shape, most, most_new, spec.window or 0)
        if parts > 1 and not self.alike:
            held = sequences * spec.kv_heads * parts * queries
            self.workspace.reserve(4 * held * (shape.width + 2))

    def _check(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences,
    ) -> None:  # fmt: skip
        tokens, shared = q.shape[0], spec.kv_heads * spec.dim
        cache = (held.keys.shape[0], spec.kv_heads, sequences.block, spec.dim)
        if spec.dim > tiles.LARGEST_HEAD or spec.dim % 2:
            raise FormatError(f"GPU attention has even heads of up to {tiles.LARGEST_HEAD} values, not {spec.dim}")
        for what, part, wanted in (
            ("queries", q, (tokens, spec.heads * spec.dim)), ("keys", k, (tokens, shared)),
            ("values", v, (tokens, shared)), ("cosines", cos, (tokens, spec.dim)), ("sines", sin, (tokens, spec.dim)),
            ("cached keys", held.keys, cache), ("cached values", held.values, cache),
            ("slots", sequences.slots, (tokens,)),
        ):  # fmt: skip
            if tuple(part.shape) != wanted:
                raise FormatError(f"{what} of an attention: {list(wanted)}, not {list(part.shape)}")
        stored = code_dtype(element(held.element)) if held.element else q.dtype
        cached = {part.dtype for part in (held.keys, held.values)}
        if {k.dtype, v.dtype} != {q.dtype} or cos.dtype != sin.dtype or cached != {stored}:
            raise FormatError(
                f"queries, keys, values and their cache are of one dtype, which is {q.dtype} of queries, or {stored} of"
                f" what is cached"
            )
        for scales in (held.key_scales, held.value_scales) if held.element else ():
            if scales is None or scales.shape != cache[:3] or scales.dtype != torch.float32:
                raise FormatError(f"cached codes have float32 scales {list(cache[:3])}")
        numbers = sequences.starts, sequences.lengths, sequences.table
        if {part.dtype for part in numbers} != {torch.int32} or sequences.slots.dtype != torch.int64:
            raise FormatError("starts, lengths and the table of blocks are int32, slots int64")
        if not all(part.is_contiguous() for part in (*numbers, sequences.slots)):
            raise FormatError("what says which tokens belong to which sequence is contiguous")
        if spec.factor <= 0 or (spec.softcap is not None and spec.softcap <= 0):
            raise FormatError(f"an attention's scale and cap are positive, not {spec.factor} and {spec.softcap}")
        if not all(part.is_contiguous() for part in held.tensors):
            raise FormatError("the cache of a layer is contiguous")

    # ------------------------------------------------------------------ kernels

    def _kernel(self, entry: str, configure: Callable[[Any, Target], Config], shape: Shape) -> Kernel:
        key = (entry, shape)
        if key not in self._kernels:
            self._kernels[key] = Kernel(f"{_MODULES}.{entry}", configure(shape, self.machine.target), self.machine)
        return self._kernels[key]

    def _unused(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        if dtype not in self._nothing:
            self._nothing[dtype] = torch.zeros(4, dtype=dtype, device=device)
        return self._nothing[dtype]


def _room(shape: AttentionShape, most: int, most_new: int, window: int) -> tuple[int, int]:
    """Parts of a sequence of few new tokens, and queries of each, at most."""
    seen = min(most, window + shape.few + tiles.PART) if window else most
    return tiles.parts_of(seen), shape.group * min(shape.few, max(1, most_new))


def _rows(x: Tensor) -> Tensor:
    """``[..., K]`` as rows with one stride; a copy where they have none."""
    k = x.shape[-1]
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    return x.reshape(-1, k) if x.is_contiguous() else x.contiguous().view(-1, k)


def _columns(x: Tensor) -> Tensor:
    """``[..., K]`` as rows of which every number, or every second one, belongs to it; a copy of others."""
    return x if x.dim() == 2 and x.stride(1) == 2 else _rows(x)


def _name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in tiles.POINTERS:
        raise FormatError(f"layers on GPUs compute in {', '.join(tiles.POINTERS)}, not in {name}")
    return name
