"""Hunyuan dense: a Llama with norms of query and key heads behind the rotation, and a theta that alpha stretches."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a HunYuanDenseV1ForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    for key in ("use_qk_norm", "use_rotary_pos_emb"):  # what its own code read, and transformers always has
        fields.only(key, (True,), "Hunyuan without it")
    read_unused(fields)
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head-behind", qk_names=("query_layernorm", "key_layernorm"))
    return read_common(fields, "hunyuan_v1_dense", Common(alpha=("dynamic",)), style)


def read_unused(fields: Fields) -> None:
    """Reads what its own code reads, and what has to be as it always is in transformers."""
    fields.only("attention_head_dim", (fields.raw("head_dim"),), "width of a head beside head_dim")
    fields.only("norm_type", ("rms", "rmsnorm"), "norm")
    for key in ("cla_share_factor", "dense_list", "pool_type", "org_vocab_size"):
        fields.raw(key)  # of layers that share keys and values, which use_cla says there are none of; of classifiers
    fields.only("use_cla", (False,), "Hunyuan, whose layers share keys and values")


def tiny() -> dict[str, Any]:
    """A tiny test model with a stretched theta."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0},
    }
