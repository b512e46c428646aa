"""Weights that are not quantized: one tensor in bfloat16, float16 or float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from isobit.checkpoint.layouts.needs import Need
from isobit.checkpoint.layouts.parts import COMMON, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

DTYPE_NAMES = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F64": "f64"}
_SCALES = ("weight_scale", "weight_scale_inv")
_STRANGE = (*_SCALES, "weight_zero_point")  # belong to quantized weights, and so not here


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "weight" in infos and infos["weight"].dtype in PLAIN_DTYPES


def _describe(parts: Parts) -> Described:
    info = parts.infos["weight"]
    strange = any(part in parts.infos for part in _STRANGE)
    label = f"{info.dtype.lower()} with scales" if strange else DTYPE_NAMES[info.dtype]
    return Described(info.shape, math.prod(info.shape), label=label)


def _needs(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    return (Need("weight", shapes=((n, k),)), *(Need(part, optional=True) for part in COMMON))


def _read(reader: Reader) -> LinearWeight:
    n, k = reader.matrix("weight")
    scales = [part for part in _SCALES if part in reader.infos]
    if scales:
        dtype = reader.info("weight").dtype
        raise reader.error(scales[0], f"there is a scale for a weight that is not quantized ({dtype})")
    rows, columns = reader.span(n, k)
    return reader.linear(reader.finite("weight", reader.take("weight", rows, columns)), None, None, n)


LAYOUT = Layout(
    "plain numbers", "weight", _STRANGE, _claims, _describe, _read,
    dtypes=PLAIN_DTYPES, needs=_needs, surplus="belongs to a quantized weight, and this one is not",
)  # fmt: skip
