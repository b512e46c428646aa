"""Helium: a Llama whose rotary pairs are neighbours."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, require_shared_width, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a HeliumForCausalLM configuration."""
    without_windows(fields)
    common = Common(kv_heads=20, head_dim=128, max_positions=4096, eps=1e-8, theta=100000.0, interleaved=True)
    style = Style(
        qkv_bias=fields.flag("attention_bias", False), mlp_bias=fields.flag("mlp_bias", False), activation=None
    )
    return read_common(fields, "helium", require_shared_width(fields, common), style)


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
    }
