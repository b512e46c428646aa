"""Experts that a checkpoint has in one tensor of a layer: one by one where they are quantized, else as stored."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.checkpoint.safetensors import TensorInfo
from isobit.formats.rules import Policy
from isobit.formats.schemes import Scheme
from isobit.models.config import ModelConfig
from isobit.models.contents import Contents
from isobit.models.feed_forward import Experts
from isobit.quantizer.jobs import scheme_of


def about(model: ModelConfig, assigned: Mapping[str, Scheme | None]) -> list[str]:
    """What transformers makes of experts that are written one by one, where it reads them together alone."""
    names = {layer.mlp.names for layer in model.layers if isinstance(layer.mlp, Experts)}
    inside = tuple(f".{one.experts}." for one in names if not one.one_by_one)
    written = [module for module, row in assigned.items() if row is not None and row.weights is not None]
    if not any(part in module for module in written for part in inside):
        return []
    return [
        "experts are written one by one; transformers 5.23 reads those of this family from one tensor of a layer alone,"
        " and fills the experts of this checkpoint with random numbers: it is for isobit"
    ]


def as_stored(found: Contents, tensors: list[TensorInfo], policy: Policy) -> list[TensorInfo]:
    """The tensors, with those of all experts together where none of their experts is quantized: these stay so."""
    whole: dict[str, TensorInfo] = {}
    for stored, parts in found.stacks.items():
        if any(name not in found.ck.tensors for name in parts):
            continue  # quantized, and taken as the numbers of its experts
        # A weight without a scheme of its own is kept or cast, whoever it belongs to.
        schemes = [scheme_of(found.ck.info(name), "linear", policy) for name in parts]
        if all(one is schemes[0] and (one is None or one.weights is None) for one in schemes):
            whole |= dict.fromkeys(parts, found.ck.info(stored))
    return [*dict.fromkeys(whole.get(info.name, info) for info in tensors)]
