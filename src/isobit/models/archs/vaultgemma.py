"""VaultGemma: a Gemma 2 without norms behind attention and MLP."""

from __future__ import annotations

from typing import Any

from isobit.models.archs import gemma2
from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a VaultGemmaForCausalLM configuration."""
    return gemma2.read(fields, "vaultgemma", Norms("input_layernorm", None, "pre_feedforward_layernorm", None))


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences, and caps that are felt."""
    return gemma2.tiny()
