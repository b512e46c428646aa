"""Weights of GGUF files: blocks of codes with their scales, all in one tensor.

Where one of isobit's formats holds the same numbers they stay codes (``checkpoint.gguf.types`` says which); those of
the others are made float32 when they are read. Either way they are the numbers of ``gguf.quants.dequantize``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.gguf.members import METHOD
from isobit.checkpoint.gguf.placing import OVER
from isobit.checkpoint.gguf.types import BY_NAME, INSTALL, QUANTIZED, READ
from isobit.checkpoint.layouts.needs import Need
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.shown import short
from isobit.errors import CheckpointError, FormatError, Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader


_ALSO_SCHEMES = ("mxfp4", "nvfp4")  # which round activations, too, where isobit names them so


def parse(section: dict[str, Any]) -> Quantization:
    """What the ``quantization_config`` says that is made of a GGUF file: the type of each module.

    Raises:
        CheckpointError: it was not made so.
    """
    types = section.get("types")
    if not isinstance(types, Mapping) or not types or not all(name in BY_NAME for name in types.values()):
        raise CheckpointError(f"quant_method gguf with types = {short(types)}: name the GGUF file itself instead")
    modules: dict[str, list[str]] = {}
    for module, name in types.items():
        modules.setdefault(str(name), []).append(str(module))
    held = {name: BY_NAME[name].held for name in modules}
    groups = tuple(Group(tuple(found), held[name], None) for name, found in modules.items() if held[name] is not None)
    wide = [name for name in modules if held[name] is None]
    notes: tuple[str, ...] = ()
    looked_up = [name for name in wide if BY_NAME[name].tables]
    if looked_up and find_spec("gguf") is None:
        why = "they are made of tables that the package gguf has, which is not installed"
        raise Unsupported(f"weights in {', '.join(looked_up)}", [why], INSTALL)
    if wide:
        notes = (
            f"weights in {', '.join(wide)} are made float32 when they are loaded: no kernel reads those types. A CPU"
            " computes with that, exactly, in 32 bits each; a GPU takes them rounded to the model's dtype",
        )
    made = frozenset(name for kind in wide if BY_NAME[kind].widened for name in modules[kind])
    scales = {module: BY_NAME[name].scale for name in modules if BY_NAME[name].held for module in modules[name]}
    return Quantization(groups, (), METHOD, str(section.get("format", "")), notes, in_float32=made, scales=scales)


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "weight" in infos and infos["weight"].dtype in QUANTIZED


def _describe(parts: Parts) -> Described:
    info = parts.infos["weight"]
    name = info.dtype.lower()
    return Described(info.shape, math.prod(info.shape), label=f"{name}-w16" if name in _ALSO_SCHEMES else name)


def _needs(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    return Need("weight", shapes=((n, k),)), Need(OVER, numel=1, optional=True)


def _read(reader: Reader) -> LinearWeight:
    """A weight; its columns are cut between blocks where it stays in codes, and anywhere else."""
    import torch

    from isobit.checkpoint.gguf import blocks

    info = reader.info("weight")
    row, (n, k) = BY_NAME[info.dtype], reader.matrix("weight")
    if not row.read:
        raise reader.error("weight", f"is stored as {row.name}, which isobit does not read; it reads {', '.join(READ)}")
    rows, columns = reader.span(n, k)
    left, right = (columns.start or 0), (k if columns.stop is None else columns.stop)
    first, last = left // row.weights, -(-right // row.weights)
    data = reader.take("weight", rows, slice(first * row.nbytes, last * row.nbytes))
    if row.held is None:
        try:
            found = blocks.numbers(row.name, data, (last - first) * row.weights)
        except FormatError as error:
            raise reader.error("weight", str(error)) from None
        found = found[:, left - first * row.weights : right - first * row.weights].contiguous()
        if OVER in reader.infos:
            found *= _over(reader)
        _require_finite(reader, bool(torch.isfinite(found).all()))
        return reader.linear(found, None, None, n)
    if OVER in reader.infos:
        raise reader.error(OVER, f"stands beside {row.name}, and isobit reads it beside what is made float32 only")
    where = reader.cut("weight", row.held, n, k)
    if left % row.weights or right % row.weights:
        raise reader.error("weight", f"columns {left} to {right} cut a block of {row.weights} weights")
    codes, scale = blocks.codes(row.name, data, right - left)
    _require_finite(reader, bool(torch.isfinite(scale.float()).all()))
    return reader.linear(reader.qtensor("weight", row.held, where, codes, scale), None, None, n)


def _over(reader: Reader) -> Tensor:
    """What all numbers of a matrix are multiplied by."""
    found = reader.take(OVER, None, None)
    if found.numel() != 1 or not found.is_floating_point() or not found.isfinite().all():
        raise reader.error(OVER, "expected one finite number")
    return found.float().reshape(())


def _require_finite(reader: Reader, finite: bool) -> None:
    if not finite:
        raise reader.error("weight", "holds NaN or infinite scales: it was quantized from numbers that were too large")


LAYOUT = Layout(
    "GGUF", "weight", (OVER,), _claims, _describe, _read,
    dtypes=READ, configs={METHOD: parse}, needs=_needs,
)  # fmt: skip
