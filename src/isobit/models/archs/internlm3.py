"""InternLM3: a Llama whose keys of biases have names of their own."""

from __future__ import annotations

from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import Style, own_head_dim, read_common, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads an InternLM3ForCausalLM configuration."""
    without_windows(fields)
    bias, others = (_flag(fields, *keys) for keys in (("qkv_bias", "attention_bias"), ("bias", "mlp_bias")))
    if fields.sound and bias != others:
        fields.complain(
            f"qkv_bias = {bias} and bias = {others}: in this family isobit runs both or neither, as transformers does"
        )
    style = Style(qkv_bias=bias, o_bias=bias, mlp_bias=others, activation=None)
    common = Common(kv_heads=2, head_dim=own_head_dim(fields, 128), max_positions=32768, eps=1e-5)
    return read_common(fields, "internlm3", common, style)


def _flag(fields: Fields, own: str, llamas: str) -> bool:
    """A flag that its own code calls otherwise than transformers."""
    first, second = fields.flag(own, False), fields.flag(llamas, False)
    if fields.sound and first != second and None not in (fields.raw(own), fields.raw(llamas)):
        fields.problem(own, f"{llamas} = {second} means the same: correct one of them")
    return first or second
