"""K-EXAONE: an EXAONE 4 with norms in front of attention and MLP, and DeepSeek V3's experts behind dense layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import exaone4
from isobit.models.archs.glm4_moe import read_guessing, router_of
from isobit.models.config import LayerSpec, ModelConfig, Norms
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp
from isobit.models.fields import Fields
from isobit.models.hf import read_common
from isobit.models.hf_experts import read_sparse, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(correction="e_score_correction_bias")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an ExaoneMoeForCausalLM configuration."""
    windows, style = exaone4.read_style(fields)
    fields.only("scoring_func", ("sigmoid",), "router")
    fields.only("topk_method", ("noaux_tc",), "choice of experts")
    router, size = router_of(fields, 64, 8, 2.5), fields.integer("moe_intermediate_size", 1024)
    shared = GatedMlp(size * fields.integer("num_shared_experts", 1))
    sparse, vary = read_sparse(fields, 1), style.vary
    if fields.sound:  # what mlp_layer_types was before it had a name
        fields.only("is_moe_layer", ([*sparse],), "order of layers beside mlp_layer_types")
    mixed = with_experts(Experts(router, GatedMlp(size), shared, names=NAMES), lambda layer: sparse[layer])

    def both(layer: int, spec: LayerSpec) -> LayerSpec:
        return mixed(layer, vary(layer, spec))

    guessing = read_guessing(fields)
    style = replace(style, norms=Norms(), vary=both)
    model = read_common(fields, "exaone_moe", Common(kv_heads=32, eps=1e-5), style, windows)
    return replace(model, predicted_layers=guessing)


def tiny() -> dict[str, Any]:
    """A tiny test model whose first layer is dense, and whose last has no window and does not rotate."""
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
        "n_group": 2,
        "topk_group": 1,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 256,
    }
