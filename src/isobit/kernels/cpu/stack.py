"""All layers of a decoder in one call of the CPU kernels (kernels/cpu/cpp/stack.cpp).

The same kernels as layer by layer, so the same bits. What is saved is the interpreter between them: a step of
decoding has 200 short calls, and each finds its code and objects thrown out of the caches by the weights that have just
streamed through.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu.library import check, library
from isobit.kernels.cpu.linear import CpuLinear
from isobit.kernels.heads import AttentionSpec

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


class _Layer(ctypes.Structure):
    """isobit_layer of isobit_cpu.h."""

    _fields_ = (
        [(name, _POINTER) for name in (*_LINEARS, "input_norm", "post_norm", "q_norm", "k_norm")]
        + [(name, _SIZE) for name in ("heads", "kv_heads", "dim", "window")]
        + [(name, _FLOAT) for name in ("scale", "eps")]
    )


class _Step(ctypes.Structure):
    """isobit_step of isobit_cpu.h."""

    _fields_ = (
        [(name, _SIZE) for name in ("batch", "tokens", "past", "capacity")]
        + [(name, _POINTER) for name in ("cos", "sin", "keys", "values")]
        + [("cache_stride", _SIZE)]
    )


@dataclass(frozen=True)
class LayerParts:
    """What one layer is made of.

    Attributes:
        linears: q, k, v, o, gate, up and down projection.
        input_norm, post_norm: weights float32 ``[hidden]`` of the norms before the attention and before the MLP.
        heads: the attention's.
        eps: of the norms.
    """

    linears: tuple[CpuLinear, ...]
    input_norm: Tensor
    post_norm: Tensor
    heads: AttentionSpec
    eps: float


class CpuStack:
    """Layers that run one after the other in one call."""

    def __init__(self, layers: Sequence[LayerParts]) -> None:
        self._kept = tuple(layers)  # memory that the structs point to
        self._heads, self._hidden = layers[0].heads, layers[0].linears[0].k
        self._structs = (_Layer * len(layers))(*(_struct(parts) for parts in layers))
        self._call = library().isobit_cpu_layers
        self._call.argtypes = (_POINTER, _SIZE, ctypes.POINTER(_Step), _POINTER)

    def run(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, past: int, capacity: int, stride: int
    ) -> Tensor:
        """The residual stream behind the last layer.

        Args:
            x: float32 ``[B, T, hidden]``, contiguous.
            cos, sin: float32 ``[T, dim]`` of the positions of the new tokens.
            keys, values: memory of the first layer, ``[B, kv_heads, capacity, dim]``.
            past: tokens in the cache.
            capacity: tokens there is room for.
            stride: values from one layer's keys to the next one's; 0 when all may use the same memory.
        """
        batch, tokens, _ = x.shape
        cache = batch, self._heads.kv_heads, capacity, self._heads.dim
        # Looked into only where something is wrong: this is called for every token.
        if x.shape[2] != self._hidden or x.dtype is not torch.float32 or not x.is_cpu or keys.shape[-4:] != cache:
            check_on_cpu("the residual stream", x, (batch, tokens, self._hidden))
            check_on_cpu("cached keys", keys, (*keys.shape[:-4], *cache))
        y = x.clone()
        pointers = cos.data_ptr(), sin.data_ptr(), keys.data_ptr(), values.data_ptr()
        step = _Step(batch, tokens, past, capacity, *pointers, stride)
        check(self._call(ctypes.addressof(self._structs), len(self._structs), ctypes.byref(step), y.data_ptr()))
        return y


def _struct(parts: LayerParts) -> _Layer:
    heads, hidden = parts.heads, parts.linears[0].k
    check_on_cpu("the norm before the attention", parts.input_norm, (hidden,))
    check_on_cpu("the norm before the MLP", parts.post_norm, (hidden,))
    check_on_cpu("the norm of queries", heads.q_norm, (heads.dim,))
    check_on_cpu("the norm of keys", heads.k_norm, (heads.dim,))
    return _Layer(
        *(linear.address for linear in parts.linears),
        parts.input_norm.data_ptr(),
        parts.post_norm.data_ptr(),
        None if heads.q_norm is None else heads.q_norm.data_ptr(),
        None if heads.k_norm is None else heads.k_norm.data_ptr(),
        heads.heads,
        heads.kv_heads,
        heads.dim,
        heads.window or 0,
        heads.dim**-0.5,
        parts.eps,
    )
