"""Youtu-LLM: latent attention as of DeepSeek V3, and no experts."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style
from isobit.models.hf_latent import read_latent, read_with_latent
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a YoutuForCausalLM configuration."""
    part = read_latent(fields, interleaved=fields.flag("rope_interleave", True))
    return read_with_latent(fields, "youtu", Common(max_positions=131072, tied=True), Style(), part)


def tiny() -> dict[str, Any]:
    """A tiny test model whose values are narrower than what of a key is not rotated."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 48,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
