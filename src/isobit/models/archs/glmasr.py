"""GLM-ASR: a plain Llama that is given what an encoder hears (``models/encoders/glmasr.py``)."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_within import decoder

# What the decoder is where its section does not say it: GLM-ASR-Nano.
USUAL: dict[str, Any] = {
    "vocab_size": 59264,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}
TOWER = ("audio_config", "audio_token_id", "projector_hidden_act")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads the decoder of a GlmAsrForConditionalGeneration configuration."""
    text = decoder(fields, kinds=("llama",), usual=USUAL, tied=True, read=TOWER)
    without_windows(text)
    bias = text.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, mlp_bias=text.flag("mlp_bias", False))
    return read_common(text, "glmasr", style=style)


def tiny() -> dict[str, Any]:
    """A tiny test model, with an encoder that hears in two layers."""
    return {
        "text_config": {
            "model_type": "llama",
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "audio_config": {
            "model_type": "glmasr_encoder",
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "audio_token_id": 300,
        "tie_word_embeddings": False,
    }
