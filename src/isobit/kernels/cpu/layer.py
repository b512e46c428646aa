"""What a decoder layer does beside its linears, on the CPU kernels: float32 in, float32 out (cpp/layer.cpp).

Tensors are contiguous float32 on the CPU; the callers (models/ops.py) see to that. Shapes: B sequences of T tokens.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.library import check
from isobit.kernels.heads import AttentionSpec

LARGEST_HEAD = 512  # dimensions

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Attention(ctypes.Structure):
    """isobit_attention of isobit_cpu.h."""

    _fields_ = (
        [(name, _SIZE) for name in ("batch", "tokens", "past", "heads", "kv_heads", "dim", "capacity", "window")]
        + [(name, _SIZE) for name in ("ldq", "ldk", "ldv", "ldo")]
        + [(name, _FLOAT) for name in ("scale", "eps")]
        + [(name, _POINTER) for name in ("cos", "sin", "q_norm", "k_norm", "q", "k", "v", "keys", "values", "out")]
    )


_SIGNATURES = {
    "isobit_cpu_rms_norm": (_POINTER, _POINTER, _POINTER, _FLOAT, _SIZE, _SIZE, _POINTER, _POINTER),
    "isobit_cpu_silu_mul": (_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER),
    "isobit_cpu_exp": (_POINTER, _SIZE, _POINTER),
    "isobit_cpu_attention": (ctypes.POINTER(_Attention),),
}


@lru_cache(maxsize=1)
def _lib() -> ctypes.CDLL:
    library = cpu_library.library()
    for name, arguments in _SIGNATURES.items():
        getattr(library, name).argtypes = arguments
    return library


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of the rows of ``x [..., K]``."""
    k, y = x.shape[-1], torch.empty_like(x)
    check(_lib().isobit_cpu_rms_norm(x.data_ptr(), None, weight.data_ptr(), eps, x.numel() // k, k, None, y.data_ptr()))
    return y


def add(x: Tensor, delta: Tensor) -> Tensor:
    """``x + delta``. PyTorch's own threads would go on spinning behind it and slow down the kernel that follows."""
    k, total = x.shape[-1], torch.empty_like(x)
    check(
        _lib().isobit_cpu_rms_norm(x.data_ptr(), delta.data_ptr(), None, 0.0, x.numel() // k, k, total.data_ptr(), None)
    )
    return total


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its norm, in one pass."""
    k, total, y = x.shape[-1], torch.empty_like(x), torch.empty_like(x)
    check(
        _lib().isobit_cpu_rms_norm(
            x.data_ptr(),
            delta.data_ptr(),
            weight.data_ptr(),
            eps,
            x.numel() // k,
            k,
            total.data_ptr(),
            y.data_ptr(),
        )
    )
    return total, y


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, both ``[..., K]``."""
    k, y = gate.shape[-1], torch.empty_like(gate)
    check(_lib().isobit_cpu_silu_mul(gate.data_ptr(), up.data_ptr(), gate.numel() // k, k, k, y.data_ptr()))
    return y


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` as the attention and the gate compute it, for tests."""
    y = torch.empty_like(x)
    check(_lib().isobit_cpu_exp(x.data_ptr(), x.numel(), y.data_ptr()))
    return y


def attention(
    heads: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    past: int,
) -> Tensor:
    """Norms and rotates queries and keys, stores keys and values in the cache, and attends to all of it.

    Args:
        heads: the layer's.
        q: ``[B, T, heads * dim]``; overwritten.
        k, v: ``[B, T, kv_heads * dim]``.
        cos, sin: ``[T, dim]``, of positions ``past`` to ``past + T - 1``.
        keys, values: the cache ``[B, kv_heads, capacity, dim]``, of which ``past`` tokens are there.
        past: tokens in the cache.

    Returns:
        ``[B, T, heads * dim]``.
    """
    batch, tokens, width = q.shape
    out, shared = torch.empty_like(q), heads.kv_heads * heads.dim
    arguments = _Attention(
        batch,
        tokens,
        past,
        heads.heads,
        heads.kv_heads,
        heads.dim,
        keys.shape[2],
        heads.window or 0,
        width,
        shared,
        shared,
        width,
        heads.dim**-0.5,
        heads.eps,
        cos.data_ptr(),
        sin.data_ptr(),
        None if heads.q_norm is None else heads.q_norm.data_ptr(),
        None if heads.k_norm is None else heads.k_norm.data_ptr(),
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        out.data_ptr(),
    )
    check(_lib().isobit_cpu_attention(ctypes.byref(arguments)))
    return out
