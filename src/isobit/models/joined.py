"""Linears of one input: on a GPU one matrix where their formats allow it, so that one launch reads one long stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.formats.qtensor import QTensor, stacked
from isobit.kernels import backends
from isobit.kernels.widened import for_gpu
from isobit.models.linear import Linear
from isobit.models.place import Place


def bind_linears(
    reads: Sequence[LinearWeight], *, by_turns: bool, keep_values: bool, dtype: torch.dtype, place: Place
) -> list[Linear]:
    """Linears that read the same input, bound to kernels: as parts of one matrix where they can be.

    Args:
        reads: their weights; plain ones in the dtype in which they are computed with.
        by_turns: whether two of them are gates and what they multiply.
        keep_values, dtype, place: see ``Linear``.
    """
    if place.device == "cuda" and apart(reads) is None:
        here = [replace(read, weight=place.weight(_given(read))) for read in reads]
        return _parts(here, by_turns, dtype, place)
    return [
        Linear(
            read.weight, read.activations, read.input_scale, read.bias, keep_values=keep_values, dtype=dtype,
            place=place, order=read.order, factor=read.factor,
        )
        for read in reads
    ]  # fmt: skip


def apart(reads: Sequence[LinearWeight]) -> str | None:
    """Why linears of one input stay matrices of their own; None if they become one."""
    first, others = reads[0], reads[1:]
    if not others:
        return "there is one"
    if any(not read.as_it_is for read in reads):
        return "inputs of one are put into another order or multiplied"
    if any((other.bias is None) != (first.bias is None) for other in others):
        return "some have a bias"
    if any(other.activations != first.activations or _static(other) != _static(first) for other in others):
        return "their inputs are rounded differently"
    if len({_kind(read.weight) for read in reads}) > 1:
        return "their weights are stored differently"
    spec = first.weight.spec if isinstance(first.weight, QTensor) else None
    if spec is not None and spec.block is not None and any(read.weight.shape[0] % spec.block[0] for read in reads[:-1]):
        return f"rows of one end inside a block of {spec.block[0]}"
    return None


def join(reads: Sequence[LinearWeight], by_turns: bool) -> tuple[LinearWeight, list[slice]]:
    """Linears that nothing keeps apart as one, and the rows of each.

    Args:
        reads: them, on one device.
        by_turns: whether two of the same size take turns, row by row, if their scales allow it.
    """
    sizes = [read.weight.shape[0] for read in reads]
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    rows = [slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]
    weight = _stacked([read.weight for read in reads])
    bias = None if reads[0].bias is None else torch.cat([read.bias for read in reads if read.bias is not None])
    if by_turns and takes_turns(reads):
        order = torch.arange(2 * sizes[0]).view(2, -1).t().flatten()
        rows = [slice(0, 2 * sizes[0], 2), slice(1, 2 * sizes[0], 2)]
        weight = weight[order.to(weight.device)] if isinstance(weight, Tensor) else weight.in_order(
            order.to(weight.codes.device)
        )  # fmt: skip
        bias = None if bias is None else bias[order.to(bias.device)]
    return LinearWeight(weight, reads[0].activations, reads[0].input_scale, bias), rows


def takes_turns(reads: Sequence[LinearWeight]) -> bool:
    """Whether rows of two linears can take turns."""
    first, spec = reads[0].weight, getattr(reads[0].weight, "spec", None)
    return len(reads) == 2 and first.shape == reads[1].weight.shape and (spec is None or spec.block is None)


def _parts(reads: list[LinearWeight], by_turns: bool, dtype: torch.dtype, place: Place) -> list[Linear]:
    from isobit.kernels.gpu.joined import Part

    biases = [None if read.bias is None else place.tensor(read.bias).to(dtype) for read in reads]
    whole, rows = join([replace(read, bias=bias) for read, bias in zip(reads, biases, strict=True)], by_turns)
    scale = None if whole.input_scale is None else place.tensor(whole.input_scale)
    specs = [read.weight.spec if isinstance(read.weight, QTensor) else None for read in reads]
    reads.clear()  # what was read is in the whole now
    bound = backends.bind(whole.weight, whole.activations, scale, whole.bias, device=place.device, **place.options)
    return [
        Linear(
            None, whole.activations, scale, bias, dtype=dtype, place=place,
            bound=replace(bound, run=Part(bound.run, part, spec)),  # type: ignore[arg-type]
        )
        for bias, part, spec in zip(biases, rows, specs, strict=True)
    ]  # fmt: skip


def _stacked(weights: Sequence[QTensor | Tensor]) -> QTensor | Tensor:
    quantized = [weight for weight in weights if isinstance(weight, QTensor)]
    return stacked(quantized) if quantized else torch.cat([one for one in weights if isinstance(one, Tensor)])


def _given(read: LinearWeight) -> QTensor | Tensor:
    return for_gpu(read.weight, read.activations) if isinstance(read.weight, QTensor) else read.weight


def _static(read: LinearWeight) -> float | None:
    return None if read.input_scale is None else float(read.input_scale)


def _kind(weight: QTensor | Tensor) -> tuple[object, ...]:
    if isinstance(weight, QTensor):
        return weight.spec, weight.shape[1], weight.scale.dtype
    return None, weight.shape[1], weight.dtype
