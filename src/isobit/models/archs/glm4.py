"""GLM-4-0414 and Z1: a GLM-4-9B with norms behind attention and MLP, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import glm
from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import read_common

NORMS = Norms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Glm4ForCausalLM configuration."""
    return read_common(fields, "glm4", glm.common(fields), replace(glm.style(fields), norms=NORMS))


def tiny() -> dict[str, Any]:
    """A tiny test model whose heads are rotated by a quarter."""
    return glm.tiny() | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}
