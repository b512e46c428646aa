"""The experts of a layer put one below the other, as they are read: never two copies of more than one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.errors import CheckpointError
from isobit.formats.qtensor import QTensor
from isobit.kernels.grouped import Grouped, Routing
from isobit.kernels.widened import for_gpu
from isobit.models import uneven
from isobit.models.feed_forward import Router
from isobit.models.place import Place


def routing(router: Router, weight: Tensor, bias: Tensor | None = None, correction: Tensor | None = None) -> Routing:
    """A router with its numbers, all float32."""
    return Routing(
        weight, router.active, bias, correction, router.scores, router.groups, router.active_groups,
        router.group_score, router.renormalize, router.scale, router.least_sum, router.tolerance,
    )  # fmt: skip


def stack(reads: Iterable[LinearWeight], names: Sequence[str], file: Path, place: Place) -> Grouped:
    """Experts of one role as one matrix, each copied into its place as it is read.

    Args:
        reads: their weights ``[N, K]``, alike in format.
        names: their modules.
        file: where they lie, for messages.
        place: where the matrix is to be.

    Raises:
        CheckpointError: they are stored in different ways.
        Unsupported: their static scales differ, and a GPU is to run them.
    """
    filled: _Filled | None = None
    scales: list[Tensor | None] = []
    for number, read in enumerate(reads):
        weight = read.weight
        if isinstance(weight, QTensor) and place.device != "cpu":
            weight = for_gpu(weight, read.activations)
        read = replace(read, weight=weight)
        if filled is None:
            filled = _Filled(read, len(names), place)
        elif (other := filled.differs(read)) is not None:
            raise CheckpointError(
                f"its experts are stored in different ways: {names[number]} {other} than {names[0]}; isobit runs the"
                " experts of a layer in one format",
                file=file,
            )
        filled.put(number, read)
        scales.append(read.input_scale)
    assert filled is not None
    if place.device != "cpu" and all(scale is not None for scale in scales):
        values = [float(scale) for scale in scales if scale is not None]
        if (reason := uneven.differing(names, values)) is not None:
            raise uneven.refusal(reason)
    return filled.grouped(_one_scale(scales, place))


def _one_scale(scales: list[Tensor | None], place: Place) -> Tensor | None:
    """The static scales of all experts: one number where they agree."""
    known = [scale for scale in scales if scale is not None]
    if not known:
        return None
    found = torch.cat([scale.reshape(1) for scale in known]).float()
    return place.tensor(found[:1] if bool((found == found[0]).all()) else found)


class _Filled:
    """A tall matrix that is being filled."""

    def __init__(self, first: LinearWeight, experts: int, place: Place) -> None:
        self.first, self.experts, self.place = first, experts, place
        self.rows = first.weight.shape[0]
        spec = first.weight.spec if isinstance(first.weight, QTensor) else None
        block = 1 if spec is None or spec.block is None else spec.block[0]
        self.stride = -(-self.rows // block) * block
        self.bias = None if first.bias is None else place.tensor(torch.zeros(experts, self.rows))
        codes, *others = _parts(first.weight)
        assert codes is not None
        self.codes = self._room(self.stride, codes)
        self.scale, self.zero, self.over = (
            # One scale of a whole expert becomes one of each of its rows.
            None if part is None else self._room(self.rows if part.dim() == 1 else part.shape[0], part)
            for part in others
        )

    def _room(self, rows: int, part: Tensor) -> Tensor:
        """Room for so many rows of each expert; those that none of them fills stay zero."""
        shape = (self.experts * rows, *(part.shape[1:] or (1,)))
        return torch.zeros(shape, dtype=part.dtype, device=self.place.tensors)

    def differs(self, read: LinearWeight) -> str | None:
        """How another expert differs from the first; None if it does not."""
        one, first = read.weight, self.first.weight
        if _kind(one) != _kind(first) or (read.bias is None) != (self.bias is None):
            return "has another format"
        if read.activations != self.first.activations or (read.input_scale is None) != (self.first.input_scale is None):
            return "rounds its input otherwise"
        return None

    def put(self, number: int, read: LinearWeight) -> None:
        """One expert, into its place."""
        for whole, part in zip((self.codes, self.scale, self.zero, self.over), _parts(read.weight), strict=True):
            if whole is not None and part is not None:
                step = len(whole) // self.experts
                rows = self.rows if part.dim() == 1 else part.shape[0]
                whole[number * step : number * step + rows].copy_(part[:, None] if part.dim() == 1 else part)
        if self.bias is not None and read.bias is not None:
            self.bias[number].copy_(read.bias)

    def grouped(self, input_scale: Tensor | None) -> Grouped:
        """All of them."""
        weight: QTensor | Tensor = self.codes
        first = self.first.weight
        if isinstance(first, QTensor):
            assert self.scale is not None
            spec = first.spec if first.spec.granularity != "tensor" else replace(first.spec, granularity="channel")
            shape = (self.experts * self.stride, first.shape[1])
            weight = QTensor(spec, shape, self.codes, self.scale, self.zero, self.over)
        return Grouped(
            weight, self.experts, self.rows, self.stride, self.bias, self.first.activations, input_scale
        )  # fmt: skip


def _parts(weight: QTensor | Tensor) -> tuple[Tensor | None, ...]:
    """Codes, scales, zero points and the scales above others."""
    if isinstance(weight, Tensor):
        return weight, None, None, None
    return weight.codes, weight.scale, weight.zero, weight.over


def _kind(weight: QTensor | Tensor) -> tuple[object, ...]:
    if isinstance(weight, Tensor):
        return tuple(weight.shape), weight.dtype
    return weight.spec, weight.shape, weight.scale.dtype
