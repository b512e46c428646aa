"""How the steps of many sequences compare with bytes over bandwidth: what was measured of whole steps, by their size.

A step of one sequence is bound by reading weights. With more of them other kernels run, activations weigh more, and
attention reads many caches: whole steps were measured through the engine, and their rows say how much longer they take
than :mod:`isobit.legalize.cost` would have it by itself. ``benchmarks/fit_plan.py`` makes the rows (``pace_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isobit.legalize.exact import bits
from isobit.legalize.ops import Op
from isobit.targets.spec import Target


@dataclass(frozen=True)
class Pace:
    """Whole steps of one format.

    Attributes:
        vendors: whose devices.
        weights: element format of the weights.
        rounded: whether activations are.
        granularity: what shares a scale of the weights; empty for those that have none.
        group: weights that share one, of ``group``; else 0.
        points: (sequences, how many times as long as predicted everything but attention takes), by sequences.
        attention: how many times as long attention takes.
        measured_on: names of targets.
        source: which measurement.
    """

    vendors: tuple[str, ...]
    weights: str
    rounded: bool
    granularity: str
    group: int
    points: tuple[tuple[int, float], ...]
    attention: float
    measured_on: tuple[str, ...]
    source: str

    def is_of(self, op: Op) -> bool:
        """Whether just such weights and activations were measured, and not only their width."""
        return (self.weights, self.rounded, self.granularity, self.group) == op.timed_as

    def at(self, sequences: int) -> float:
        """The factor for so many sequences: between points by the logarithm of their number, beyond them the last."""
        below = [point for point in self.points if point[0] <= sequences]
        above = [point for point in self.points if point[0] > sequences]
        if not below or not above:
            return (below[-1] if below else above[0])[1]
        (first, a), (last, b) = below[-1], above[0]
        return a + (b - a) * math.log(sequences / first) / math.log(last / first)


EXPECTED = Pace((), "", False, "", 0, ((1, 1.0),), 1.0, (), "")  # as it is predicted


def pace(op: Op, target: Target, rows: Sequence[Pace]) -> Pace:
    """The row for a model most of whose weights are an op's, on a target: of its format, or of one as wide."""
    mine = [row for row in rows if target.vendor in row.vendors]

    def apart(row: Pace) -> tuple[int, bool, bool]:
        return abs(bits(row.weights) - bits(op.w)), row.rounded != (op.activations is not None), row.weights != op.w

    return min(mine, key=apart, default=EXPECTED)
