"""ERNIE 4.5 with experts: chosen by a softmax that a correction shifts, in a range of layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import glm4_moe
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common, without_windows
from isobit.models.hf_experts import read_counts, read_first, with_experts
from isobit.models.hf_rope import Common

NAMES = ExpertNames(
    correction="moe_statics.e_score_correction_bias",
    correction_rows=True,
    also=(("mlp.gate.moe_statics.", "mlp.moe_statics."),),
)
COMMON = Common(kv_heads=4, max_positions=131072, tied=True, eps=1e-5, theta=5e5, interleaved=True)


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an Ernie4_5_MoeForCausalLM configuration."""
    without_windows(fields)
    experts, active = read_counts(fields, 64, 6)
    router = Router(
        experts, active, correction=True, least_sum=fields.number("moe_norm_min", 1e-12)
    )  # fmt: skip
    bias, size = fields.flag("use_bias", False), fields.integer("moe_intermediate_size", 1536)
    if bias and fields.flag("tie_word_embeddings", COMMON.tied):
        fields.problem("use_bias", "isobit runs no bias of an output projection that is the embedding")
    shared = fields.integer("moe_num_shared_experts", 2, low=0)
    mixture = Experts(
        router, GatedMlp(size), GatedMlp(size * shared, bias=bias) if shared else None, names=NAMES
    )  # fmt: skip
    first, end, every = *_range(fields), fields.integer("moe_layer_interval", 1)
    for key, known in _AS_ALWAYS.items():
        fields.only(key, known, "ERNIE 4.5")
    fields.raw("moe_capacity")  # of training: no token is left out
    guessing = glm4_moe.read_guessing(fields)
    style = Style(
        qkv_bias=bias, o_bias=bias, mlp_bias=bias,
        vary=with_experts(mixture, lambda layer: first <= layer <= end and (layer + 1) % every == 0),
    )  # fmt: skip
    return replace(read_common(fields, "ernie4_5_moe", COMMON, style), head_bias=bias, predicted_layers=guessing)


def _range(fields: Fields) -> tuple[int, int]:
    """The first and the last layer that may have experts."""
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    first = read_first(fields, 1, "moe_layer_start_index")
    last = fields.integer("moe_layer_end_index", -1, low=-1)
    if fields.sound and not -1 <= last < layers:
        fields.problem("moe_layer_end_index", f"there is no such layer: num_hidden_layers = {layers}")
    if fields.sound and last != -1 and last < first - 1:
        fields.problem("moe_layer_end_index", f"is in front of moe_layer_start_index = {first}")
    return first, layers - 1 if last == -1 else last


# What its own code reads, and transformers always has.
_AS_ALWAYS: dict[str, tuple[Any, ...]] = {
    "moe_use_aux_free": (True,),
    "moe_gate": ("topk", "top2_fused"),
    "moe_gate_act": ("softmax",),
    "moe_use_hard_gate": (False,),
    "compression_ratio": (1.0,),
    "use_rmsnorm": (True,),
}


def tiny() -> dict[str, Any]:
    """A tiny test model whose first layer is dense."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "moe_intermediate_size": 128,
        "moe_num_experts": 5,
        "moe_k": 2,
        "max_position_embeddings": 256,
    }
