"""FlexOlmo: an OLMo 2 whose MLPs are mixtures of experts, each trained on its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import olmo2
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import read_common, without_windows
from isobit.models.hf_experts import read_counts, with_experts
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a FlexOlmoForCausalLM configuration."""
    without_windows(fields)
    experts, active = read_counts(fields, 7, 5)
    router = Router(experts, active, renormalize=fields.flag("norm_topk_prob", False))
    mixture = Experts(router, GatedMlp(fields.integer("intermediate_size", 11008)))
    style = replace(olmo2.style(fields), activation="silu", vary=with_experts(mixture))
    return read_common(fields, "flex_olmo", Common(max_positions=4096, theta=5e5), style)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
