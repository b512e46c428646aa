"""Layouts that isobit knows by sight: it says what they hold, and refuses to read them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.safetensors import TensorInfo


def _nibbles(codes: str, label: str) -> Callable[[Parts], Described]:
    """Describes two weights a byte."""

    def describe(parts: Parts) -> Described:
        info = parts.infos[codes]
        return Described(info.shape, 2 * info.nbytes, label=label)

    return describe


def _modelopt(infos: Mapping[str, TensorInfo]) -> bool:
    codes, scale = infos.get("weight"), infos.get("weight_scale")
    eight = scale is None or scale.dtype not in ("F32", "BF16", "F16")  # those of 4-bit integers are plain numbers
    return "weight_scale_2" in infos and codes is not None and codes.dtype == "U8" and eight


LAYOUTS = (
    Layout("ModelOpt's NVFP4", "weight", ("weight_scale", "weight_scale_2"), _modelopt, _nibbles("weight", "nvfp4")),
)  # fmt: skip
