"""Jais 2: LayerNorms and biases everywhere, and an MLP without a gate, which squares what its ReLU leaves."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Jais2ForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", True)
    style = Style(
        norms=Norms(kind="layer", bias=True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", True),
        activation="relu2",
        plain=("up_proj", "down_proj"),
    )
    return read_common(fields, "jais2", Common(max_positions=8192, norm_eps="layer_norm_eps", eps=1e-5), style)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 10,
        "max_position_embeddings": 256,
        "eos_token_id": 1,
    }
