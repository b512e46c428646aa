"""What kernels are given in place of formats that none of them reads: the same values in a format that one does. Pure.

Codes of e2m1 are halves of integers up to 12: as int8 under half the scale they are the same values, at two times the
bytes. Activations under few-bit scales are rounded before a kernel that takes them as they are: the products are those
of the same codes and scales (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import replace

from isobit.formats.schemes import ActSpec, WeightSpec

HALVES = "e2m1"


def held(spec: WeightSpec | None) -> WeightSpec | None:
    """The format in which kernels are given a weight: itself, where they read it as it is."""
    if spec is None or spec.scale is None:
        return spec
    return replace(spec, scale=None, element="int8" if spec.element == HALVES else spec.element)


def before(spec: ActSpec | None) -> ActSpec | None:
    """The rounding that is done in front of a kernel; None where the kernel rounds, or nobody does."""
    return spec if spec is not None and spec.scale is not None else None


def within(spec: ActSpec | None) -> ActSpec | None:
    """The rounding that a kernel is asked for."""
    return None if before(spec) is not None else spec
