"""Phi-1, Phi-1.5 and Phi-2: attention and MLP side by side behind one LayerNorm, biases everywhere, a head with one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.config import LayerSpec, ModelConfig, Norms
from isobit.models.fields import Fields
from isobit.models.hf import Style, read_common, with_attention, without_windows
from isobit.models.hf_rope import Common


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a PhiForCausalLM configuration."""
    without_windows(fields)
    fields.only("qk_layernorm", (False,), "norm of queries and keys")
    # transformers ties the matrix and leaves the bias, which no published model has asked for.
    fields.only("tie_word_embeddings", (False,), "output projection with a bias, which is the embedding")

    def vary(layer: int, spec: LayerSpec) -> LayerSpec:
        return with_attention(spec, o_name="dense")

    style = Style(
        norms=Norms(before_mlp=None, kind="layer", bias=True),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        activation=None if fields.raw("hidden_act") is not None else "gelu_tanh",
        plain=("fc1", "fc2"),
        parallel=True,
        vary=vary,
    )
    common = Common(norm_eps="layer_norm_eps", eps=1e-5, partial=0.5)
    model = read_common(fields, "phi", common, style)
    return replace(model, norm_name="model.final_layernorm", head_bias=True)


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return {
        "vocab_size": 320,
        "hidden_size": 640,
        "intermediate_size": 1280,
        "num_hidden_layers": 2,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
