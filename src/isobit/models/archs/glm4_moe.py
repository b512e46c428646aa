"""GLM-4.5, 4.6 and 4.7: experts chosen by sigmoids that a correction shifts, beside one of all tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from isobit.models.config import LayerSpec, ModelConfig, QkNorm
from isobit.models.feed_forward import Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, without_windows
from isobit.models.hf_experts import read_counts, read_first, read_groups, with_experts
from isobit.models.hf_rope import Common

COMMON = Common(kv_heads=8, max_positions=131072, eps=1e-5, partial=0.5)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Glm4MoeForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    qk_norm: QkNorm = "head" if fields.flag("use_qk_norm", False) else "none"
    style = Style(qkv_bias=bias, qk_norm=qk_norm, vary=read_mixture(fields))
    guessing = read_guessing(fields)
    return replace(read_common(fields, "glm4_moe", COMMON, style), predicted_layers=guessing)


def read_mixture(fields: Fields) -> Callable[[int, LayerSpec], LayerSpec]:
    """The experts, in all layers but the first ones: for ``Style.vary``."""
    router = router_of(fields)
    size = fields.integer("moe_intermediate_size", 1408)
    mixture = Experts(router, GatedMlp(size), GatedMlp(size * fields.integer("n_shared_experts", 1)))
    dense = read_first(fields, 1)
    return with_experts(mixture, lambda layer: layer >= dense)


def router_of(fields: Fields, experts: int = 128, active: int = 8, scale: float = 1.0) -> Router:
    """Corrected sigmoids, and groups of experts.

    Args:
        fields: the file.
        experts, active, scale: what absent keys mean.
    """
    experts, active = read_counts(fields, experts, active)
    groups, active_groups = read_groups(fields, experts, active)
    return Router(
        experts,
        active,
        "sigmoid",
        correction=True,
        groups=groups,
        active_groups=active_groups,
        group_score="two",
        renormalize=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", scale),
    )


def read_guessing(fields: Fields) -> int:
    """Layers that checkpoints have behind the last one, to guess further tokens."""
    keys = ("num_nextn_predict_layers", "num_mtp_layers")
    return max(fields.integer(key, 0, low=0, high=MOST_LAYERS) for key in keys)


def tiny() -> dict[str, Any]:
    """A tiny test model with two groups of experts, of which one takes part."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "attention_bias": True,
        "use_qk_norm": True,
        "moe_intermediate_size": 128,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.5,
        "max_position_embeddings": 256,
    }
