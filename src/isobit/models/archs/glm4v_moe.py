"""GLM-4.5V and GLM-4.6V: a GLM-4.5 whose tokens have positions on three axes, given what a tower sees
(``models/encoders/glm4v.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import glm4_moe, glm4v
from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_within import decoder

# What the decoder is where its section does not say it: GLM-4.5V.
USUAL: dict[str, Any] = {
    "vocab_size": 151424,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
}
COMMON = replace(glm4_moe.COMMON, max_positions=65536, sections=glm4v.SECTIONS)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads the decoder of a Glm4vMoeForConditionalGeneration configuration."""
    text = decoder(fields, kinds=("glm4v_moe_text",), usual=USUAL, read=glm4v.TOWER, either=True)
    without_windows(text)
    text.only("use_qk_norm", (False,), "norm of queries and keys, which transformers leaves out in this family")
    style = Style(qkv_bias=text.flag("attention_bias", True), vary=glm4_moe.read_mixture(text))
    guessing = glm4_moe.read_guessing(text)
    model = read_common(text, "glm4v_moe", COMMON, style)
    return replace(glm4v.on_three_axes(model), predicted_layers=guessing)


def tiny() -> dict[str, Any]:
    """A tiny test model whose heads are wider together than its hidden size, with a tower that sees in two layers."""
    return {
        "text_config": {
            "model_type": "glm4v_moe_text",
            "vocab_size": 320,
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "moe_intermediate_size": 128,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.5,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 6, 6],
            },
        },
        "vision_config": glm4v.tiny_tower() | {"model_type": "glm4v_moe_vision", "out_hidden_size": 128},
        **glm4v.tiny_ids(),
    }
