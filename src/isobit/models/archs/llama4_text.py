"""Llama 4 (text): chunks, layers without rotation whose queries grow, and experts that a token's weight goes into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router, StackedNames
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, read_rotating, with_attention
from isobit.models.hf_experts import read_counts, read_layers, with_experts
from isobit.models.hf_rope import Common
from isobit.models.rotary import QueryScale

NAMES = ExpertNames(router="router", shared="shared_expert", stacked=StackedNames(transposed=True))


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Llama4ForCausalLM configuration."""
    rotating = read_rotating(fields, 4)
    chunk = fields.integer("attention_chunk_size", 8192)
    types = fields.raw("layer_types")
    wanted = ["chunked_attention" if rotates else "full_attention" for rotates in rotating]
    if types is not None and types != wanted and fields.sound:
        fields.problem("layer_types", "isobit knows chunked_attention in layers that rotate, full_attention in others")
    bias, normed = fields.flag("attention_bias", False), fields.flag("use_qk_norm", True)
    grown = QueryScale(fields.integer("floor_scale", 8192), fields.number("attn_scale", 0.1), ahead=1)
    tuned = fields.raw("attn_temperature_tuning")
    fields.only("attn_temperature_tuning", (True, False, 4), "growth of queries")  # published files write 4 for true
    grows = tuned is None or bool(tuned)
    experts, active = read_counts(fields, 16, 1)
    fields.raw("for_llm_compressor")
    size = GatedMlp(fields.integer("intermediate_size", 8192))
    dense = GatedMlp(fields.integer("intermediate_size_mlp", 16384))
    router = Router(experts, active, "sigmoid", renormalize=False, on_input=True)
    mixed = with_experts(Experts(router, size, size, names=NAMES), _sparse(fields), name="feed_forward")

    def vary(number: int, layer: LayerSpec) -> LayerSpec:
        layer = mixed(number, replace(layer, mlp=dense))
        if rotating[number]:
            return with_attention(layer, chunk=chunk, qk_norm="l2" if normed else "none")
        return with_attention(layer, rope=None, query_scale=grown if grows else None)

    common = Common(kv_heads=8, head_dim=128, max_positions=131072, eps=1e-5, theta=5e5, interleaved=True)
    return read_common(fields, "llama4_text", common, Style(qkv_bias=bias, o_bias=bias, vary=vary))


def _sparse(fields: Fields) -> Any:
    """Which layers have experts: those that are listed, or every so many."""
    every = fields.integer("interleave_moe_layer_step", 1, high=MOST_LAYERS)
    listed = read_layers(fields, "moe_layers")
    return (lambda layer: (layer + 1) % every == 0) if listed is None else listed.__contains__


def tiny() -> dict[str, Any]:
    """A tiny test model with experts in every other layer and chunks shorter than the test's sequences."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "intermediate_size_mlp": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 24,
        "floor_scale": 16,
        "max_position_embeddings": 256,
        "pad_token_id": None,
    }
