"""Linears of one input as one matrix: bound once, run once, and still there one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import WeightSpec
from isobit.kernels.gpu.bind import BoundLinear
from isobit.kernels.gpu.rounding import Preparing
from isobit.kernels.rounded import Rounded


class Part:
    """Some rows of a bound weight as a linear of its own.

    Called alone it runs the whole and takes its rows: so its bits are the same however it is called.

    Args:
        whole: the bound weight.
        rows: begin and end, or, with a step, every so many-th.
        spec: how it was quantized before it was joined; None if it was not.
    """

    def __init__(self, whole: BoundLinear, rows: slice, spec: WeightSpec | None) -> None:
        self.whole, self.rows, self._spec = whole, rows, spec

    @property
    def weight(self) -> QTensor | Tensor:
        """As it was given; made anew."""
        whole = self.whole.weight
        if isinstance(whole, Tensor):
            return whole[self.rows]
        assert self._spec is not None
        by_turns = (self.rows.step or 1) > 1
        part = whole.in_order(torch.arange(whole.shape[0])[self.rows]) if by_turns else whole.rows(self.rows)
        if self._spec.granularity == part.spec.granularity:
            return part
        zero = None if part.zero is None else part.zero[:1, 0]
        return replace(part, spec=self._spec, scale=part.scale[:1, 0], zero=zero)

    def rounding(self, tokens: int, dtype: torch.dtype) -> Preparing | None:
        """As the whole's."""
        return self.whole.rounding(tokens, dtype)

    def __call__(self, x: Tensor | Rounded, residual: Tensor | None = None) -> Tensor:
        """``[..., K]``, or what :meth:`rounding` made of it, to ``[..., N]``; plus a residual, if one is given."""
        part = self.whole(x)[..., self.rows].contiguous()
        return part if residual is None else residual + part

    @cached_property
    def _all(self) -> range:
        return range(self.whole.held.n)

    def follows(self, other: Part) -> bool:
        """Whether its rows come right behind those of another part of the same weight."""
        step = self.rows.step or 1
        behind = other.rows.start + 1 if step > 1 else other.rows.stop
        return self.whole is other.whole and step == (other.rows.step or 1) and self.rows.start == behind


def whole_of(linears: Sequence[object]) -> BoundLinear | None:
    """The weight that linears are all of the rows of, in their order; None if they are not."""
    parts = [one for one in linears if isinstance(one, Part)]
    if not parts or len(parts) < len(linears) or parts[0].rows.start != 0:
        return None
    if not all(part.follows(before) for before, part in zip(parts, parts[1:], strict=False)):
        return None
    rows = sum(len(part._all[part.rows]) for part in parts)
    return parts[0].whole if rows == parts[0].whole.held.n else None


def by_turns(linear: object) -> bool:
    """Whether the rows of a linear take turns with those of another."""
    return isinstance(linear, Part) and (linear.rows.step or 1) > 1
