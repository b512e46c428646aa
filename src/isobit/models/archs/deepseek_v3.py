"""DeepSeek V3 and R1, and Kimi-K2, which is one: latent attention, and experts from some layer on."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf_latent import read_sigmoid


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a DeepseekV3ForCausalLM configuration."""
    return read_sigmoid(fields, "deepseek_v3", first_dense=3, max_positions=4096)


def tiny() -> dict[str, Any]:
    """A tiny test model: yarn with both of its corrections, values narrower than keys, experts in groups behind one
    dense layer."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 384,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.2,
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
