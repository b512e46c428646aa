"""Which tensors a weight of compressed-tensors takes: a byte a code, or packed. No torch."""

from __future__ import annotations

from dataclasses import replace

from isobit.checkpoint.layouts import zero_points
from isobit.checkpoint.layouts.needs import Need, Needs, Wrong, inputs, scales
from isobit.checkpoint.layouts.parts import ELEMENT_OF_DTYPE, Parts
from isobit.checkpoint.safetensors import INTEGERS
from isobit.checkpoint.shown import listed
from isobit.formats.table import element

NO_SHAPE = "is missing: without it the number of inputs is unknown"
NO_ZERO_POINT = "is missing, but quantization_config says the weight is asymmetric"
DTYPE_OF_ELEMENT = {name: dtype for dtype, name in ELEMENT_OF_DTYPE.items()}


def bytes_of(parts: Parts, n: int, k: int, scale_part: str = "weight_scale") -> Needs:
    """What a weight of a byte a code takes."""
    group = parts.group
    if group is not None and group.integers is not None:
        return zero_points.needs(group.integers, "weight", n, k)
    if group is None or group.weights is None:
        return ()
    spec, row, scale = group.weights, element(group.weights.element), parts.infos.get(scale_part)
    dtype = "I8" if row.kind == "int" else DTYPE_OF_ELEMENT.get(row.name)
    if dtype is None:
        return ()
    if spec.granularity == "block" and parts.method.startswith("fp8 ") and scale is None:
        scale_part = "weight_scale_inv"
    if spec.granularity == "tensor" and scale is not None and scale.numel == n > 1:
        spec = replace(spec, granularity="channel")  # the fp8 method leaves open which of the two it is
    zeros = Need("weight_zero_point", optional=True)  # where none of them is anything but zero
    codes = Need("weight", (dtype,), ((n, k),))
    return (codes, *scales(scale_part, spec, n, k), zeros, *inputs(group.activations, parts.infos))


def packed(parts: Parts, n: int, k: int) -> Needs:
    group = parts.group
    if group is not None and group.integers is not None:
        return zero_points.needs(group.integers, "weight_packed", n, k)
    if group is None or group.weights is None:
        return ()
    spec, row = group.weights, element(group.weights.element)
    if row.kind != "int" and row.bits == 8:
        return (Wrong("weight_packed", f"packed weights of {row.name} cannot be read"),)
    shape, said = spec.scale_shape(n, k), parts.numbers("weight_shape")
    lies = f"says {listed(said)}, but config.json makes it [{n}, {k}]" if said and said != (n, k) else ""
    packed = Need("weight_zero_point", ("I32", "I8"), ((row.words(n), *shape[1:]), shape), why=NO_ZERO_POINT)
    return (
        Need("weight_packed", ("I32",), ((n, row.words(k)),)),
        Need("weight_shape", INTEGERS, numel=2, why=NO_SHAPE),
        *((Wrong("weight_shape", lies),) if lies else ()),
        *scales("weight_scale", spec, n, k),
        Need("weight_zero_point", optional=True) if spec.symmetric else packed,
        Need("weight_g_idx", INTEGERS, ((k,),), optional=True),
        *inputs(group.activations, parts.infos),
    )
