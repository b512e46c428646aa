"""Qwen3-MoE: a Qwen3 whose MLPs are mixtures of many small experts, in all layers but some."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_experts import qwen_layers, read_counts, with_experts
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Qwen3MoeForCausalLM configuration."""
    windows = read_windows(fields, enabled=fields.flag("use_sliding_window", False), default_window=4096)
    fields.raw("max_window_layers")
    experts, active = read_counts(fields, 128, 8)
    router = Router(experts, active, renormalize=fields.flag("norm_topk_prob", False))
    mixture = Experts(router, GatedMlp(fields.integer("moe_intermediate_size", 768)))
    fields.only("use_qk_norm", (True,), "Qwen3 without norms of queries and keys")
    bias = fields.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head", vary=with_experts(mixture, qwen_layers(fields)))
    return read_common(fields, "qwen3_moe", Common(kv_heads=4, max_positions=32768), style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model whose first layer is dense."""
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
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
        "max_position_embeddings": 256,
    }
