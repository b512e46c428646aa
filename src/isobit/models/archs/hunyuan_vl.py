"""HunyuanOCR: a Hunyuan whose tokens have positions on several axes, given what a tower sees.

Version 1.0 has the decoder's keys in the file itself, 1.5 in a section; ``models/encoders/hunyuan_vl.py`` is the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, read_head_dim, without_windows
from isobit.models.hf_rope import AXES, Common, read_rope
from isobit.models.hf_within import decoder

FEWEST_AXES = 3  # column, row and number of an image; those in front go along the sequence
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
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "gelu_new", "silu", "relu")
RESIZED = ("bilinear", "bicubic")
MEANT_FOR_OTHERS = ("cla_share_factor", "dense_list", "pool_type", "pad_id", "text_start_id", "text_end_id")


COMMON = Common(eps=1e-5, tied=True, alpha=("dynamic", "xdrope"), sections=(), section_layout="columns")


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
    vision(fields)
    style = Style(qkv_bias=bias, o_bias=bias, qk_norm="head-behind", qk_names=("query_layernorm", "key_layernorm"))
    rope = read_rope(text, COMMON, read_head_dim(text, COMMON))
    if text.sound and rope.axes < FEWEST_AXES:
        text.complain(f"the rope has no {AXES[0]} of {FEWEST_AXES} axes or more: images have no positions without it")
    return read_common(text, "hunyuan_vl", COMMON, style, rope=rope)


@dataclass(frozen=True)
class Vision:
    """What the tower is.

    Attributes:
        hidden, intermediate, layers, heads: of its layers.
        patch: pixels of a side of a patch.
        merged: patches of a side of what becomes one token.
        largest: pixels of a side of the image that its table of positions is made for.
        eps: of its norms.
        activation: of its MLPs, and between its convolutions.
        resized: how the table of positions is brought to an image's size.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patch: int
    merged: int
    largest: int
    eps: float
    activation: str
    resized: str


def vision(fields: Fields) -> Vision:
    """The tower of a configuration; what is wrong with it is remembered in ``fields``."""
    part = fields.section("vision_config") or fields.inner({}, "vision_config")
    part.only("num_channels", (3,), "number of colours")
    part.only("temporal_patch_size", (1,), "patch over time")
    part.only("add_patchemb_bias", (True,), "patches without a bias")
    part.only("hidden_act", ACTIVATIONS, "activation")
    part.only("interpolate_mode", RESIZED, "way to resize positions")
    found = Vision(
        part.integer("hidden_size", 1152),
        part.integer("intermediate_size", 4304),
        part.integer("num_hidden_layers", 27, high=MOST_LAYERS),
        part.integer("num_attention_heads", 16),
        part.integer("patch_size", 16, high=1024),
        part.integer("spatial_merge_size", 2, high=64),
        part.integer("max_image_size", 2048, high=1 << 16),
        part.number("rms_norm_eps", 1e-5, high=1.0),
        str(part.raw("hidden_act") or "gelu"),
        str(part.raw("interpolate_mode") or "bilinear"),
    )
    if fields.sound and found.hidden % found.heads:
        part.problem("hidden_size", f"is not a multiple of num_attention_heads = {found.heads}")
    if fields.sound and found.largest < found.patch:
        part.problem("max_image_size", f"is below patch_size = {found.patch}")
    return found


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
                "factor": 1.0,
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
