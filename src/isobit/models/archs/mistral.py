"""Mistral 7B and its successors: a Llama whose layers may all have a sliding window."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a MistralForCausalLM configuration."""
    windows = read_windows(fields, enabled=True, default_window=4096)
    fields.raw("max_window_layers")  # Qwen's; meaningless without use_sliding_window
    if any(windows):
        fields.only("use_sliding_window", (True,), "way to switch windows off; write sliding_window: null")
    notes = mixed_windows(fields, windows)
    return read_common(fields, "mistral", Common(kv_heads=8, max_positions=131072), windows=windows, notes=notes)


def mixed_windows(fields: Fields, windows: tuple[int | None, ...]) -> tuple[str, ...]:
    """What it means that layers differ in a family whose layers are all alike in transformers."""
    if len(set(windows)) > 1 or (fields.raw("layer_types") is not None and not any(windows)):
        return ("windows are as layer_types says; transformers 5 ignores it in this architecture, vLLM does not",)
    return ()


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences."""
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
    }
