"""What a decoder layer does beside its linears, on the CPU kernels: float32 in and out (cpp/layer.cpp, attention.cpp).

Tensors are contiguous float32 on the CPU; models/ops/cpu.py sees to that. Shapes: T tokens, of any sequences.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.pack import code_dtype
from isobit.formats.table import element
from isobit.kernels.cached import Cached
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import sequences as cpu_sequences
from isobit.kernels.cpu.library import check
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences

LARGEST_HEAD = 512  # dimensions
# enum isobit_format of isobit_cpu.h, of what a cache holds: a dtype or an element format
CACHE_FORMATS: dict[torch.dtype | str, int] = {
    torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, "e4m3fn": 3, "e5m2": 4, "int8": 5
}  # fmt: skip
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}  # enum isobit_activation of isobit_cpu.h

_POINTER, _SIZE, _FLOAT, _CODE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class _Attention(ctypes.Structure):
    """isobit_attention of isobit_cpu.h."""

    _fields_ = (
        [("sequences", cpu_sequences.Struct)]
        + [(name, _SIZE) for name in ("heads", "kv_heads", "dim", "window", "ldq", "ldk", "ldv", "ldo")]
        + [(name, _FLOAT) for name in ("scale", "softcap", "eps")]
        + [(name, _POINTER) for name in ("cos", "sin", "q_norm", "k_norm", "q", "k", "v", "keys", "values")]
        + [(name, _POINTER) for name in ("key_scales", "value_scales", "out")]
        + [("cache_format", _CODE)]
    )


_SIGNATURES = {
    "isobit_cpu_rms_norm": (_POINTER, _POINTER, _POINTER, _FLOAT, _SIZE, _SIZE, _POINTER, _POINTER),
    "isobit_cpu_gate": (_CODE, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER),
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


def activation_code(activation: str) -> int:
    """What the library calls the activation of a gate.

    Raises:
        Unsupported: it does not have it.
    """
    if activation not in ACTIVATIONS:
        reason = f"the CPU kernels have {', '.join(ACTIVATIONS)}"
        raise Unsupported(
            f"the activation {activation}", [reason], instead="the reference path: ISOBIT_KERNEL=reference"
        )
    return ACTIVATIONS[activation]


def gate(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """``activation(gate) * up``, both ``[..., K]``; the activation is a key of ACTIVATIONS.

    Raises:
        Unsupported: there is no such activation.
        FormatError: the tensors do not fit together.
    """
    code, k, y = activation_code(activation), gate.shape[-1], torch.empty_like(gate)
    _like(gate, up)
    check(_lib().isobit_cpu_gate(code, gate.data_ptr(), up.data_ptr(), gate.numel() // k, k, k, y.data_ptr()))
    return y


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` as the attention and the gate compute it, for tests."""
    y = torch.empty_like(x)
    _like(x)
    check(_lib().isobit_cpu_exp(x.data_ptr(), x.numel(), y.data_ptr()))
    return y


def check_cached(held: Cached, shape: tuple[int, ...]) -> int:
    """That a cache is what the kernels read: keys and values of a shape that ends in it; gives enum isobit_format.

    Raises:
        FormatError: it isn't.
    """
    format = CACHE_FORMATS.get(held.element or held.keys.dtype, 0)
    if held.element and not format:
        raise FormatError(f"the CPU kernels keep no keys and values as codes of {held.element}")
    dtype = code_dtype(element(held.element)) if held.element else held.keys.dtype if format else torch.float32
    for what, part in (("cached keys", held.keys), ("cached values", held.values)):
        # Looked into only where something is wrong: this is called for every token.
        if part.shape[-4:] != shape or part.dtype is not dtype or not part.is_contiguous() or not part.is_cpu:
            check_on_cpu(what, part, (*part.shape[:-4], *shape), dtype)
    scales = [("scales of cached keys", held.key_scales), ("scales of cached values", held.value_scales)]
    for what, found in scales if held.element else ():
        if found is None:
            raise FormatError(f"{what}: missing")
        check_on_cpu(what, found, (*held.keys.shape[:-4], *shape[:3]))
    return format


def pointers(held: Cached) -> tuple[int | None, ...]:
    """Keys, values, and their scales."""
    scales = (None if part is None else part.data_ptr() for part in (held.key_scales, held.value_scales))
    return held.keys.data_ptr(), held.values.data_ptr(), *scales


def attention(
    heads: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    held: Cached,
    sequences: Sequences,
) -> Tensor:
    """Norms and rotates queries and keys, stores keys and values, and lets each token attend to its sequence.

    A token's result is the same bits whatever is computed with it and wherever the cache keeps its sequence.

    Args:
        heads: the layer's.
        q: float32 ``[T, heads * dim]``; overwritten.
        k, v: float32 ``[T, kv_heads * dim]``.
        cos, sin: float32 ``[T, dim]``, of the position of each token.
        held: the cache, holding what came before these tokens.
        sequences: whose the tokens are. A block is a multiple of 64 tokens, unless each sequence fits into one.

    Returns:
        float32 ``[T, heads * dim]``; zeros where a token is padding.

    Raises:
        FormatError: a tensor has another shape, dtype or place.
        IsobitError: the sequences do not fit the tokens or the cache; nothing has been written.
    """
    tokens, width, shared = q.shape[0], heads.heads * heads.dim, heads.kv_heads * heads.dim
    cache = (held.keys.shape[0], heads.kv_heads, sequences.block, heads.dim)
    for what, part, shape in (
        ("queries", q, (tokens, width)), ("keys", k, (tokens, shared)), ("values", v, (tokens, shared)),
        ("cosines", cos, (tokens, heads.dim)), ("sines", sin, (tokens, heads.dim)),
        ("norm of queries", heads.q_norm, (heads.dim,)), ("norm of keys", heads.k_norm, (heads.dim,)),
    ):  # fmt: skip
        check_on_cpu(what, part, shape)
    format = check_cached(held, cache)
    out = torch.empty_like(q)
    arguments = _Attention(
        cpu_sequences.struct(sequences, tokens, held.keys.shape[0]),
        heads.heads,
        heads.kv_heads,
        heads.dim,
        heads.window or 0,
        width,
        shared,
        shared,
        width,
        heads.factor,
        heads.softcap or 0.0,
        heads.eps,
        cos.data_ptr(),
        sin.data_ptr(),
        None if heads.q_norm is None else heads.q_norm.data_ptr(),
        None if heads.k_norm is None else heads.k_norm.data_ptr(),
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        *pointers(held),
        out.data_ptr(),
        format,
    )
    check(_lib().isobit_cpu_attention(ctypes.byref(arguments)))
    return out
