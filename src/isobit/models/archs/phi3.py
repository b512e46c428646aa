"""Phi-3, Phi-3.5 and Phi-4: a Llama stored with query, key and value, and gate and up, as one matrix each."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Phi3ForCausalLM configuration."""
    windows = read_windows(fields, enabled="sliding_window" in fields, default_window=4096)
    fields.only("full_attn_mod", (1,), "mixture of kinds of attention")
    fields.only("interpolate_factor", (1,), "factor")
    style = Style(activation=None, joined=("qkv", "gate_up"))
    common = Common(
        max_positions=4096,
        eps=1e-5,
        partial=1.0,
        rope_names=(("su", "longrope"), ("yarn", "longrope")),  # what Microsoft called it before it had a name
        original=4096,
    )
    return read_common(fields, "phi3", common, style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window, and an original context, shorter than the test's sequences."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "sliding_window": 16,
        "pad_token_id": 0,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0 + pair / 24 for pair in range(24)],
            "long_factor": [1.5 + pair / 4 for pair in range(24)],
        },
    }
