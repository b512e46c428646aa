"""Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE: LayerNorms, and two experts a token, chosen and weighed by SparseMixer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import ACTIVATIONS, Style, read_common, read_windows
from isobit.models.hf_experts import ACTIVE_KEYS, read_alike, read_counts, with_experts
from isobit.models.hf_rope import Common

PLACE = "block_sparse_moe"
NAMES = ExpertNames(
    gate="w1", up="w3", down="w2", also=(("mlp.router.", f"{PLACE}.gate."), ("mlp.", f"{PLACE}."))
)  # fmt: skip
COMMON = Common(kv_heads=8, max_positions=131072, eps=1e-5, theta=1e6, mscales=True)
ACTIVE = 2


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a PhimoeForCausalLM configuration.

    Sequences longer than longrope's original context have its long factors, as in the model's own code and in vLLM;
    transformers gives them the short ones.
    """
    windows = read_windows(fields, enabled="sliding_window" in fields, default_window=1)
    fields.only("hidden_act", ACTIVATIONS["silu"], "activation")
    for key in ACTIVE_KEYS:
        read_alike(fields, key, ACTIVE)
    experts, active = read_counts(fields, 16, ACTIVE)
    noise = 0.01 if fields.raw("router_jitter_noise") is None else fields.optional("router_jitter_noise") or 0.0
    router = Router(experts, active, "sparsemixer", renormalize=False, tolerance=2 * noise)
    mixture = Experts(router, GatedMlp(fields.integer("intermediate_size", 6400)), names=NAMES)
    bias, head_bias = fields.flag("attention_bias", False), fields.flag("lm_head_bias", False)
    if head_bias:
        fields.only("tie_word_embeddings", (False,), "output projection with a bias, which is the embedding")
    style = Style(
        norms=Norms(kind="layer", bias=True), qkv_bias=bias, o_bias=bias, vary=with_experts(mixture, name=PLACE)
    )
    return replace(read_common(fields, "phimoe", COMMON, style, windows), head_bias=head_bias)


def tiny() -> dict[str, Any]:
    """A tiny test model with biases everywhere."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 5,
        "router_jitter_noise": 0.2,
        "max_position_embeddings": 256,
        "attention_bias": True,
        "lm_head_bias": True,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 256,
            "factor": 1.0,
            "short_factor": [1.0 + pair / 32 for pair in range(32)],
            "long_factor": [1.5 + pair / 4 for pair in range(32)],
            "short_mscale": 1.2,
            "long_mscale": 1.3,
        },
    }
