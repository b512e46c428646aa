"""DeepSeek V2 and V2-Lite: latent attention, and experts chosen by a softmax from some layer on."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Router
from isobit.models.fields import Fields
from isobit.models.hf import Style
from isobit.models.hf_latent import read_experts, read_latent, read_with_latent
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a DeepseekV2ForCausalLM configuration."""
    part = read_latent(fields, interleaved=True)
    fields.only("scoring_func", ("softmax",), "router")
    fields.only("topk_method", ("greedy", "group_limited_greedy"), "choice of experts")
    fields.only("norm_topk_prob", (False,), "router: transformers leaves the weights as they are")
    grouped = fields.raw("topk_method") == "group_limited_greedy"
    fields.only("mlp_bias", (False,), "bias of MLPs")
    style = Style(vary=read_experts(fields, Router(0, 0, renormalize=False), 0, grouped=grouped))
    return read_with_latent(fields, "deepseek_v2", Common(), style, part)


def tiny() -> dict[str, Any]:
    """A tiny test model in the manner of V2-Lite: queries are made of the residual stream."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 64,
        "n_routed_experts": 6,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "topk_method": "group_limited_greedy",
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 1.3,
        "moe_intermediate_size": 128,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    }
