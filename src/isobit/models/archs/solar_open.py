"""Solar Open: a Llama's attention, and GLM-4.5's experts in every layer."""

from __future__ import annotations

from typing import Any

from isobit.models.archs.glm4_moe import router_of
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_experts import with_experts
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a SolarOpenForCausalLM configuration."""
    # Every layer has experts: the width of a dense MLP, which all families have to say, is of none.
    fields = fields.inner({"intermediate_size": fields.integer("moe_intermediate_size", 1280)} | {**fields.whole})
    without_windows(fields)
    # What its own code read, and transformers has as it is here.
    fields.only("use_qk_norm", (False,), "norm of queries and keys")
    fields.only("first_k_dense_replace", (0,), "Solar Open with dense layers")
    router, size = router_of(fields), fields.integer("moe_intermediate_size", 1280)
    mixture = Experts(router, GatedMlp(size), GatedMlp(size * fields.integer("n_shared_experts", 1)))
    style = Style(qkv_bias=fields.flag("attention_bias", False), vary=with_experts(mixture))
    common = Common(kv_heads=8, head_dim=128, max_positions=131072, eps=1e-5, theta=1e6, partial=1.0)
    return read_common(fields, "solar_open", common, style)


def tiny() -> dict[str, Any]:
    """A tiny test model whose heads are wider together than its hidden size."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5,
        "max_position_embeddings": 256,
    }
