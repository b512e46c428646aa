"""OLMo 3: an OLMo 2 with windows on three layers of four, whose rope is never stretched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import olmo2
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import read_common, read_head_dim, read_windows, with_attention
from isobit.models.hf_rope import Common, read_ropes

THETA = 500000.0


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an Olmo3ForCausalLM configuration."""
    windows = read_windows(fields, enabled=True, default_window=4096, windowed=lambda layer: (layer + 1) % 4 != 0)
    common, style = Common(eps=1e-5, theta=THETA), olmo2.style(fields)
    rope, near = read_ropes(fields, common, read_head_dim(fields, common), ("rope_theta", THETA))
    notes: tuple[str, ...] = ()
    if fields.raw("rope_parameters") is None and near.theta != THETA and any(windows):
        notes = (
            f"rope_theta = {near.theta:g} is of every layer; transformers 5 takes {THETA:g} in those with a window",
        )

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return spec if windows[layer] is None else with_attention(spec, rope=near)

    return read_common(fields, "olmo3", common, replace(style, vary=vary), windows, notes, rope)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences, and yarn in the other layer."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    return olmo2.tiny() | {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": yarn,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
