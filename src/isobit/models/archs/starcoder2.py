"""StarCoder2: LayerNorms with biases, an MLP without a gate, biases everywhere."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a Starcoder2ForCausalLM configuration."""
    fields.only("norm_type", ("layer_norm",), "norm")
    fields.only("mlp_type", ("default",), "MLP")
    windows = read_windows(fields, enabled="sliding_window" in fields, default_window=4096)
    bias = fields.flag("use_bias", True)
    style = Style(
        norms=Norms(kind="layer", bias=True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        activation=None,
        plain=("c_fc", "c_proj"),
    )
    common = Common(kv_heads=2, max_positions=4096, tied=True, norm_eps="norm_epsilon", eps=1e-5)
    return read_common(fields, "starcoder2", common, style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 256,
        "sliding_window": 16,
    }
