"""What a decoder layer does beside its linears, on the CPU kernels: float32 in and out (cpp/layer.cpp, attention.cpp).

Tensors are contiguous float32 on the CPU; models/ops/cpu.py sees to that. Shapes: T tokens, of any sequences.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.caches import CacheFormat
from isobit.formats.pack import code_dtype
from isobit.formats.table import element
from isobit.kernels.cached import Cached, Part
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import sequences as cpu_sequences
from isobit.kernels.cpu import structs
from isobit.kernels.cpu.library import check
from isobit.kernels.cpu.structs import ACTIVATIONS
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences

__all__ = [
    "ACTIVATIONS", "CACHE_FORMATS", "LARGEST_HEAD", "activate", "add", "add_norm", "attention", "exp", "gate",
    "gate_by", "held_struct", "norm",
]  # fmt: skip

LARGEST_HEAD = 512  # dimensions
# enum isobit_format of isobit_cpu.h, of what a cache holds: a dtype or an element format, also of scales of groups
CACHE_FORMATS: dict[torch.dtype | str, int] = {
    torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, "e4m3fn": 3, "e5m2": 4, "int8": 5, "e2m1": 10, "e8m0": 11
}  # fmt: skip

_POINTER, _SIZE, _FLOAT, _CODE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
_NORM = ctypes.POINTER(structs.Norm)
_SIGNATURES = {
    "isobit_cpu_norm": (_NORM, _POINTER, _POINTER, _FLOAT, _SIZE, _SIZE, _POINTER, _POINTER),
    "isobit_cpu_gate": (_CODE, _FLOAT, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER),
    "isobit_cpu_gate_by": (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE),
    "isobit_cpu_exp": (_POINTER, _SIZE, _POINTER),
    "isobit_cpu_attention": (ctypes.POINTER(structs.Attention),),
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


def norm(x: Tensor, spec: NormSpec) -> Tensor:
    """The norm of the rows of ``x [..., K]``."""
    k, y = x.shape[-1], torch.empty_like(x)
    _like(x)
    by = ctypes.byref(structs.norm_struct(spec, k))
    check(_lib().isobit_cpu_norm(by, x.data_ptr(), None, 1.0, x.numel() // k, k, None, y.data_ptr()))
    return y


def add(x: Tensor, delta: Tensor) -> Tensor:
    """``x + delta``. PyTorch's own threads would go on spinning behind it and slow down the kernel that follows."""
    k, total = x.shape[-1], torch.empty_like(x)
    _like(x, delta)
    check(_lib().isobit_cpu_norm(None, x.data_ptr(), delta.data_ptr(), 1.0, x.numel() // k, k, total.data_ptr(), None))
    return total


def add_norm(x: Tensor, delta: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """``x + delta`` and its norm, in one pass."""
    k, total, y = x.shape[-1], torch.empty_like(x), torch.empty_like(x)
    _like(x, delta)
    by, pointers = ctypes.byref(structs.norm_struct(spec, k)), (total.data_ptr(), y.data_ptr())
    check(_lib().isobit_cpu_norm(by, x.data_ptr(), delta.data_ptr(), 1.0, x.numel() // k, k, *pointers))
    return total, y


def gate(gate: Tensor, up: Tensor, activation: str = "silu", limit: float | None = None) -> Tensor:
    """``activation(gate) * up``, both ``[..., K]``; the activation is a key of ACTIVATIONS.

    Args:
        gate, up: as above.
        activation: what the gate is passed through.
        limit: of the gate, see :class:`isobit.kernels.grouped.Gating`; None: it has none.

    Raises:
        Unsupported: there is no such activation.
        FormatError: the tensors do not fit together.
    """
    code, k, y = structs.activation_code(activation), gate.shape[-1], torch.empty_like(gate)
    _like(gate, up)
    rows, pointers = gate.numel() // k, (gate.data_ptr(), up.data_ptr())
    check(_lib().isobit_cpu_gate(code, limit or 0.0, *pointers, rows, k, k, y.data_ptr()))
    return y


def activate(x: Tensor, activation: str) -> Tensor:
    """``activation(x)``, ``[..., K]``; the activation is a key of ACTIVATIONS.

    Raises:
        Unsupported: there is no such activation.
        FormatError: the tensor is not what the kernels read.
    """
    code, k, y = structs.activation_code(activation), x.shape[-1], torch.empty_like(x)
    _like(x)
    check(_lib().isobit_cpu_gate(code, 0.0, x.data_ptr(), None, x.numel() // k, k, k, y.data_ptr()))
    return y


def gate_by(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """``y * sigmoid(x . weight)``: ``x [T, K]``, ``weight [K]``, ``y [T, N]``.

    Raises:
        FormatError: the tensors do not fit together.
    """
    rows, k = x.shape
    _like(x)
    check_on_cpu("weight of a gate", weight, (k,))
    check_on_cpu("part of a layer", y, (rows, y.shape[-1]))
    result = y.clone()
    check(_lib().isobit_cpu_gate_by(x.data_ptr(), weight.data_ptr(), rows, k, result.data_ptr(), y.shape[-1]))
    return result


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` as the attention and the gate compute it, for tests."""
    y = torch.empty_like(x)
    _like(x)
    check(_lib().isobit_cpu_exp(x.data_ptr(), x.numel(), y.data_ptr()))
    return y


def held_struct(held: Cached, shape: tuple[int, ...], second: int | None = None) -> structs.Held:
    """A cache as the kernels read it: keys and values of a shape that ends in it; valid while its tensors are there.

    Args:
        held: the cache.
        shape: ``[blocks, kv_heads, block, dim]``, ``dim`` in numbers.
        second: ``dim`` of the values; None for that of the keys.

    Raises:
        FormatError: it is none that they read.
    """
    form, of_group = held.form, 0
    format = CACHE_FORMATS.get(form.element or held.keys.dtype, 0)
    if form.group:
        of_group = CACHE_FORMATS.get(form.scale.element, 0)
    if form.element and (not format or (form.group is not None and not of_group)):
        raise FormatError(f"the CPU kernels keep no keys and values in {form.name}")
    dtype = code_dtype(element(form.element)) if form.element else held.keys.dtype if format else torch.float32
    for what, part, dim in zip(_PARTS, held.parts, (shape[3], second or shape[3]), strict=True):
        rows, width = shape[:3], form.width(dim)
        # Looked into only where something is wrong: this is called for every token.
        tensor = part.numbers
        good = tensor.dtype is dtype and tensor.is_contiguous() and tensor.is_cpu
        if not good or tensor.shape[-4:] != (*rows, width):
            check_on_cpu(f"cached {what}", tensor, (*tensor.shape[:-4], *rows, width), dtype)
        above = tensor.shape[:-4]
        if form.one_scale:
            _check_scales(f"scales of cached {what}", part.scales, (*above, *rows), torch.float32)
        if form.group:
            sizes = (*above, *rows, form.groups(dim))
            _check_scales(f"scales of groups of cached {what}", part.groups, sizes, torch.uint8)
    keys, values = held.parts
    return structs.Held(
        *(structs.pointer(part) for pair in zip(_addressed(form, keys), _addressed(form, values), strict=True)
          for part in pair), form.group or 0, format, of_group,
    )  # fmt: skip


_PARTS = ("keys", "values")


def _check_scales(what: str, found: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if found is None:
        raise FormatError(f"{what}: missing")
    check_on_cpu(what, found, shape, dtype)


def _addressed(form: CacheFormat, part: Part) -> tuple[Tensor | None, ...]:
    """Numbers, scales, and scales of groups, as far as the format has them."""
    return part.numbers, part.scales if form.one_scale else None, part.groups if form.group else None


def attention(
    heads: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    held: Cached,
    sequences: Sequences,
    factors: Tensor | None = None,
) -> Tensor:
    """Norms and rotates queries and keys, stores keys and values, and lets each token attend to its sequence.

    A token's result is the same bits whatever is computed with it and wherever the cache keeps its sequence.

    Args:
        heads: the layer's.
        q: float32 ``[T, heads * dim]``; overwritten.
        k, v: float32 ``[T, kv_heads * dim]``.
        cos, sin: float32 ``[T, rotated]``, of the position of each token.
        held: the cache, holding what came before these tokens.
        sequences: whose the tokens are. A block is a multiple of 64 tokens, unless each sequence fits into one.
        factors: float32 ``[T]`` that the scores of tokens are multiplied by besides, where the attention is scaled.

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
        ("cosines", cos, (tokens, heads.rotated)), ("sines", sin, (tokens, heads.rotated)),
        ("factors of tokens", factors, (tokens,)),
    ):  # fmt: skip
        check_on_cpu(what, part, shape)
    kept = held_struct(held, cache)
    out = torch.empty_like(q)
    rotary = (cos.data_ptr(), sin.data_ptr()) if heads.rotated else (None, None)
    arguments = structs.Attention(
        cpu_sequences.struct(sequences, tokens, held.keys.shape[0]), structs.heads_struct(heads), heads.heads,
        heads.kv_heads, heads.dim, width, shared, shared, width, *rotary, structs.pointer(factors), q.data_ptr(),
        k.data_ptr(), v.data_ptr(), kept, out.data_ptr(),
    )  # fmt: skip
    check(_lib().isobit_cpu_attention(ctypes.byref(arguments)))
    return out
