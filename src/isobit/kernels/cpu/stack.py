"""All layers of a decoder in one call of the CPU kernels (kernels/cpu/cpp/stack.cpp).

The same kernels as layer by layer, so the same bits. What is saved is the interpreter between them: a step of
decoding has 200 short calls, and each finds its code and objects thrown out of the caches by the weights that have just
streamed through.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.cached import Cached
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import sequences as cpu_sequences
from isobit.kernels.cpu.layer import activation_code, check_cached, pointers
from isobit.kernels.cpu.library import check, library
from isobit.kernels.cpu.linear import CpuLinear
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences

_POINTER, _SIZE, _FLOAT, _CODE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("input_norm", "post_norm", "after_attention", "after_mlp", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    """isobit_layer of isobit_cpu.h."""

    _fields_ = (
        [(name, _POINTER) for name in (*_LINEARS, *_NORMS)]
        + [(name, _SIZE) for name in ("heads", "kv_heads", "dim", "window")]
        + [(name, _FLOAT) for name in ("scale", "softcap", "eps")]
        + [("activation", _CODE)]
    )


class _Step(ctypes.Structure):
    """isobit_step of isobit_cpu.h."""

    _fields_ = (
        [("sequences", cpu_sequences.Struct)]
        + [(name, _POINTER) for name in ("cos", "sin", "keys", "values", "key_scales", "value_scales")]
        + [("cache_stride", _SIZE), ("cache_format", _CODE)]
    )


@dataclass(frozen=True)
class LayerParts:
    """What one layer is made of.

    Attributes:
        linears: q, k, v, o, gate, up and down projection.
        input_norm, post_norm: weights float32 ``[hidden]`` of the norms before the attention and before the MLP.
        heads: the attention's.
        eps: of all norms.
        after_attention, after_mlp: weights float32 ``[hidden]`` of the norms of what the attention and the MLP give,
            before it is added to the residual stream; None: it is added as it is.
        activation: of the MLP's gate, a key of :data:`isobit.kernels.cpu.layer.ACTIVATIONS`.
    """

    linears: tuple[CpuLinear, ...]
    input_norm: Tensor
    post_norm: Tensor
    heads: AttentionSpec
    eps: float
    after_attention: Tensor | None = None
    after_mlp: Tensor | None = None
    activation: str = "silu"


class CpuStack:
    """Layers that run one after the other in one call.

    Raises:
        FormatError: a norm does not fit its layer, or layers have caches of different shapes.
        Unsupported: the library does not have the activation of a layer.
    """

    def __init__(self, layers: Sequence[LayerParts]) -> None:
        self._kept = tuple(layers)  # memory that the structs point to
        self._heads, self._hidden = layers[0].heads, layers[0].linears[0].k
        if caches := {_cache_of(parts) for parts in layers} - {_cache_of(layers[0])}:
            told = ", ".join(sorted(caches))
            raise FormatError(f"layers in one call share a shape of cache, {_cache_of(layers[0])}; some have {told}")
        self._structs = (_Layer * len(layers))(*(_struct(parts) for parts in layers))
        self._call = library().isobit_cpu_layers
        self._call.argtypes = (_POINTER, _SIZE, ctypes.POINTER(_Step), _POINTER)

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, held: Cached, sequences: Sequences, stride: int) -> Tensor:
        """The residual stream behind the last layer.

        Args:
            x: float32 ``[T, hidden]``, contiguous.
            cos, sin: float32 ``[T, dim]`` of the position of each token.
            held: memory of the first layer, ``[..., blocks, kv_heads, block, dim]``.
            sequences: whose the tokens are; see :func:`isobit.kernels.cpu.layer.attention`.
            stride: values from one layer's keys to the next one's; 0 when all may use the same memory.

        Raises:
            FormatError: a tensor has another shape, dtype or place.
            IsobitError: the sequences do not fit the tokens or the cache; nothing has been written.
        """
        tokens, heads, blocks = x.shape[0], self._heads, held.keys.shape[-4] if held.keys.dim() > 3 else 0
        rotary, cache = (tokens, heads.dim), (blocks, heads.kv_heads, sequences.block, heads.dim)
        for what, part, shape in (
            ("the residual stream", x, (tokens, self._hidden)), ("cosines", cos, rotary), ("sines", sin, rotary),
        ):  # fmt: skip
            # Looked into only where something is wrong: this is called for every token.
            if part.shape != shape or part.dtype is not torch.float32 or not part.is_contiguous() or not part.is_cpu:
                check_on_cpu(what, part, shape)
        format = check_cached(held, cache)
        for part in (held.keys, held.values):
            self._require_room(part, stride, math.prod(cache))
        for scales in held.tensors[2:]:
            self._require_room(scales, stride // heads.dim, math.prod(cache[:3]))
        y = x.clone()
        batch = cpu_sequences.struct(sequences, tokens, blocks)
        step = _Step(batch, cos.data_ptr(), sin.data_ptr(), *pointers(held), stride, format)
        check(self._call(ctypes.addressof(self._structs), len(self._structs), ctypes.byref(step), y.data_ptr()))
        return y

    def _require_room(self, memory: Tensor, stride: int, numbers: int) -> None:
        """That the memory goes on to the last layer's ``numbers`` numbers.

        Raises:
            FormatError: it ends before.
        """
        needed = memory.storage_offset() + stride * (len(self._structs) - 1) + numbers
        if stride < 0 or memory.itemsize * needed > memory.untyped_storage().nbytes():
            raise FormatError(
                f"a cache of {memory.untyped_storage().nbytes()} bytes does not hold {len(self._structs)} layers"
                f" {stride} numbers apart"
            )


def _struct(parts: LayerParts) -> _Layer:
    heads, hidden = parts.heads, parts.linears[0].k
    check_on_cpu("the norm before the attention", parts.input_norm, (hidden,))
    check_on_cpu("the norm before the MLP", parts.post_norm, (hidden,))
    check_on_cpu("the norm behind the attention", parts.after_attention, (hidden,))
    check_on_cpu("the norm behind the MLP", parts.after_mlp, (hidden,))
    check_on_cpu("the norm of queries", heads.q_norm, (heads.dim,))
    check_on_cpu("the norm of keys", heads.k_norm, (heads.dim,))
    norms = parts.input_norm, parts.post_norm, parts.after_attention, parts.after_mlp, heads.q_norm, heads.k_norm
    return _Layer(
        *(linear.address for linear in parts.linears),
        *(None if norm is None else norm.data_ptr() for norm in norms),
        heads.heads,
        heads.kv_heads,
        heads.dim,
        heads.window or 0,
        heads.factor,
        heads.softcap or 0.0,
        parts.eps,
        activation_code(parts.activation),
    )


def _cache_of(parts: LayerParts) -> str:
    return f"{parts.heads.kv_heads} heads of {parts.heads.dim}"
