"""What the CPU kernels take: numbers of formats as isobit_cpu.h has them, and why they do not take something."""

from __future__ import annotations

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element

FLOAT_FORMATS = {"float32": 0, "bfloat16": 1, "float16": 2}
FORMATS = {"e4m3fn": 3, "e5m2": 4, "int8": 5, "int4": 6, "uint4": 7, "int3": 8, "int2": 9}
ACTIVATIONS = {"e4m3fn": 1, "e5m2": 2, "int8": 3}


def unsupported(weights: WeightSpec | None, activations: ActSpec | None) -> str | None:
    """Why no CPU kernel takes these formats, or None."""
    if any(one is not None and one.scale is not None for one in (weights, activations)):
        return "the CPU kernels read scales in floats alone (kernels.held says what they are given instead)"
    if weights is None:
        return None if activations is None else "activations are rounded only together with weights"
    name = element(weights.element).name
    if name not in FORMATS:
        return f"no CPU kernel has {name} weights"
    if not weights.symmetric and (weights.granularity != "group" or name != "uint4"):
        return f"no CPU kernel has zero points of {name} weights by {weights.granularity}"
    if activations is None:
        return None
    if not weights.symmetric:
        return "weights with zero points take activations as they are"
    rounded = element(activations.element).name
    if rounded not in ACTIVATIONS:
        return f"no CPU kernel rounds activations to {rounded}"
    along_k = weights.group or (weights.block[1] if weights.block else None)
    if activations.group is not None and activations.group != along_k:
        return f"activations in groups of {activations.group} need weights with scales of {activations.group} along K"
    return None
