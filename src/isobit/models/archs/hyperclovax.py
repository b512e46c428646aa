"""HyperCLOVA X: a Granite with norms behind attention and MLP, too, whose logits are multiplied and not divided."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a HyperCLOVAXForCausalLM configuration."""
    without_windows(fields)
    bias, after = fields.flag("attention_bias", False), fields.flag("use_post_norm", True)
    scale = fields.raw("attention_multiplier")
    style = Style(
        norms=Norms(after_attention="post_norm1", after_mlp="post_norm2") if after else Norms(),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        activation=None,
        scale=None if scale is None else _factor(fields, "attention_multiplier"),
        residual_factor=_factor(fields, "residual_multiplier"),
        embedding_factor=_factor(fields, "embedding_multiplier"),
        logit_factor=_factor(fields, "logits_scaling"),
    )
    return read_common(fields, "hyperclovax", Common(), style)


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
        "logits_scaling": 0.3,
    }
