"""Ministral 3: a Llama with yarn whose queries grow with their positions, and a window in all layers or in none."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from isobit.models.archs.mistral import mixed_windows
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows, with_attention
from isobit.models.hf_rope import ORIGINAL, SECTIONS, Common, positions
from isobit.models.rotary import QueryScale

BETA = "llama_4_scaling_beta"
# What transformers takes where the file has no rope at all.
USUAL = MappingProxyType({
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, ORIGINAL: 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
    BETA: 0.1,
})  # fmt: skip
COMMON = Common(
    kv_heads=8, head_dim=128, max_positions=262144, usual=USUAL, rope_keys=(BETA, "max_position_embeddings")
)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Ministral3ForCausalLM configuration."""
    windows = read_windows(fields, enabled=fields.raw("sliding_window") is not None, default_window=0)
    grow = _query_scale(fields)

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return with_attention(spec, query_scale=grow)

    return read_common(fields, "ministral3", COMMON, Style(vary=vary), windows, mixed_windows(fields, windows))


def _query_scale(fields: Fields) -> QueryScale:
    """How queries grow: by a number of the rope section, in steps of the original context."""
    found = set()
    for section in filter(None, map(fields.section, SECTIONS)):
        context = positions(fields, COMMON)
        if fields.sound:
            section.only("max_position_embeddings", (context,), "context beside the file's own")
        floor = section.integer(ORIGINAL, fields.integer(ORIGINAL, context))
        found.add(QueryScale(floor, section.number(BETA, None, high=100.0)))
    if len(found) > 1 and fields.sound:
        fields.complain(f"{' and '.join(SECTIONS)} disagree about {BETA} or {ORIGINAL}: correct one of them")
    return found.pop() if found else QueryScale(16384, 0.1)  # as in USUAL


def tiny() -> dict[str, Any]:
    """A tiny test model whose queries grow within the test's sequences."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "sliding_window": 24,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    }
