"""Llama 2 and 3.x, and everything that is one: DeepSeek-LLM, Yi, Vicuna, ..."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a LlamaForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias", False))
    return read_common(fields, "llama", style=style)


def tiny() -> dict[str, Any]:
    """A tiny test model in the manner of Llama 3.1: grouped heads, llama3 rope, biases on."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }
