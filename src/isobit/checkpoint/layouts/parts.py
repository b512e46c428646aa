"""The tensors of one module, before anything is read of them, and what a layout says that they hold. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.checkpoint.quantization import Group
from isobit.checkpoint.safetensors import DTYPES, TensorInfo
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import ELEMENTS

# Safetensors dtype -> the element format whose codes it holds, one a number.
ELEMENT_OF_DTYPE: dict[str, str] = {
    dtype: row.name
    for dtype, (_, torch_name) in DTYPES.items()
    for row in ELEMENTS.values()
    if torch_name is not None and row.torch_name == torch_name and row.has_zero
}

# Safetensors dtype -> the format of scales that are stored in it; U8 has the codes of whatever a spec says.
SCALE_DTYPES: dict[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"} | {
    dtype: row.name
    for dtype, (_, torch_name) in DTYPES.items()
    for row in ELEMENTS.values()
    if torch_name is not None and row.torch_name == torch_name and row.kind == "float"
}

# Formats that scales may have where the format of the weight leaves it open.
OPEN_SCALES = ("float32", "bfloat16", "float16", "e8m0")

# What may belong to a linear in any layout, by the last part of its name.
INPUT_SCALES = ("input_scale", "activation_scale")  # what multiplies codes
INPUT_OVER = "input_global_scale"  # what scales of groups are divided by
FACTOR = "pre_quant_scale"  # what inputs are multiplied by
COMMON = (*INPUT_SCALES, INPUT_OVER, FACTOR, "input_zero_point", "bias")


@dataclass(frozen=True)
class Parts:
    """The tensors of one module, and what its checkpoint says about it.

    Attributes:
        module: its name, e.g. ``model.layers.0.mlp.up_proj``.
        infos: header entries by part: what follows the module's name and a dot, e.g. ``weight_scale``.
        group: what the quantization config says of it; None if nothing, or if it is not known.
        config: the ``config.json``.
        method: what its quantization config calls the method and the format; empty if it is not known.
        numbers: gives the whole numbers of a part, a small tensor; None where it holds none or is not at hand.
    """

    module: str
    infos: Mapping[str, TensorInfo]
    group: Group | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    numbers: Callable[[str], tuple[int, ...] | None] = lambda part: None


@dataclass(frozen=True)
class Described:
    """How a module's weight is stored.

    Attributes:
        shape: of the weight, as far as its tensors show (-1: a size that their headers do not tell); ``(N, K)`` when
            ``spec`` is given.
        weights: the numbers it stands for.
        spec: the format of its codes and scales; None where isobit has no such format.
        activations: how inputs are rounded; None when they are not, or that is not known.
        label: what to call it where there is no spec.
    """

    shape: tuple[int, ...]
    weights: int
    spec: WeightSpec | None = None
    activations: ActSpec | None = None
    label: str = ""
