"""DeepSeek V3 and R1, and Kimi-K2, which is one: latent attention, and experts from some layer on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.config import ModelConfig, Router
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, read_common
from isobit.models.hf_latent import common, read_experts, read_latent, with_experts, with_latent


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a DeepseekV3ForCausalLM configuration."""
    part = read_latent(fields, interleaved=fields.flag("rope_interleave", True))
    fields.only("scoring_func", ("sigmoid",), "router")
    fields.only("topk_method", ("noaux_tc",), "choice of experts")
    router = Router(
        0, 0, "sigmoid", correction=True, group_score="two", renormalize=fields.flag("norm_topk_prob", True)
    )  # fmt: skip
    experts, dense = read_experts(fields, router, 3)
    guessing = fields.integer("num_nextn_predict_layers", 0, low=0, high=MOST_LAYERS)
    model = with_latent(read_common(fields, "deepseek_v3", common(4096)), part)
    return replace(with_experts(model, experts, dense), predicted_layers=guessing)


def tiny() -> dict[str, Any]:
    """A tiny test model: yarn with both of its corrections, a latent of queries, values narrower than keys."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "max_position_embeddings": 256,
        "num_nextn_predict_layers": 0,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        },
    }
