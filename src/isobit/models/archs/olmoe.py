"""OLMoE: norms over the whole width of queries and keys, and mixtures of experts."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, require_shared_width, without_windows
from isobit.models.hf_experts import read_counts, with_experts
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an OlmoeForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    experts, active = read_counts(fields, 64, 8)
    router = Router(experts, active, renormalize=fields.flag("norm_topk_prob", False))
    mixture = Experts(router, GatedMlp(fields.integer("intermediate_size", 2048)))
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="width", vary=with_experts(mixture))
    common = require_shared_width(fields, Common(max_positions=4096, eps=1e-5))
    return read_common(fields, "olmoe", common, style)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
    }
