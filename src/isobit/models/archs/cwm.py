"""CWM (code world model): a Llama with windows on three layers of four."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, own_head_dim, read_common, read_windows
from isobit.models.hf_rope import Common

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a CwmForCausalLM configuration."""
    windows = read_windows(fields, enabled=True, default_window=8192, windowed=lambda layer: layer % 4 != 0)
    common = Common(
        kv_heads=8, head_dim=own_head_dim(fields, 128), max_positions=131072, eps=1e-5, theta=1e6, usual=ROPE
    )
    style = Style(mlp_bias=fields.flag("mlp_bias", False), activation=None)
    return read_common(fields, "cwm", common, style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences."""
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
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
