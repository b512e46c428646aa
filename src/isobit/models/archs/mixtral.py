"""Mixtral: a Mistral whose MLPs are mixtures of experts, of which a token goes to two."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_experts import read_counts, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(gate="w1", up="w3", down="w2", also=(("mlp.", "block_sparse_moe."),))


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a MixtralForCausalLM configuration."""
    windows = read_windows(fields, enabled="sliding_window" in fields, default_window=1)
    experts, active = read_counts(fields, 8, 2)
    mixture = Experts(Router(experts, active), GatedMlp(fields.integer("intermediate_size", 14336)), names=NAMES)
    style = Style(vary=with_experts(mixture, name="block_sparse_moe"))
    return read_common(fields, "mixtral", Common(kv_heads=8, max_positions=131072), style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
    }
