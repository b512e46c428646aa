"""EXAONE 4: norms behind attention and MLP alone, and no rotary embedding in layers that attend to everything."""

from __future__ import annotations

from typing import Any

from isobit.models.config import LayerSpec, ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, read_windows, with_attention
from isobit.models.hf_rope import Common

NORMS = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an Exaone4ForCausalLM configuration."""
    windows, style = read_style(fields)
    return read_common(fields, "exaone4", Common(kv_heads=32), style, windows)


def read_style(fields: Fields) -> tuple[tuple[int | None, ...], Style]:
    """The windows of layers, and what layers are: those without a window do not rotate where others have one."""
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    near = _pattern(fields, layers)
    windows = read_windows(fields, enabled=True, default_window=4096, windowed=lambda layer: near[layer])
    whole = "sliding_window" in fields and fields.raw("sliding_window") is None

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return spec if whole or windows[layer] is not None else with_attention(spec, rope=None)

    return windows, Style(norms=NORMS, qk_norm="head", vary=vary)


def _pattern(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers have a window where there is no ``layer_types``: all but every n-th, or as a word like LLLG says."""
    pattern = fields.raw("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return tuple(pattern[layer % len(pattern)] == "L" and layer != layers - 1 for layer in range(layers))
    if pattern is None or pattern == 0:
        step = 4 if "sliding_window_pattern" not in fields else 1
    elif isinstance(pattern, str):
        fields.problem("sliding_window_pattern", "expected a number, or a word of L (a window) and G (none)")
        step = 1
    else:
        step = fields.integer("sliding_window_pattern", high=MOST_LAYERS)
    return tuple((layer + 1) % step != 0 for layer in range(layers))


def tiny() -> dict[str, Any]:
    """A tiny test model with a layer of each kind."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
