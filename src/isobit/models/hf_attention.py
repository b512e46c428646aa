"""The attention of families that have experts: what their files in ``archs/`` begin with.

Each function reads the keys of its attention, and gives what :func:`isobit.models.hf.read_common` is asked with; the
family adds its experts to the style.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from isobit.models.config import LayerSpec, QueryScale
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_rotating, read_windows, with_attention
from isobit.models.hf_rope import ORIGINAL, Common

GPT_OSS_ROPE = MappingProxyType(
    {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, ORIGINAL: 4096}
)


@dataclass(frozen=True)
class Reading:
    """How the rest of a family's file is read.

    Attributes:
        common: its common keys.
        style: what its layers are.
        windows: one for each layer; None where the family has none.
    """

    common: Common
    style: Style
    windows: tuple[int | None, ...] | None = None

    def style_with(self, vary: Callable[[int, LayerSpec], LayerSpec], **changes: Any) -> Style:
        """The style with more to vary: experts, e.g. what :func:`isobit.models.hf_experts.with_experts` gives."""
        return replace(self.style, **changes, vary=lambda layer, spec: vary(layer, self.style.vary(layer, spec)))


def gpt_oss(fields: Fields) -> Reading:
    """gpt-oss: sinks in every layer, a window in every other one, biases, yarn that is not rounded to dimensions."""
    windows = read_windows(fields, enabled=True, default_window=128, windowed=lambda layer: layer % 2 == 0)
    bias = fields.flag("attention_bias", True)
    style = Style(qkv_bias=bias, o_bias=bias, vary=lambda layer, spec: with_attention(spec, sinks=True))
    common = Common(kv_heads=8, head_dim=64, max_positions=131072, eps=1e-5, theta=150000.0, usual=GPT_OSS_ROPE)
    fields.raw("initial_context_length")  # the authors' own name of what rope_scaling says
    return Reading(common, style, windows)


def llama4(fields: Fields) -> Reading:
    """Llama 4: layers that rotate attend within chunks, the others to all, with queries that grow with positions."""
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    rotating = read_rotating(fields, 4)
    chunks = _chunks(fields, layers, rotating)
    normed = fields.flag("use_qk_norm", True)
    grow = _growth(fields)
    bias = fields.flag("attention_bias", False)

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        spec = with_attention(spec, chunk=chunks[layer])
        if rotating[layer]:
            return with_attention(spec, qk_norm="l2") if normed else spec
        return with_attention(spec, rope=None, query_scale=grow)

    common = Common(kv_heads=8, head_dim=128, max_positions=131072, eps=1e-5, theta=500000.0, interleaved=True)
    return Reading(common, Style(qkv_bias=bias, o_bias=bias, vary=vary))


def _chunks(fields: Fields, layers: int, rotating: tuple[bool, ...]) -> tuple[int | None, ...]:
    """The chunk of each layer."""
    none = "attention_chunk_size" in fields and fields.raw("attention_chunk_size") is None
    size = None if none else fields.integer("attention_chunk_size", 8192)
    types = fields.raw("layer_types")
    if types is None:
        return tuple(size if rotates else None for rotates in rotating)
    known = ("full_attention", "chunked_attention")
    if not isinstance(types, list) or any(name not in known for name in types):
        fields.problem("layer_types", f"isobit knows {' and '.join(known)} in this family")
    elif len(types) != layers and fields.sound:
        fields.problem("layer_types", f"expected one for each of {layers} layers, found {len(types)}")
    else:
        return tuple(size if name == "chunked_attention" else None for name in types)
    return (None,) * layers


def _growth(fields: Fields) -> QueryScale | None:
    """How queries of layers that do not rotate grow; published files write true, and 4 for it."""
    floor = fields.integer("floor_scale", 8192)
    beta = fields.number("attn_scale", 0.1, high=100.0)
    tuned: Any = fields.raw("attn_temperature_tuning")
    if tuned is None or tuned is True or tuned == 4:
        return QueryScale(floor, beta, 1)
    fields.only("attn_temperature_tuning", (False,), "growth of queries")
    return None


def minimax_m2(fields: Fields) -> Reading:
    """MiniMax-M2: norms over all heads of queries and keys together, heads that are rotated in part."""
    fields.only("use_qk_norm", (True,), "attention without norms of queries and keys")
    fields.only("qk_norm_type", ("per_layer",), "norm of queries and keys")
    common = Common(kv_heads=8, head_dim=128, max_positions=196608, theta=5e6, partial=1.0, dims_key="rotary_dim")
    return Reading(common, Style(qk_norm="width"))


def glm4_moe(fields: Fields) -> Reading:
    """GLM-4.5: half of each head is rotated; norms of query and key heads if the file says so."""
    style = Style(
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm="head" if fields.flag("use_qk_norm", False) else "none",
    )
    return Reading(Common(kv_heads=8, max_positions=131072, eps=1e-5, partial=0.5), style)
