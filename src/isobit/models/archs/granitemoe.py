"""Granite 3 with experts: factors everywhere, and a softmax over the experts that were chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs.granite import granite_style
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router, StackedNames
from isobit.models.fields import Fields
from isobit.models.hf import ACTIVATIONS, read_common, without_windows
from isobit.models.hf_experts import read_counts, with_experts

PLACE = "block_sparse_moe"
NAMES = ExpertNames(
    router="router.layer", one_by_one=False, gate="w1", up="w3", down="w2",
    stacked=StackedNames("input_linear.weight", "output_linear.weight"),
    also=(
        ("mlp.experts.", f"{PLACE}.experts."), (f"{PLACE}.router.weight", f"{PLACE}.router.layer.weight"),
        (f"{PLACE}.experts.gate_up_proj", f"{PLACE}.input_linear.weight"),
        (f"{PLACE}.experts.down_proj", f"{PLACE}.output_linear.weight"),
    ),
)  # fmt: skip


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GraniteMoeForCausalLM configuration."""
    without_windows(fields)
    mixture = read_mixture(fields)
    style = replace(granite_style(fields), activation="silu", vary=with_experts(mixture, name=PLACE))
    return read_common(fields, "granitemoe", style=style)


def read_mixture(fields: Fields) -> Experts:
    """The experts of every layer."""
    experts, active = read_counts(fields, 8, 2)
    fields.only("hidden_act", ACTIVATIONS["silu"], "activation")
    size = fields.integer("intermediate_size", 11008)
    return Experts(Router(experts, active, "softmax-behind", renormalize=False), GatedMlp(size), names=NAMES)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.22,
        "embedding_multiplier": 12.0,
        "logits_scaling": 3.0,
    }
