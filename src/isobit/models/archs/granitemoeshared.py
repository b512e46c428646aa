"""Granite 3 with experts and one that all tokens go to, which stands beside the mixture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from isobit.models.archs import granitemoe
from isobit.models.archs.granite import granite_style
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts, GatedMlp
from isobit.models.fields import Fields
from isobit.models.hf import read_common, without_windows
from isobit.models.hf_experts import with_experts

SHARED = "shared_mlp"


def from_hf(fields: Fields) -> ModelConfig:
    """Reads a GraniteMoeSharedForCausalLM configuration."""
    without_windows(fields)
    fields.only("mlp_bias", (False,), "bias of an MLP")
    mixture, size = granitemoe.read_mixture(fields), fields.integer("shared_intermediate_size", 0, low=0)
    if size:
        mixture = with_shared(mixture, shared_mlp(size))
    style = replace(granite_style(fields), activation="silu", vary=with_experts(mixture, name=granitemoe.PLACE))
    return read_common(fields, "granitemoeshared", style=style)


def shared_mlp(size: int) -> GatedMlp:
    """What all tokens go to, of so many numbers between gate and down."""
    return GatedMlp(size, joined=True, names=("input_linear", "output_linear"))


def with_shared(mixture: Experts, shared: GatedMlp) -> Experts:
    """A mixture with an expert of all tokens beside it."""
    return replace(mixture, shared=shared, names=replace(mixture.names, shared=SHARED, beside=True))


def tiny() -> dict[str, Any]:
    """A tiny test model."""
    return granitemoe.tiny() | {"shared_intermediate_size": 256}
