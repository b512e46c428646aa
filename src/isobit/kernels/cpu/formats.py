"""What the CPU kernels take: numbers of formats as isobit_cpu.h has them, and why they do not take something."""

from __future__ import annotations

from isobit.formats.scales import POWERS, ScaleSpec
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element

FLOAT_FORMATS = {"float32": 0, "bfloat16": 1, "float16": 2}
FORMATS = {
    "e4m3fn": 3, "e5m2": 4, "int8": 5, "int4": 6, "uint4": 7, "int3": 8, "int2": 9, "e2m1": 10,
}  # fmt: skip
ACTIVATIONS = {"e4m3fn": 1, "e5m2": 2, "int8": 3, "e2m1": 4}
SCALE_FORMATS = {**FLOAT_FORMATS, "e4m3fn": 3, "e8m0": 11}
OVER_RULES = {None: 0, "multiplies": 1, "divides": 2}
_LANES = 128  # codes of e2m1 that are decoded at a time by the widest vectors: groups divide them, or they groups


def unsupported(weights: WeightSpec | None, activations: ActSpec | None) -> str | None:
    """Why no CPU kernel takes these formats, or None."""
    if weights is None:
        return None if activations is None else "activations are rounded only together with weights"
    name = element(weights.element).name
    if name not in FORMATS:
        return f"no CPU kernel has {name} weights"
    if not weights.symmetric and (weights.granularity != "group" or name != "uint4"):
        return f"no CPU kernel has zero points of {name} weights by {weights.granularity}"
    if name == "e2m1" and weights.group and (weights.group < 8 or (weights.group % _LANES and _LANES % weights.group)):
        return (
            f"no CPU kernel has e2m1 weights in groups of {weights.group}: of 8, 16, 32, 64, or multiples of {_LANES}"
        )
    return _odd_scales(weights) or _odd_rounding(weights, activations)


def _odd_scales(weights: WeightSpec) -> str | None:
    """Why scales of a format of their own are not read, or None."""
    if weights.scale is None:
        return None
    if weights.granularity != "group":
        return f"no CPU kernel has scales in {weights.scale} by {weights.granularity}"
    if weights.scale.element not in SCALE_FORMATS:
        return f"no CPU kernel has scales in {weights.scale.element}"
    return None


def _odd_rounding(weights: WeightSpec, activations: ActSpec | None) -> str | None:
    """Why activations are not rounded so, or None."""
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


def activation_scales(scale: ScaleSpec | None) -> int:
    """What the library calls the format of the scales of activations."""
    return 0 if scale is None else 1 if scale == POWERS else 2
