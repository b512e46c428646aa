"""Seed-OSS: a Llama with biases on query, key and value, and on the output projection where its key says so."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, own_head_dim, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a SeedOssForCausalLM configuration."""
    without_windows(fields)
    style = Style(
        qkv_bias=fields.flag("attention_bias", True),
        o_bias=fields.flag("attention_out_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        activation=None,
    )
    common = Common(kv_heads=8, head_dim=own_head_dim(fields, 128), max_positions=524288)
    return read_common(fields, "seed_oss", common, style)


def tiny() -> dict[str, Any]:
    """A tiny test model whose output projection has a bias, too."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 256,
        "attention_out_bias": True,
        "mlp_bias": True,
    }
