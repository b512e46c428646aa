"""Granite 4 without a recurrent state (micro, 1B, 350M): layers that attend, and one MLP beside experts or alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import granitemoe
from isobit.models.archs.granite import granite_style
from isobit.models.archs.granitemoeshared import SHARED, shared_mlp, with_shared
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf import ACTIVATIONS, MOST_LAYERS, read_common, with_attention
from isobit.models.others import ALL

# Of layers with a state, which there are none of.
STATE = (
    "mamba_n_heads mamba_n_groups mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size"
    " mamba_conv_bias mamba_proj_bias time_step_limit time_step_min time_step_max time_step_floor"
).split()


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GraniteMoeHybridForCausalLM configuration."""
    _refuse_states(fields)
    fields.only("mlp_bias", (False,), "bias of an MLP")
    fields.only("hidden_act", ACTIVATIONS["silu"], "activation")
    fields.only("normalization_function", ("rmsnorm",), "norm")
    rotates = fields.raw("position_embedding_type") == "rope"
    fields.only("position_embedding_type", ("rope", "nope"), "position embedding")
    shared = shared_mlp(fields.integer("shared_intermediate_size", 1024))
    mixture = None
    if fields.raw("num_local_experts") != 0:
        mixture = with_shared(granitemoe.read_mixture(fields), shared)
    fields.raw("num_experts_per_tok")

    def vary(number: int, layer: LayerSpec) -> LayerSpec:
        if not rotates:
            layer = with_attention(layer, rope=None)
        if mixture is None:
            return replace(layer, mlp=shared, mlp_name=SHARED)
        return replace(layer, mlp=mixture, mlp_name=granitemoe.PLACE)

    style = replace(granite_style(fields), activation="silu", vary=vary)
    return read_common(fields, "granitemoehybrid", style=style)


def _refuse_states(fields: Fields) -> None:
    """Refuses layers that do not attend."""
    for key in STATE:
        fields.raw(key)
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    kinds = fields.raw("layer_types") or fields.raw("layers_block_type")
    if not isinstance(kinds, list) or any(kind not in ("attention", "full_attention") for kind in kinds):
        why = (
            "Granite 4 (hybrid) has layers with a recurrent state (Mamba 2), which isobit does not implement; it runs"
            f" the ones whose layer_types are all attention (granite-4.0-micro, -1b, -350m). {ALL}"
        )
        if fields.raw("layer_types") is None:
            fields.complain(why)
        else:
            fields.problem("layer_types", why)
    elif fields.sound and len(kinds) != layers:
        fields.problem("layer_types", f"expected one for each of {layers} layers, found {len(kinds)}")


def tiny() -> dict[str, Any]:
    """A tiny test model, with experts beside the MLP."""
    return granitemoe.tiny() | {
        "layer_types": ["full_attention"] * 2,
        "position_embedding_type": "rope",
        "shared_intermediate_size": 256,
    }
