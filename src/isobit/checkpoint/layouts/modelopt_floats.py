"""ModelOpt's 4-bit floats: NVFP4 (weights alone, or inputs too) and MXFP4.

    weight  U8 [N, K / 2], the first code of a byte in its low bits
    NVFP4   weight_scale  F8_E4M3 [N, K / 16]    weight_scale_2  F32, which multiplies    input_scale  F32, of inputs
    MXFP4   weight_scale  U8 [N, K / 32], codes of e8m0

A weight is ``code * (weight_scale * weight_scale_2)``, the product of the scales rounded to float32. Scales of inputs
are multiplied by ``input_scale``; isobit's law divides by a number above them, which is one over it. MXFP8 is stored
as compressed-tensors does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from isobit.checkpoint.layouts.few_bit_scales import FOUR_BITS, pairs, read_pairs
from isobit.checkpoint.layouts.needs import Needs
from isobit.checkpoint.layouts.parts import INPUT_SCALES, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.safetensors import TensorInfo
from isobit.formats.scales import POWERS, UNDER_ONE, ScaleSpec
from isobit.formats.schemes import ActSpec, WeightSpec

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

NVFP4 = WeightSpec(FOUR_BITS, "group", 16, scale=ScaleSpec("e4m3fn", "multiplies"))
NVFP4_INPUTS = ActSpec(FOUR_BITS, "group", 16, scale=UNDER_ONE)
MXFP4 = WeightSpec(FOUR_BITS, "group", 32, scale=POWERS)
MXFP4_INPUTS = ActSpec(FOUR_BITS, "group", 32, scale=POWERS)
MXFP8 = WeightSpec("e4m3fn", "group", 32, scale=POWERS)
MXFP8_INPUTS = ActSpec("e4m3fn", "group", 32, scale=POWERS)


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    """Bytes, with scales of 8 bits (those of 4-bit integers are plain numbers)."""
    weight, scale = infos.get("weight"), infos.get("weight_scale")
    return weight is not None and scale is not None and weight.dtype == "U8" and scale.dtype in ("F8_E4M3", "U8")


def _describe(parts: Parts) -> Described:
    info, scale = parts.infos["weight"], parts.infos["weight_scale"]
    label = "nvfp4" if scale.dtype == "F8_E4M3" else "mxfp4"
    if len(info.shape) != 2:
        return Described(info.shape, 2 * info.nbytes, label=label)
    shape = info.shape[0], 2 * info.shape[1]
    said = None if parts.group is None else parts.group.weights
    if said is None or said.element != FOUR_BITS or tuple(scale.shape) != said.scale_shape(*shape):
        return Described(shape, 2 * info.nbytes, label=label)
    assert parts.group is not None
    return Described(shape, 2 * info.nbytes, said, parts.group.activations)


def _needs(parts: Parts, n: int, k: int) -> Needs:
    return pairs(parts, n, k, "weight", "weight_scale_2", INPUT_SCALES)


def _read(reader: Reader) -> LinearWeight:
    spec, activations = reader.configured("weight")
    weight, n = read_pairs(reader, spec, "weight", "weight_scale_2")
    return reader.linear(weight, activations, _over_inputs(reader, activations), n)


def _over_inputs(reader: Reader, activations: ActSpec | None) -> Tensor | None:
    """What the scales of inputs are divided by."""
    if activations is None or not activations.calibrated:
        return None
    given = reader.input_scale(ActSpec("e4m3fn", "tensor", dynamic=False))
    assert given is not None
    over = 1 / given
    if not bool(over.isfinite()) or not bool((448 * given).isfinite()):
        raise reader.error("input_scale", f"is {float(given)}: scales under it are beyond float32")
    return over


LAYOUT = Layout(
    "ModelOpt, 4-bit floats", "weight", ("weight_scale", "weight_scale_2"), _claims, _describe, _read,
    dtypes=("U8",), scales=("weight_scale",), marks=("weight_scale",), needs=_needs,
)  # fmt: skip
