"""Cohere's Command R7B and A: a Command R with windows on three layers of four; the fourth has no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import cohere
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, read_common, read_windows, with_attention


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Cohere2ForCausalLM configuration."""
    pattern = fields.integer("sliding_window_pattern", 4, high=MOST_LAYERS)
    windows = read_windows(fields, enabled=True, default_window=4096, windowed=lambda layer: (layer + 1) % pattern != 0)
    _as_trained(fields, pattern)

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return spec if windows[layer] is not None else with_attention(spec, rope=None)

    return read_common(fields, "cohere2", cohere.COMMON, replace(cohere.style(fields), vary=vary), windows)


def _as_trained(fields: Fields, pattern: int) -> None:
    """Keys of Cohere's own code, which say what every such model is."""
    fields.only("layer_switch", (pattern,), "order of layers")
    fields.only("order_of_interleaved_layers", ("local_attn_first",), "order of layers")
    fields.only("position_embedding_type", ("rope_gptj", "rope"), "position embedding")
    for key in ("use_embedding_sharing", "use_gated_activation", "use_parallel_block"):
        fields.only(key, (True,), "Command R without it")
    fields.flag("use_parallel_embedding", True)  # how it is spread over cards
    fields.only("use_qk_norm", (False,), "norm of queries and keys")


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences."""
    return {key: value for key, value in cohere.tiny().items() if key != "use_qk_norm"} | {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
