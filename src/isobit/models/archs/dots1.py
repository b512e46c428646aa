"""dots.llm1: a Qwen3's attention, and DeepSeek V3's experts from some layer on."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, from_layer, read_common, read_windows
from isobit.models.hf_latent import read_experts
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Dots1ForCausalLM configuration."""
    first = fields.integer("max_window_layers", 62, low=0)
    windows = read_windows(fields, enabled=True, default_window=4096, windowed=from_layer(first))
    if any(windows):
        fields.only("use_sliding_window", (True,), "way to switch windows off; write sliding_window: null")
    fields.flag("use_sliding_window", False)
    fields.only("scoring_func", ("sigmoid", "noaux_tc"), "router")  # published files have the latter
    fields.only("topk_method", ("noaux_tc",), "choice of experts")
    bias, normed = fields.flag("attention_bias", False), fields.flag("norm_topk_prob", False)
    router = Router(0, 0, "sigmoid", correction=True, group_score="two", renormalize=normed)
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head", vary=read_experts(fields, router, 0))
    return read_common(fields, "dots1", Common(kv_heads=32), style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window on the last of three layers, shorter than the test's sequences."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "sliding_window": 16,
        "max_window_layers": 2,
        "max_position_embeddings": 256,
    }
