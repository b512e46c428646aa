"""Gemma 2: norms before and behind attention and MLP, capped scores and logits, windows on every other layer."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_rope import Common

NORMS = Norms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Gemma2ForCausalLM configuration."""
    return read(fields, "gemma2", NORMS)


def read(fields: Fields, family: str, norms: Norms) -> ModelConfig:
    """A Gemma 2, or one that differs in where its layers have norms."""
    windows = read_windows(fields, enabled=True, default_window=4096, windowed=lambda layer: layer % 2 == 0)
    if any(windows):
        fields.only("sliding_window_size", (max(filter(None, windows)),), "window: sliding_window says another")
    fields.only("hidden_act", ("gelu_pytorch_tanh",), "activation (hidden_activation is the one that counts)")
    bias = fields.flag("attention_bias", False)
    style = Style(
        norms=norms,
        norm_offset=1.0,
        qkv_bias=bias,
        o_bias=bias,
        activation="gelu_tanh",
        scale=fields.number("query_pre_attn_scalar", 256.0, low=1e-3, high=1e6) ** -0.5,
        softcap=read_cap(fields, "attn_logit_softcapping", 50.0),
        embedding_factor="root",
        logit_softcap=read_cap(fields, "final_logit_softcapping", 30.0),
    )
    common = Common(kv_heads=4, head_dim=256, max_positions=8192, tied=True, activation="hidden_activation")
    return read_common(fields, family, common, style, windows)


def read_cap(fields: Fields, key: str, default: float | None) -> float | None:
    """A cap; null means none, an absent key the family's own. Zero is no cap: transformers would divide by it."""
    return default if key not in fields else None if fields.raw(key) is None else fields.number(key, None, 1e-3, 1e6)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences, and caps that are felt."""
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
        "query_pre_attn_scalar": 48,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    }
