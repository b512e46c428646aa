"""Gemma 3: a Gemma 2 without caps, with norms of queries and keys, and another theta in layers with a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs.gemma2 import NORMS, read_cap
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, read_head_dim, read_windows, with_attention
from isobit.models.hf_rope import Common, positions, read_ropes

THETA, LOCAL = 1e6, ("rope_local_base_freq", 1e4)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Gemma3ForCausalLM configuration."""
    pattern = fields.integer("sliding_window_pattern", 6, high=MOST_LAYERS)
    fields.integer("_sliding_window_pattern", 6, high=MOST_LAYERS)  # transformers writes it beside layer_types
    windows = read_windows(fields, enabled=True, default_window=4096, windowed=lambda layer: (layer + 1) % pattern != 0)
    fields.only("use_bidirectional_attention", (False,), "attention to later tokens")
    bias = fields.flag("attention_bias", False)
    style = Style(
        norms=NORMS,
        norm_offset=1.0,
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        activation="gelu_tanh",
        scale=fields.number("query_pre_attn_scalar", 256.0, low=1e-3, high=1e6) ** -0.5,
        embedding_factor="root",
        logit_softcap=read_cap(fields, "final_logit_softcapping", None),
    )
    notes: tuple[str, ...] = ()
    if (cap := read_cap(fields, "attn_logit_softcapping", None)) is not None:
        notes = (f"attn_logit_softcapping = {cap:g} is not looked at: neither transformers nor vLLM has it in Gemma 3",)
    common = Common(
        kv_heads=4, head_dim=256, max_positions=131072, tied=True, activation="hidden_activation", theta=THETA
    )
    rope, near = read_ropes(fields, common, read_head_dim(fields, common), LOCAL)
    if rope.kind == "linear" and not rope.original_context:  # max_position_embeddings counts the factor already
        rope = replace(rope, original_context=max(1, int(positions(fields, common) / rope.factor)))

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return spec if windows[layer] is None else with_attention(spec, rope=near)

    return read_common(fields, "gemma3_text", common, replace(style, vary=vary), windows, notes, rope)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences, and a stretched rope in the other layer."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "sliding_window": 16,
        "query_pre_attn_scalar": 48,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    }
