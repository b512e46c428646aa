"""Mellum 2: a Qwen3-MoE with windows, whose layers with a window have a rope of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs.glm4_moe import read_guessing
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_head_dim, read_windows, with_attention
from isobit.models.hf_experts import read_counts, read_sparse, with_experts
from isobit.models.hf_rope import Common, read_ropes

THETA, LOCAL = 5e5, 1e4


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a MellumForCausalLM configuration."""
    windows = read_windows(fields, enabled=True, default_window=1024, windowed=lambda layer: False)
    common = Common(kv_heads=4, head_dim=128, max_positions=131072, theta=THETA, partial=1.0)
    rope, near = read_ropes(fields, common, read_head_dim(fields, common), ("rope_local_base_freq", LOCAL))
    experts, active = read_counts(fields, 64, 8)
    router = Router(experts, active, renormalize=fields.flag("norm_topk_prob", True))
    sparse, size = read_sparse(fields, 0), fields.integer("moe_intermediate_size", 896)
    mixed = with_experts(Experts(router, GatedMlp(size)), lambda layer: sparse[layer])
    guessing = read_guessing(fields)

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        spec = mixed(layer, spec)
        return spec if windows[layer] is None else with_attention(spec, rope=near)

    bias = fields.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head", vary=vary)
    return replace(read_common(fields, "mellum", common, style, windows, rope=rope), predicted_layers=guessing)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window on one of three layers, and one that is dense between those with experts."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "max_position_embeddings": 256,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 5e5,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    }
