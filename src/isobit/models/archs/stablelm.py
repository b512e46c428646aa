"""StableLM 2 and 3B: a Llama with LayerNorms, a quarter of each head rotated, in some models side by side."""

from __future__ import annotations

from typing import Any

from isobit.models.config import ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, require_shared_width, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a StableLmForCausalLM configuration."""
    without_windows(fields)
    fields.only("qk_layernorm", (False,), "norm of queries and keys (StableLM 2 12B)")
    parallel = fields.flag("use_parallel_residual", False)
    second = None if parallel else "post_attention_layernorm"
    style = Style(
        norms=Norms(before_mlp=second, kind="layer", bias=True),
        qkv_bias=fields.flag("use_qkv_bias", False),
        activation=None,
        parallel=parallel,
    )
    common = Common(kv_heads=32, max_positions=4096, norm_eps="layer_norm_eps", eps=1e-5, partial=0.25)
    return read_common(fields, "stablelm", require_shared_width(fields, common), style)


def tiny() -> dict[str, Any]:
    """A tiny test model with attention and MLP side by side."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 640,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "use_qkv_bias": True,
        "use_parallel_residual": True,
    }
