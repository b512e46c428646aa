"""GLM-4.7-Flash: a DeepSeek V3 that lists which of its layers have experts."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf_latent import read_sigmoid

KINDS = ("dense", "sparse")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Glm4MoeLiteForCausalLM configuration."""
    listed, layers = fields.raw("mlp_layer_types"), fields.integer("num_hidden_layers")
    if listed is None:
        return read_sigmoid(fields, "glm4_moe_lite", first_dense=1, max_positions=202752)
    if not isinstance(listed, list) or any(kind not in KINDS for kind in listed):
        fields.problem("mlp_layer_types", f"isobit knows {' and '.join(KINDS)}")
        listed = ["dense"]
    dense = next((number for number, kind in enumerate(listed) if kind == "sparse"), len(listed))
    if fields.sound and (len(listed) != layers or "dense" in listed[dense:]):
        fields.problem("mlp_layer_types", f"expected one for each of {layers} layers, the dense ones in front")
    said = fields.integer("first_k_dense_replace", dense, low=0)
    if fields.sound and said != dense:
        fields.problem("first_k_dense_replace", f"mlp_layer_types has {dense} dense layers in front")
    return read_sigmoid(fields, "glm4_moe_lite", first_dense=dense, max_positions=202752)


def tiny() -> dict[str, Any]:
    """A tiny test model: values wider than what of a key is not rotated, halves are rotated, two dense layers."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "dense", "sparse"],
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 48,
        "qk_rope_head_dim": 16,
        "v_head_dim": 64,
        "rope_interleave": False,
        "max_position_embeddings": 256,
    }
