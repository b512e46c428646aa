"""Qwen2 and Qwen2.5: biases on query, key and value; windows on the upper layers where they are switched on."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, from_layer, read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Qwen2ForCausalLM configuration."""
    windows = read_windows(
        fields,
        enabled=fields.flag("use_sliding_window", False),
        default_window=4096,
        windowed=from_layer(fields.integer("max_window_layers", 28, low=0)),
    )
    # transformers looks at neither; whether the biases are there is checked at loading.
    for key in ("attention_bias", "qkv_bias"):
        fields.flag(key, True)
    return read_common(fields, "qwen2", Common(kv_heads=32, max_positions=32768), Style(qkv_bias=True), windows)


def tiny() -> dict[str, Any]:
    """A tiny test model: tied embeddings, and a window on the upper layer."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    }
