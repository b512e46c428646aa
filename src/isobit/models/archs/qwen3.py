"""Qwen3 (dense): a norm over each query and key head, heads as wide as head_dim says."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, from_layer, read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Qwen3ForCausalLM configuration."""
    windows = read_windows(
        fields,
        enabled=fields.flag("use_sliding_window", False),
        default_window=4096,
        windowed=from_layer(fields.integer("max_window_layers", 28, low=0)),
    )
    bias = fields.flag("attention_bias", False)
    return read_common(
        fields,
        "qwen3",
        Common(kv_heads=32, head_dim=128, max_positions=32768),
        Style(qkv_bias=bias, o_bias=bias, qk_norm="head"),
        windows,
    )


def tiny() -> dict[str, Any]:
    """A tiny test model whose heads are wider than its hidden size, with yarn."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
