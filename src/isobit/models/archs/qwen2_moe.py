"""Qwen2-MoE and Qwen1.5-MoE: experts beside one of all tokens, whose result a gate weakens."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_experts import qwen_layers, read_counts, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(shared="shared_expert")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Qwen2MoeForCausalLM configuration."""
    last = fields.integer("max_window_layers", 28, low=0)
    windows = read_windows(
        fields,
        enabled=fields.flag("use_sliding_window", False),
        default_window=4096,
        windowed=lambda layer: layer % 2 == 0 and layer < last,
    )
    experts, active = read_counts(fields, 60, 4)
    router = Router(experts, active, renormalize=fields.flag("norm_topk_prob", False))
    mixture = Experts(
        router,
        GatedMlp(fields.integer("moe_intermediate_size", 1408)),
        GatedMlp(fields.integer("shared_expert_intermediate_size", 5632)),
        shared_gate=True,
        names=NAMES,
    )
    style = Style(qkv_bias=fields.flag("qkv_bias", True), vary=with_experts(mixture, qwen_layers(fields)))
    return read_common(fields, "qwen2_moe", Common(kv_heads=16, max_positions=32768), style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model with experts in every other layer."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 2,
        "max_position_embeddings": 256,
    }
