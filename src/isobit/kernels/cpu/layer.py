"""What a decoder layer does beside its linears, on the CPU kernels: float32 in, float32 out (cpp/layer.cpp).

Tensors are contiguous float32 on the CPU; the callers (models/ops.py) see to that. Shapes: B sequences of T tokens.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from isobit.kernels.checked import check_on_cpu
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


def _like(x: Tensor, *others: Tensor) -> None:
    """That all are float32 of one shape, one value after the other, on the CPU.

    Raises:
        FormatError: they aren't.
    """
    for other in (x, *others):
        check_on_cpu("part of a layer", other, tuple(x.shape))


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of the rows of ``x [..., K]``."""
    k, y = x.shape[-1], torch.empty_like(x)
    _like(x)
    check_on_cpu("weight of a norm", weight, (k,))
    check(_lib().isobit_cpu_rms_norm(x.data_ptr(), None, weight.data_ptr(), eps, x.numel() // k, k, None, y.data_ptr()))
    return y


def add(x: Tensor, delta: Tensor) -> Tensor:
    """``x + delta``. PyTorch's own threads would go on spinning behind it and slow down the kernel that follows."""
    k, total = x.shape[-1], torch.empty_like(x)
    _like(x, delta)
    check(
        _lib().isobit_cpu_rms_norm(x.data_ptr(), delta.data_ptr(), None, 0.0, x.numel() // k, k, total.data_ptr(), None)
    )
    return total


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its norm, in one pass."""
    k, total, y = x.shape[-1], torch.empty_like(x), torch.empty_like(x)
    _like(x, delta)
    check_on_cpu("weight of a norm", weight, (k,))
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
    _like(gate, up)
    check(_lib().isobit_cpu_silu_mul(gate.data_ptr(), up.data_ptr(), gate.numel() // k, k, k, y.data_ptr()))
    return y


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` as the attention and the gate compute it, for tests."""
    y = torch.empty_like(x)
    _like(x)
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
    for what, part, shape in (
        ("queries", q, (batch, tokens, heads.heads * heads.dim)), ("keys", k, (batch, tokens, shared)),
        ("values", v, (batch, tokens, shared)), ("cosines", cos, (tokens, heads.dim)),
        ("sines", sin, (tokens, heads.dim)), ("cached keys", keys, (batch, heads.kv_heads, keys.shape[2], heads.dim)),
        ("cached values", values, tuple(keys.shape)), ("norm of queries", heads.q_norm, (heads.dim,)),
        ("norm of keys", heads.k_norm, (heads.dim,)),
    ):  # fmt: skip
        check_on_cpu(what, part, shape)
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
