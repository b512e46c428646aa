"""MiniMax-M2: norms over the whole width of queries and keys, and experts chosen by corrected sigmoids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, without_windows
from isobit.models.hf_experts import read_counts, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(
    correction="e_score_correction_bias", gate="w1", up="w3", down="w2", also=(("mlp.", "block_sparse_moe."),)
)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a MiniMaxM2ForCausalLM configuration."""
    without_windows(fields)
    experts, active = read_counts(fields, 256, 8)
    for key, known in _AS_ALWAYS.items():
        fields.only(key, known, "MiniMax-M2")
    mixture = Experts(
        Router(experts, active, "sigmoid", correction=True),
        GatedMlp(fields.integer("intermediate_size", 1536)),
        names=NAMES,
    )
    style = Style(qk_norm="width", vary=with_experts(mixture, name="block_sparse_moe"))
    common = Common(kv_heads=8, head_dim=128, max_positions=196608, theta=5e6, partial=1.0, dims_key="rotary_dim")
    guessing = fields.integer("num_mtp_modules", 0, low=0, high=MOST_LAYERS)
    for key in ("mtp_transformer_layers", "use_mtp", "mlp_intermediate_size", "shared_moe_mode"):
        fields.raw(key)  # of what is left out, and of an MLP and an expert of all tokens that there are none of
    kinds = fields.raw("attn_type_list")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != 1 for kind in kinds)):
        fields.problem("attn_type_list", "isobit knows 1, attention to all tokens, in every layer")
    return replace(read_common(fields, "minimax_m2", common, style), predicted_layers=guessing)


# What its own code reads, and transformers always has.
_AS_ALWAYS: dict[str, tuple[Any, ...]] = {
    "use_qk_norm": (True,),
    "qk_norm_type": ("per_layer",),
    "use_routing_bias": (True,),
    "scoring_func": ("sigmoid",),
    "shared_intermediate_size": (0,),
    "use_grouped_topk": (True,),
    "layernorm_full_attention_beta": (1,),
    "layernorm_linear_attention_beta": (1,),
    "layernorm_mlp_beta": (1,),
}


def tiny() -> dict[str, Any]:
    """A tiny test model that rotates half of a head."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rotary_dim": 32,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
    }
