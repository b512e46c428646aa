"""Hunyuan 3: norms of query and key heads, and experts chosen by corrected sigmoids beside a shared one."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_experts import read_counts, read_sparse, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(router="router.gate", correction="expert_bias", shared="shared_mlp")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a HYV3ForCausalLM configuration."""
    without_windows(fields)
    experts, active = read_counts(fields, 192, 8)
    scale = fields.number("router_scaling_factor", 2.826)
    size, shared = fields.integer("moe_intermediate_size", 1536), fields.integer("num_shared_experts", 1)
    fields.flag("enable_moe_fp32_combine", True)  # the shared expert is added in float32 here whatever it says
    router = Router(experts, active, "sigmoid", correction=True, scale=scale)
    mixture = Experts(router, GatedMlp(size), GatedMlp(size * shared), names=NAMES)
    sparse = read_sparse(fields, 1)
    bias = fields.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head", vary=with_experts(mixture, lambda layer: sparse[layer]))
    fields.only("mlp_bias", (False,), "bias of MLPs")
    common = Common(kv_heads=8, head_dim=128, max_positions=131072, eps=1e-5, theta=11158840.0)
    return read_common(fields, "hy_v3", common, style)


def tiny() -> dict[str, Any]:
    """A tiny test model whose first layer is dense."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "max_position_embeddings": 256,
    }
