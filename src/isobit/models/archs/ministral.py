"""Ministral 8B under its own name: a Mistral whose layers have a window where layer_types says so."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a MinistralForCausalLM configuration."""
    windows = read_windows(fields, enabled=True, default_window=4096)
    common = Common(kv_heads=8, max_positions=131072)
    return read_common(fields, "ministral", common, Style(activation=None), windows)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window, shorter than the test's sequences, on one of two layers."""
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
        "layer_types": ["sliding_attention", "full_attention"],
    }
