"""IQuest-Coder V1: a Llama with heads of 128 dimensions."""

from __future__ import annotations

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, own_head_dim, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an IQuestCoderForCausalLM configuration."""
    without_windows(fields)
    bias = fields.flag("attention_bias", False)
    style = Style(qkv_bias=bias, o_bias=bias, mlp_bias=fields.flag("mlp_bias", False), activation=None)
    common = Common(kv_heads=8, head_dim=own_head_dim(fields, 128), max_positions=131072, eps=1e-5)
    return read_common(fields, "iquestcoder", common, style)
