"""HunyuanOCR: a Hunyuan whose tokens have positions on several axes, given what a tower sees.

Version 1.0 has the decoder's keys in the file itself, 1.5 in a section; ``models/encoders/hunyuan_vl.py`` is the tower.
"""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_rope import Common
from isobit.models.hf_within import decoder

SECTION_KEYS = ("mrope_section", "xdrope_section")
TOWER = (
    "vision_config", "im_start_id", "im_end_id", "im_newline_id", "image_token_id", "image_start_token_id",
    "image_end_token_id", "image_newline_token_id",
)  # fmt: skip
ALIASES = {"attention_head_dim": "head_dim", "org_vocab_size": "vocab_size"}
# What Hunyuan's own code read, and transformers does not: the values that it always has.
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_qk_norm": ((True,), "Hunyuan without it"),
    "use_rotary_pos_emb": ((True,), "Hunyuan without it"),
    "use_cla": ((False,), "Hunyuan, whose layers share keys and values"),
    "norm_type": (("rms", "rmsnorm"), "norm"),
    "mlp_bias": ((False,), "bias of an MLP"),
    "num_experts": ((1,), "mixture of experts"),
    "routed_scaling_factor": ((1,), "mixture of experts"),
}
MEANT_FOR_OTHERS = ("cla_share_factor", "dense_list", "pool_type", "pad_id", "text_start_id", "text_end_id")


COMMON = Common(eps=1e-5, tied=True, alpha=("dynamic", "xdrope"), rope_keys=SECTION_KEYS)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads the decoder of a HunYuanVLForConditionalGeneration configuration."""
    text = decoder(
        fields, kinds=("hunyuan_vl_text",), tied=True, read=TOWER, flat=True, either=True, aliases=ALIASES,
        left=(*ONLY, *MEANT_FOR_OTHERS),
    )  # fmt: skip
    without_windows(text)
    bias = text.flag("attention_bias", False)
    for key, (values, what) in ONLY.items():
        text.only(key, values, what)
    for key in MEANT_FOR_OTHERS:
        text.raw(key)
    for alias, key in ALIASES.items():
        text.only(alias, (text.raw(key),), f"value beside {key}")
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head-behind", qk_names=("query_layernorm", "key_layernorm"))
    return read_common(text, "hunyuan_vl", COMMON, style)


def tiny() -> dict[str, Any]:
    """A tiny test model with a stretched theta, and a tower that sees in two layers."""
    return {
        "text_config": {
            "model_type": "hunyuan_vl_text",
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 50.0,
                "mrope_section": [4, 4, 4, 4],
            },
        },
        "vision_config": {
            "model_type": "hunyuan_vl_vision",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "max_image_size": 64,
            "text_hidden_size": 64,
        },
        "image_token_id": 303,
        "im_start_id": 301,
        "im_end_id": 302,
        "im_newline_id": 304,
    }
