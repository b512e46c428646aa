"""What kernels are given in place of formats that they do not read: the same values in a format that they do. Pure.

CPU kernels read scales in formats of their own, but for a few sizes of groups. Codes of e2m1 are then halves of
integers up to 12: as int8 under half the scale they are the same values, at two times the bytes. GPU kernels read
codes of scales beside activations that are rounded under such, else floats, of powers of two as bfloat16. Where no
kernel rounds activations under few-bit scales, that is done before one that takes them as they are: the products are
those of the same codes and scales (docs/numerics.md).
"""

from __future__ import annotations

from dataclasses import replace

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.cpu import formats as cpu_formats
from isobit.kernels.gpu import selection

HALVES = "e2m1"


def on_cpu(weights: WeightSpec | None, activations: ActSpec | None) -> tuple[WeightSpec | None, ActSpec | None]:
    """In which formats CPU kernels are given a linear's weight, and asked to round its input: as they are, or held."""
    if cpu_formats.unsupported(weights, activations) is None:
        return weights, activations
    return held(weights), within(activations)


def on_gpu(weights: WeightSpec | None, activations: ActSpec | None) -> tuple[WeightSpec | None, ActSpec | None]:
    """The same of GPU kernels; see :func:`not_on_gpu`."""
    if selection.unsupported(weights, activations) is None:
        return weights, activations
    return held(weights, halves=True), within(activations)


def not_on_gpu(activations: ActSpec | None) -> str | None:
    """Why no GPU kernel takes the values of rounded activations, or None.

    A code of at most four significant bits times a power of two is a bfloat16, and so are those of MX; under the scales
    of NVFP4, with a float32 number above them, they are none.
    """
    first = before(activations)
    if first is None or (first.scale is not None and first.scale.powers):
        return None
    return f"no GPU kernel takes {first.element} activations under scales that are no powers of two"


def given(
    weights: WeightSpec | None, activations: ActSpec | None, *, gpu: bool
) -> tuple[WeightSpec | None, ActSpec | None]:
    """:func:`on_gpu` or :func:`on_cpu`."""
    return on_gpu(weights, activations) if gpu else on_cpu(weights, activations)


def held(spec: WeightSpec | None, *, halves: bool = False) -> WeightSpec | None:
    """The format in which kernels that read float scales alone are given a weight.

    Args:
        spec: its own.
        halves: whether they read e2m1.
    """
    if spec is None or spec.scale is None:
        return spec
    return replace(spec, scale=None, element="int8" if spec.element == HALVES and not halves else spec.element)


def before(spec: ActSpec | None) -> ActSpec | None:
    """The rounding that is done in front of a kernel; None where the kernel rounds, or nobody does."""
    return spec if spec is not None and spec.scale is not None else None


def within(spec: ActSpec | None) -> ActSpec | None:
    """The rounding that a kernel is asked for."""
    return None if before(spec) is not None else spec
