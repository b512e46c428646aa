"""Hunyuan MoE: a Hunyuan whose MLPs are mixtures of experts beside one of all tokens."""

from __future__ import annotations

from typing import Any

from isobit.models.archs import hunyuan_v1_dense
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, without_windows
from isobit.models.hf_experts import read_alike, read_counts, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(router="gate.wg", shared="shared_mlp")
# Numbers of tokens, by names that say so only to people.
_IDS = (
    "im_start_id im_end_id im_newline_id text_start_id text_end_id video_start_id video_end_id mask_init_id pad_id"
).split()


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a HunYuanMoEV1ForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    for key in ("use_qk_norm", "use_rotary_pos_emb"):  # what its own code read, and transformers always has
        fields.only(key, (True,), "Hunyuan without it")
    hunyuan_v1_dense.read_unused(fields)
    for key in ("num_media_embeds", *_IDS):
        fields.raw(key)
    fields.only("norm_topk_prob", (True,), "Hunyuan whose weights of experts are not divided by their sum")
    fields.only("routed_scaling_factor", (1,), "factor of experts")
    size = fields.integer("intermediate_size", 11008)
    # Its own code read sizes of experts and the number of shared ones; transformers has one shared, all of one size.
    read_alike(fields, "moe_intermediate_size", size)
    read_alike(fields, "num_shared_expert", 1)
    fields.only("use_mixed_mlp_moe", (True,), "Hunyuan without an expert of all tokens")
    fields.only("moe_layer_num_skipped", (0,), "Hunyuan with dense layers")
    experts, active = read_counts(fields, 1, 1, listed=True)
    mixture = Experts(Router(experts, active), GatedMlp(size), GatedMlp(size), names=NAMES)
    style = Style(
        qkv_bias=bias, o_bias=bias, qk_norm="head-behind", qk_names=("query_layernorm", "key_layernorm"),
        vary=with_experts(mixture),
    )  # fmt: skip
    return read_common(fields, "hunyuan_v1_moe", Common(alpha=("dynamic",), eps=1e-5), style)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 5,
        "moe_topk": 2,
        "max_position_embeddings": 256,
    }
