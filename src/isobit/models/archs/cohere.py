"""Cohere's Command R: attention and MLP side by side behind one LayerNorm, and logits that are scaled."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common

NORMS = Norms("input_layernorm", None, None, None, kind="layer")
COMMON = Common(max_positions=8192, tied=True, norm_eps="layer_norm_eps", eps=1e-5, interleaved=True)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a CohereForCausalLM configuration."""
    without_windows(fields)
    return read_common(fields, "cohere", COMMON, style(fields, normed=fields.flag("use_qk_norm", False)))


def style(fields: Fields, *, normed: bool = False) -> Style:
    """What the layers of Command R and its successors are.

    Args:
        fields: the file.
        normed: whether each head of queries and keys has a LayerNorm of its own.
    """
    bias = fields.flag("attention_bias", False)
    return Style(
        norms=NORMS,
        qk_norm="heads" if normed else "none",
        qkv_bias=bias,
        o_bias=bias,
        activation=None,
        parallel=True,
        logit_factor=fields.number("logit_scale", 0.0625, low=1e-6, high=1e6),
    )


def tiny() -> dict[str, Any]:
    """A tiny test model with norms of queries and keys, as Command R+ has them."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "use_qk_norm": True,
        "eos_token_id": 1,
    }
