"""Granite 3 (dense): a Llama whose embeddings, scores, residuals and logits are multiplied by numbers of its own."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GraniteForCausalLM configuration."""
    without_windows(fields)
    return read_common(fields, "granite", style=granite_style(fields))


def granite_style(fields: Fields) -> Style:
    """What the layers of every Granite have."""
    bias = fields.flag("attention_bias", False)
    return Style(
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        activation=None,
        scale=_factor(fields, "attention_multiplier"),
        residual_factor=_factor(fields, "residual_multiplier"),
        embedding_factor=_factor(fields, "embedding_multiplier"),
        logit_factor=1 / _factor(fields, "logits_scaling"),
    )


def _factor(fields: Fields, key: str) -> float:
    return fields.number(key, 1.0, low=1e-6, high=1e6)


def tiny() -> dict[str, Any]:
    """A tiny test model with all four factors."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "logits_scaling": 3.0,
    }
