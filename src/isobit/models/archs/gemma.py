"""Gemma 1 and CodeGemma: norms whose weights lie around zero, GELU, scaled embeddings."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import ACTIVATIONS, Style, read_common
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GemmaForCausalLM configuration."""
    tanh = ACTIVATIONS["gelu_tanh"]
    fields.only("hidden_act", (*tanh, "gelu"), "activation")
    notes: tuple[str, ...] = ()
    if fields.raw("hidden_act") == "gelu" and fields.raw("hidden_activation") is None:
        notes = ("hidden_act says gelu and means its tanh approximation, which Gemma was trained with",)
    bias = fields.flag("attention_bias", False)
    style = Style(norm_offset=1.0, qkv_bias=bias, o_bias=bias, activation="gelu_tanh", embedding_factor="root")
    common = Common(kv_heads=16, head_dim=256, max_positions=8192, tied=True, activation="hidden_activation")
    return read_common(fields, "gemma", common, style, notes=notes)


def tiny() -> dict[str, Any]:
    """A tiny test model, with the old name of its activation."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "hidden_act": "gelu",
    }
