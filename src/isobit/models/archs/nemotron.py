"""Nemotron 3 and 4, Minitron: LayerNorms around zero, an MLP without a gate that squares, half of each head rotated."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a NemotronForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    style = Style(
        norms=Norms(kind="layer", bias=True),
        norm_offset=1.0,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        activation="relu2",
        plain=("up_proj", "down_proj"),
    )
    common = Common(max_positions=4096, norm_eps="norm_eps", eps=1e-5, partial=0.5)
    return read_common(fields, "nemotron", common, style)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
