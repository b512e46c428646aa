"""GLM-4-9B: gate and up stored as one matrix, half of each head rotated, by neighbours; biases on query, key, value."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, own_head_dim, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GlmForCausalLM configuration."""
    return read_common(fields, "glm", common(fields), style(fields))


def common(fields: Fields) -> Common:
    """How GLM-4 reads common keys; null for head_dim means hidden_size / num_attention_heads."""
    without_windows(fields)
    return Common(
        kv_heads=2,
        head_dim=own_head_dim(fields, 128),
        max_positions=131072,
        eps=1.5625e-7,
        partial=0.5,
        interleaved=True,
    )


def style(fields: Fields) -> Style:
    """What GLM-4's layers are."""
    return Style(qkv_bias=fields.flag("attention_bias", True), activation=None, joined=("gate_up",))


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
