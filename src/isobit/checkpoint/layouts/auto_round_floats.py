"""AutoRound's 4- and 8-bit floats: a section of its own, beside tensors as compressed-tensors has them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.integers import whole_number
from isobit.checkpoint.quantization import Group
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import Unsupported
from isobit.formats.schemes import scheme

PACKINGS = ("auto_round:llm_compressor", "llm_compressor")
# What data_type begins with, and bits -> a scheme of isobit's.
_SCHEMES = {("mx_fp", 4): "mxfp4", ("mx_fp", 8): "mxfp8", ("nv_fp", 4): "nvfp4"}
_PLAIN = 16  # bits of what is not rounded


def group(section: Mapping[str, Any], targets: tuple[str, ...]) -> Group:
    """The group of a section's settings.

    Raises:
        CheckpointError: a setting is malformed.
        Unsupported: isobit does not read such floats, or does not round inputs so.
    """
    kind, bits = text(section.get("data_type"), "int", "data_type"), whole_number(section, ("bits",))
    inputs = whole_number(section, ("act_bits",), _PLAIN)
    same = inputs == bits and text(section.get("act_data_type"), kind, "act_data_type")[:5] == kind[:5]
    name = _SCHEMES.get((kind[:5], bits))
    row = None if name is None else scheme(name if inputs < _PLAIN else f"{name}-w16")
    reasons = []
    if row is None or row.weights is None:
        known = ", ".join(f"{one} of {size} bits" for one, size in _SCHEMES)
        reasons.append(f"its weights are {short(kind)} of {bits} bits; isobit reads {known} in this packing")
    elif whole_number(section, ("group_size",), row.weights.group) != row.weights.group:
        reasons.append(f"its groups are of {short(section['group_size'])} weights, not {row.weights.group}")
    if inputs < _PLAIN and not same:
        reasons.append(f"its inputs are {short(section.get('act_data_type'))} of {inputs} bits, unlike its weights")
    if reasons or row is None:
        raise Unsupported("this AutoRound checkpoint", reasons, INSTEAD)
    return Group(targets, row.weights, row.activations)
