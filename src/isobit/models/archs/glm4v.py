"""GLM-4.1V, GLM-4.6V-Flash, AutoGLM: a GLM-4-0414 whose tokens have positions on three axes, given what a tower sees.

Early files have the decoder's keys beside the tower's, later ones in a section; ``models/encoders/glm4v.py`` is the
tower.
"""

from __future__ import annotations

from typing import Any

from isobit.errors import ModelError
from isobit.models.archs import glm4
from isobit.models.config import ModelConfig, SelfAttention
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common
from isobit.models.hf_within import decoder

# What the decoder is where its section does not say it: GLM-4.1V-9B.
USUAL: dict[str, Any] = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
}
TOWER = (
    "vision_config", "image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id",
    "video_start_token_id", "video_end_token_id",
)  # fmt: skip
SECTIONS = (8, 12, 12)  # pairs of dimensions that time, row and column turn, where the file does not say it
COMMON = Common(kv_heads=2, max_positions=32768, eps=1e-5, partial=1.0, interleaved=True, sections=SECTIONS)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads the decoder of a Glm4vForConditionalGeneration or Glm46VForConditionalGeneration configuration."""
    text = decoder(fields, kinds=("glm4v_text",), usual=USUAL, read=TOWER, flat=True, either=True)
    without_windows(text)
    text.only("attention_bias", (True,), "query, key and value without bias")
    _whole_heads(text)
    style = Style(qkv_bias=True, activation=None, joined=("gate_up",), norms=glm4.NORMS)
    return on_three_axes(read_common(text, "glm4v", COMMON, style))


def on_three_axes(model: ModelConfig) -> ModelConfig:
    """The configuration, whose positions are in time, row and column."""
    attention = model.layers[0].attention
    assert isinstance(attention, SelfAttention) and attention.rope is not None
    if len(attention.rope.sections) != len(SECTIONS):
        raise ModelError(
            f"config.json: mrope_section = {list(attention.rope.sections)}: the towers of this family give positions in"
            " time, row and column: three numbers"
        )
    return model


def _whole_heads(text: Fields) -> None:
    """Refuses heads that together are not as wide as the hidden size: transformers has no others in this family."""
    hidden, heads = text.integer("hidden_size"), text.integer("num_attention_heads")
    width = text.raw("head_dim")
    if text.sound and width is not None and width != hidden / heads:
        text.problem("head_dim", f"in this family it is hidden_size / num_attention_heads = {hidden / heads:g}")


def tiny() -> dict[str, Any]:
    """A tiny test model, with a tower that sees in two layers."""
    return {
        "text_config": {
            "model_type": "glm4v_text",
            "vocab_size": 320,
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3],
            },
        },
        "vision_config": tiny_tower() | {"model_type": "glm4v_vision", "out_hidden_size": 128},
        **tiny_ids(),
    }


def tiny_tower() -> dict[str, Any]:
    """A tiny tower."""
    return {
        "depth": 2,
        "hidden_size": 48,
        "num_heads": 2,
        "intermediate_size": 80,
        "image_size": 24,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def tiny_ids() -> dict[str, int]:
    """Ids of the tokens around and for media."""
    return dict(zip(sorted(TOWER[1:]), range(300, 306), strict=True))
