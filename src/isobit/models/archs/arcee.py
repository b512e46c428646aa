"""Arcee's AFM: a Llama whose MLP has no gate, and squares what its ReLU leaves."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an ArceeForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    style = Style(
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        activation="relu2",
        plain=("up_proj", "down_proj"),
    )
    return read_common(fields, "arcee", Common(max_positions=4096, eps=1e-5), style)


def tiny() -> dict[str, Any]:
    """A tiny test model with yarn, as AFM-4.5B has it."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
