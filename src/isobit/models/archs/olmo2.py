"""OLMo 2: norms behind attention and MLP alone, and over all heads of queries and of keys together."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common

NORMS = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an Olmo2ForCausalLM configuration."""
    without_windows(fields)
    return read_common(fields, "olmo2", Common(eps=1e-5), style(fields))


def style(fields: Fields) -> Style:
    """What the layers of OLMo 2 and 3 are."""
    bias = fields.flag("attention_bias", False)
    return Style(norms=NORMS, qk_norm="width", qkv_bias=bias, o_bias=bias, activation=None)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
