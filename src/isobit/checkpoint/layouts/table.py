"""Every layout as one row: the first that claims a module's tensors has it. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from isobit.checkpoint.layouts import (
    awq,
    bitsandbytes,
    compressed,
    few_bit_scales,
    fp8_blocks,
    gguf,
    gptq,
    hqq,
    mlc,
    modelopt,
    modelopt_floats,
    mxfp4,
    plain,
    quanto,
    torchao,
)
from isobit.checkpoint.layouts.parts import COMMON
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.shards import PlannedTensor
from isobit.errors import FormatError
from isobit.formats.schemes import ActSpec, WeightSpec, name_of

# A new checkpoint format is its file and a line here.
LAYOUTS: tuple[Layout, ...] = (
    gguf.LAYOUT,
    mxfp4.LAYOUT,
    hqq.LAYOUT,
    mlc.LAYOUT,
    quanto.BYTES,
    quanto.FEW,
    awq.GEMM,
    awq.GEMV,
    gptq.LAYOUT,
    bitsandbytes.FOUR_BITS,
    bitsandbytes.EIGHT_BITS,
    modelopt.LAYOUT,
    modelopt_floats.LAYOUT,
    torchao.LAYOUT,
    few_bit_scales.LAYOUT,
    compressed.PACKED,
    plain.LAYOUT,
    fp8_blocks.LAYOUT,
    compressed.BYTES,
)

_READ = tuple(row for row in LAYOUTS if row.reads is not None)

# What quant_method may say -> what reads that section of config.json.
CONFIGS: dict[str, Callable[[dict[str, Any]], Quantization]] = {
    method: parse for row in LAYOUTS for method, parse in row.configs.items()
}


_PRIVATE = tuple((part, row.codes) for row in LAYOUTS for part in row.private)  # what counts only beside some codes


def _endings(rows: Iterable[Layout], *more: str) -> tuple[str, ...]:
    found = [(part, row.dot) for row in rows for part in (row.codes, *row.parts)]
    return tuple(dict.fromkeys(f".{part}" if dot else part for part, dot in [*found, *((part, True) for part in more)]))


# The parts of linears that are read, and those among them that hold codes or plain numbers.
READABLE = frozenset({part for row in _READ for part in (row.codes, *row.parts, *row.private)} | {*COMMON})
CODE_PARTS = tuple(dict.fromkeys(row.codes for row in _READ))
# The same, as names of tensors end; those of scales, and those that alone tell of a quantized weight.
PARTS = _endings(_READ, *COMMON)
SCALES = tuple(dict.fromkeys(f".{part}" for row in _READ for part in row.scales))
MARKS = tuple(dict.fromkeys(f".{part}" if row.dot else part for row in reversed(_READ) for part in row.marks))
_KNOWN = tuple(sorted(_endings(LAYOUTS, *COMMON), key=len, reverse=True))


def split(tensor: str) -> tuple[str, str]:
    """(module, part) of a tensor's name, e.g. ``("lm_head", "weight_scale")``.

    What belongs to no layout is divided at the last dot; the module of a name without one is empty.
    """
    if tensor.endswith(_KNOWN):
        end = next(end for end in _KNOWN if tensor.endswith(end))
        if len(end) < len(tensor):
            return tensor.removesuffix(end), end.removeprefix(".")
    module, _, part = tensor.rpartition(".")
    return module, part


def belongs_to_linear(tensor: str) -> bool:
    """Whether a name ends as that of a tensor of a linear that can be read."""
    return tensor.endswith(PARTS) and bool(split(tensor)[0])


def infos_of(tensors: Mapping[str, TensorInfo], module: str) -> dict[str, TensorInfo]:
    """The tensors of a module that belong to a linear, by part."""
    named = ((end.removeprefix("."), module + end) for end in _KNOWN)
    found = {part: tensors[name] for part, name in named if name in tensors}
    for part, codes in _PRIVATE:
        if codes in found and f"{module}.{part}" in tensors:
            found[part] = tensors[f"{module}.{part}"]
    return found


def layout_of(infos: Mapping[str, TensorInfo]) -> Layout | None:
    """The layout of a module's tensors, given by part; None if they hold no weight of a linear."""
    return next((row for row in LAYOUTS if row.claims(infos)), None)


def absent(infos: Mapping[str, TensorInfo]) -> str:
    """The part that is missing of a module whose tensors, given by part, hold no weight."""
    own = ({*row.parts, *row.private} & infos.keys() for row in _READ)
    most, codes = max(zip(map(len, own), (row.codes for row in _READ), strict=True), key=lambda both: both[0])
    return codes if most else "weight"


def implied(tensors: Mapping[str, str]) -> dict[str, Any] | None:
    """The section on quantization that tensors, by name with their dtypes, stand for without one; None if they do not.

    For tools that write none: how their weights are stored, and that nothing else is rounded, the tensors say alone.
    """
    told = (row.implies(tensors) for row in LAYOUTS if row.implies is not None)
    return next((section for section in told if section), None)


def written(
    spec: WeightSpec, activations: ActSpec | None, n: int, k: int, scale_dtype: str = "BF16"
) -> tuple[PlannedTensor, ...]:
    """The tensors, named by part, that isobit stores a weight in.

    Args:
        spec: its format.
        activations: how inputs are rounded; None when they are not.
        n, k: sizes of the weight.
        scale_dtype: safetensors dtype of the scales.

    Raises:
        FormatError: isobit writes no such weights.
    """
    found = _written(spec, activations, n, k, scale_dtype)
    if found is None:
        raise FormatError(f"isobit writes no weights of {name_of(spec, activations)}")
    return found


def nbytes(spec: WeightSpec, activations: ActSpec | None, n: int, k: int) -> int:
    """Bytes of the tensors that hold a weight: those that isobit would write, or what its codes and scales need."""
    found = _written(spec, activations, n, k, "BF16")
    if found is not None:
        return sum(part.nbytes for part in found)
    return math.ceil(spec.bits_per_weight(n, k) * n * k / 8)


def _written(
    spec: WeightSpec, activations: ActSpec | None, n: int, k: int, scale_dtype: str
) -> tuple[PlannedTensor, ...] | None:
    rows = (row.written(spec, activations, n, k, scale_dtype) for row in LAYOUTS if row.written is not None)
    return next((found for found in rows if found is not None), None)
