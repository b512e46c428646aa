"""ERNIE 4.5 (dense): a Llama whose rotary pairs are neighbours, with biases where its key says so."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, own_head_dim, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an Ernie4_5ForCausalLM configuration."""
    without_windows(fields)
    common = Common(
        kv_heads=2,
        head_dim=own_head_dim(fields, 128),
        max_positions=131072,
        tied=True,
        eps=1e-5,
        theta=500000.0,
        interleaved=True,
    )
    return read_common(fields, "ernie4_5", common, style(fields))


def style(fields: Fields) -> Style:
    """What the layers of ERNIE 4.5 are."""
    fields.only("compression_ratio", (1,), "compression of positions")
    fields.only("use_rmsnorm", (True,), "norm")
    bias = fields.flag("use_bias", False)
    return Style(qkv_bias=bias, o_bias=bias, mlp_bias=bias, activation=None)


def tiny() -> dict[str, Any]:
    """A tiny test model with biases."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "use_bias": True,
        "tie_word_embeddings": False,
    }
