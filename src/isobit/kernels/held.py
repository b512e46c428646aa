"""What kernels are given in place of formats that they do not read: the same values in a format that they do. Pure.

CPU kernels read scales in formats of their own, but for a few sizes of groups; GPU kernels read none. Codes of e2m1 are
halves of integers up to 12: as int8 under half the scale they are the same values, at two times the bytes. Activations
under few-bit scales are then rounded before a kernel that takes them as they are: the products are those of the same
codes and scales (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import replace

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.cpu import formats as cpu_formats

HALVES = "e2m1"


def on_cpu(weights: WeightSpec | None, activations: ActSpec | None) -> tuple[WeightSpec | None, ActSpec | None]:
    """In which formats CPU kernels are given a linear's weight, and asked to round its input: as they are, or held."""
    if cpu_formats.unsupported(weights, activations) is None:
        return weights, activations
    return held(weights), within(activations)


def held(spec: WeightSpec | None) -> WeightSpec | None:
    """The format in which kernels that read float scales alone are given a weight."""
    if spec is None or spec.scale is None:
        return spec
    return replace(spec, scale=None, element="int8" if spec.element == HALVES else spec.element)


def before(spec: ActSpec | None) -> ActSpec | None:
    """The rounding that is done in front of a kernel; None where the kernel rounds, or nobody does."""
    return spec if spec is not None and spec.scale is not None else None


def within(spec: ActSpec | None) -> ActSpec | None:
    """The rounding that a kernel is asked for."""
    return None if before(spec) is not None else spec
