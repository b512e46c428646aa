"""SmolLM3: a Llama, every fourth layer of which has no rotary embedding."""

from __future__ import annotations

from typing import Any

from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_rotating, read_windows, with_attention
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a SmolLM3ForCausalLM configuration."""
    rotating = read_rotating(fields, 4)
    windows = read_windows(
        fields,
        enabled=fields.flag("use_sliding_window", False) and fields.raw("sliding_window") is not None,
        default_window=0,
        windowed=lambda layer: not rotating[layer],
    )
    fields.raw("max_window_layers")  # Qwen's; windows are where there is no rotary embedding
    bias = fields.flag("attention_bias", False)

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return spec if rotating[layer] else with_attention(spec, rope=None)

    common = Common(kv_heads=4, max_positions=32768, tied=True, theta=2e6)
    style = Style(qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias", False), vary=vary)
    return read_common(fields, "smollm3", common, style, windows)


def tiny() -> dict[str, Any]:
    """A tiny test model whose second layer does not rotate."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "no_rope_layer_interval": 2,
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
