"""gpt-oss: learned sinks, windows on every other layer, biases everywhere, and experts with a clamped gate."""

from __future__ import annotations

from typing import Any

from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.feed_forward import ExpertNames, Experts, GatedMlp, Router, StackedNames
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, read_head_dim, read_windows, with_attention
from isobit.models.hf_experts import read_counts, with_experts
from isobit.models.hf_rope import ORIGINAL, Common, read_rope
from isobit.models.rotary import Rope

NAMES = ExpertNames(router="router", one_by_one=False, stacked=StackedNames(transposed=True, interleaved=True))
INITIAL = "initial_context_length"
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GptOssForCausalLM configuration."""
    windows = read_windows(fields, enabled=True, default_window=128, windowed=lambda layer: layer % 2 == 0)
    bias = fields.flag("attention_bias", True)
    experts, active = read_counts(fields, 128, 4)
    if fields.sound and fields.raw("experts_per_token") not in (None, active):  # OpenAI's name of the same number
        fields.problem("experts_per_token", f"num_experts_per_tok is {active}, and means the same: correct one of them")
    fields.only("swiglu_alpha", (1.702,), "slope of the gate")
    expert = GatedMlp(
        fields.integer("intermediate_size", 2880), bias=True, limit=fields.number("swiglu_limit", 7.0, high=1e6)
    )
    router = Router(experts, active, "softmax-behind", bias=True, renormalize=False)
    mixed = with_experts(Experts(router, expert, names=NAMES))

    def vary(number: int, layer: LayerSpec) -> LayerSpec:
        return with_attention(mixed(number, layer), sinks=True)

    style = Style(qkv_bias=bias, o_bias=bias, vary=vary)
    common = Common(kv_heads=8, head_dim=64, max_positions=131072, eps=1e-5, theta=150000.0, usual=YARN)
    return read_common(fields, "gpt_oss", common, style, windows, rope=_rope(fields, common))


def _rope(fields: Fields, common: Common) -> Rope:
    """The rotary embedding; OpenAI's name of its original context stands beside it."""
    rope = read_rope(fields, common, read_head_dim(fields, common))
    if fields.sound and rope.original_context and fields.raw(INITIAL) not in (None, rope.original_context):
        fields.problem(INITIAL, f"{ORIGINAL} is {rope.original_context}, and means the same: correct one of them")
    fields.raw(INITIAL)
    return rope


def tiny() -> dict[str, Any]:
    """A tiny test model with a window shorter than the test's sequences, and a limit that is felt."""
    return {
        "vocab_size": 320,
        "hidden_size": 256,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "swiglu_limit": 0.7,
        "max_position_embeddings": 256,
        "rope_parameters": YARN | {"rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    }
