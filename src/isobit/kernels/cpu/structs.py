"""The structures of isobit_cpu.h that have to do with layers, and what they are made of."""

from __future__ import annotations

import ctypes

from torch import Tensor

from isobit.errors import Unsupported
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import sequences as cpu_sequences
from isobit.kernels.cpu.linear import LinearStruct
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu2": 3}  # enum isobit_activation of isobit_cpu.h
_NONE, _HEAD, _HEAD_BEHIND, _WIDTH = range(4)  # enum isobit_qk_norm

POINTER, SIZE, FLOAT, CODE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class Norm(ctypes.Structure):
    """isobit_norm."""

    _fields_ = (("weight", POINTER), ("bias", POINTER), ("eps", FLOAT), ("kind", CODE))


class Heads(ctypes.Structure):
    """isobit_heads."""

    _fields_ = (
        [(name, SIZE) for name in ("window", "chunk", "rotated")]
        + [(name, FLOAT) for name in ("scale", "softcap", "eps")]
        + [(name, CODE) for name in ("qk_norm", "interleaved")]
        + [(name, POINTER) for name in ("q_norm", "k_norm", "sinks")]
    )


class Held(ctypes.Structure):
    """isobit_cached."""

    _fields_ = (
        [(name, POINTER) for name in ("keys", "values", "key_scales", "value_scales", "key_groups", "value_groups")]
        + [("group", SIZE)]
        + [(name, CODE) for name in ("format", "group_format")]
    )


class Attention(ctypes.Structure):
    """isobit_attention."""

    _fields_ = (
        [("sequences", cpu_sequences.Struct), ("of", Heads)]
        + [(name, SIZE) for name in ("heads", "kv_heads", "dim", "ldq", "ldk", "ldv", "ldo")]
        + [(name, POINTER) for name in ("cos", "sin", "factors", "q", "k", "v")]
        + [("held", Held), ("out", POINTER)]
    )


class Grouped(ctypes.Structure):
    """isobit_grouped."""

    _fields_ = (("of", LinearStruct), ("experts", SIZE), ("stride", SIZE), ("input_scales", POINTER))


class Experts(ctypes.Structure):
    """isobit_experts."""

    _fields_ = (
        *((name, Grouped) for name in ("gate", "up", "down")),
        ("limit", FLOAT),
        ("activation", CODE),
        ("on_input", CODE),
    )


class Router(ctypes.Structure):
    """isobit_router."""

    _fields_ = (
        [(name, POINTER) for name in ("weight", "correction")]
        + [(name, SIZE) for name in ("active", "groups", "active_groups")]
        + [(name, FLOAT) for name in ("scale", "least_sum")]
        + [(name, CODE) for name in ("scores", "best_two", "renormalize")]
        + [("tolerance", FLOAT)]
    )


class Mixture(ctypes.Structure):
    """isobit_mixture."""

    _fields_ = (("router", Router), ("experts", Experts), ("shared_gate", POINTER))


class Latent(ctypes.Structure):
    """isobit_latent."""

    _fields_ = (
        ("q_a", POINTER),
        *((name, Norm) for name in ("q_norm", "kv_norm")),
        *((name, Grouped) for name in ("keys", "values")),
        *((name, SIZE) for name in ("plain", "rotated")),
    )


class LatentAttention(ctypes.Structure):
    """isobit_latent_attention."""

    _fields_ = (
        [("sequences", cpu_sequences.Struct), ("of", POINTER)]
        + [(name, SIZE) for name in ("heads", "value", "ldkv", "ldo")]
        + [(name, POINTER) for name in ("cos", "sin", "q", "kv")]
        + [("held", Held), ("out", POINTER), ("scale", FLOAT), ("interleaved", CODE)]
    )


class Layer(ctypes.Structure):
    """isobit_layer."""

    _fields_ = (
        [(name, POINTER) for name in ("q", "k", "v", "o", "gate", "up", "down")]
        + [(name, Norm) for name in ("before_attention", "before_mlp", "after_attention", "after_mlp")]
        + [("of", Heads)]
        + [(name, SIZE) for name in ("heads", "kv_heads", "dim")]
        + [("mixture", POINTER), ("places", SIZE)]
        + [(name, FLOAT) for name in ("factor", "limit")]
        + [(name, CODE) for name in ("activation", "side_by_side")]
        + [("latent", POINTER)]
    )


class Places(ctypes.Structure):
    """isobit_places."""

    _fields_ = (*((name, POINTER) for name in ("cos", "sin", "factors")), ("rotated", SIZE))


class Step(ctypes.Structure):
    """isobit_step."""

    _fields_ = [("sequences", cpu_sequences.Struct), ("places", POINTER), ("kinds_of_places", SIZE)] + [
        ("held", Held),
        ("cache_stride", SIZE),
    ]


def pointer(part: Tensor | None) -> int | None:
    """Where a tensor lies; None where there is none."""
    return None if part is None else part.data_ptr()


def norm_struct(spec: NormSpec | None, k: int, what: str = "a norm") -> Norm:
    """A norm over ``k`` numbers; valid while its tensors are there.

    Raises:
        FormatError: its weight or bias has another shape, dtype or place.
    """
    if spec is None:
        return Norm()
    check_on_cpu(f"weight of {what}", spec.weight, (k,))
    check_on_cpu(f"bias of {what}", spec.bias, (k,))
    return Norm(spec.weight.data_ptr(), pointer(spec.bias), spec.eps, int(spec.centred))


def heads_struct(heads: AttentionSpec, over_width: tuple[NormSpec, NormSpec] | None = None) -> Heads:
    """What an attention is; valid while its tensors are there.

    Args:
        heads: the layer's.
        over_width: norms of queries and keys over all heads together, instead of those over each.

    Raises:
        FormatError: a norm or the sinks have another shape, dtype or place.
    """
    q_norm, k_norm, eps, kind = heads.q_norm, heads.k_norm, heads.eps, _NONE
    widths = heads.dim, heads.dim
    if over_width is not None:
        q_norm, k_norm = (norm.weight for norm in over_width)
        widths, eps, kind = (heads.heads * heads.dim, heads.kv_heads * heads.dim), over_width[0].eps, _WIDTH
    elif q_norm is not None or k_norm is not None:
        kind = _HEAD_BEHIND if heads.norm_behind else _HEAD
    check_on_cpu("the norm of queries", q_norm, widths[:1])
    check_on_cpu("the norm of keys", k_norm, widths[1:])
    check_on_cpu("the sinks", heads.sinks, (heads.heads,))
    return Heads(
        heads.window or 0, heads.chunk or 0, heads.rotated, heads.factor, heads.softcap or 0.0, eps, kind,
        int(heads.interleaved), pointer(q_norm), pointer(k_norm), pointer(heads.sinks),
    )  # fmt: skip


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
