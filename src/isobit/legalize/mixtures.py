"""What the experts of a mixture take on a GPU: weights read once for each tile of tokens, products, and what surrounds
them.

Tokens are put into tiles by expert (``kernels/gpu/expert_tiles.py``), so that one launch runs all of a layer. Rows of
:class:`Experts` say what such a launch was measured to reach, :class:`Around` what choosing experts and adding up their
results take; ``benchmarks/fit_plan.py`` makes both (``pace_rows``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from isobit.kernels.gpu.expert_tiles import width_of
from isobit.legalize.exact import bits
from isobit.legalize.ops import Op
from isobit.targets.spec import Board, Target

LAUNCHES = 2 / 3  # of each of gate, up and down: the first two are one
RESULT = 4  # bytes for a result of an expert, written or read while nothing else is
_EXACT = 4096  # tokens up to which the chances of an expert are added one by one


@dataclass(frozen=True)
class Experts:
    """Linears of experts in one format.

    Attributes:
        vendors: whose devices.
        weights: element format of the weights.
        rounded: whether activations are.
        granularity: what shares a scale of the weights; empty for those that have none.
        group: weights that share one, of ``group``; else 0.
        reading: part of the memory's bandwidth at which weights are read.
        unpacking: weights that are decoded in registers, for each multiplication or addition that the board can do in
            float32 meanwhile; 0 where units take them as they are.
        multiplying: (tokens of a tile, part of the unit's rate), by tokens.
        launch: seconds of a launch beside all that.
        measured_on: names of targets.
        source: which measurement.
    """

    vendors: tuple[str, ...]
    weights: str
    rounded: bool
    granularity: str
    group: int
    reading: float
    unpacking: float
    multiplying: tuple[tuple[int, float], ...]
    launch: float
    measured_on: tuple[str, ...]
    source: str

    def is_of(self, op: Op) -> bool:
        """Whether just such weights and activations were measured, and not only their width."""
        return (self.weights, self.rounded, self.granularity, self.group) == op.timed_as

    def seconds(self, op: Op, weight_bytes: float, tiles: Tiles, rate: float, board: Board) -> float:
        """For all layers.

        Args:
            op: one of their linears.
            weight_bytes: of all experts.
            tiles: of a layer.
            rate: operations a second of what multiplies.
            board: what runs it.
        """
        weights = op.n * op.k * op.calls  # of one expert of each layer
        reads = weight_bytes * tiles.experts / op.experts / (board.bandwidth * self.reading)
        unpacks = weights * tiles.count / (self.unpacking * dict(board.rates)["f32"] * 1e12) if self.unpacking else 0.0
        multiplies = 2.0 * weights * tiles.count * tiles.width / (rate * self.part(tiles.width))
        results = RESULT * op.n * op.calls * tiles.pairs / board.bandwidth
        return max(reads, unpacks, multiplies) + results + op.calls * LAUNCHES * self.launch

    def part(self, width: int) -> float:
        """How much of the unit's rate tiles of so many tokens reach, by the widest of no more that were measured."""
        return next((part for tokens, part in reversed(self.multiplying) if tokens <= width), self.multiplying[0][1])


@dataclass(frozen=True)
class Around:
    """What a layer of experts has beside its linears: choice, places, rounding and sums.

    Attributes:
        points: (tokens of a step, seconds for a layer), by tokens.
        measured_on, source: as of :class:`Experts`.
    """

    points: tuple[tuple[int, float], ...]
    measured_on: tuple[str, ...]
    source: str

    def at(self, tokens: int) -> float:
        """Seconds for so many tokens: between points by the logarithm of their number, beyond them in proportion."""
        below = [point for point in self.points if point[0] <= tokens]
        above = [point for point in self.points if point[0] > tokens]
        if not below or not above:
            return below[-1][1] * tokens / below[-1][0] if below else above[0][1]
        (first, a), (last, b) = below[-1], above[0]
        return a + (b - a) * math.log(tokens / first) / math.log(last / first)


@dataclass(frozen=True)
class Tiles:
    """How the tokens of a step lie in tiles, in a layer.

    Attributes:
        width: tokens of a tile.
        count: tiles.
        experts: that have any.
        pairs: of a token and an expert.
    """

    width: int
    count: float
    experts: float
    pairs: int


@lru_cache(maxsize=1024)
def tiles(tokens: int, experts: int, active: int) -> Tiles:
    """What is expected if each token chooses its experts by itself, and each expert is as likely as any other.

    Args:
        tokens: of a step.
        experts, active: of a layer, and of a token.
    """
    width, chance = width_of(tokens, tokens * active, experts), active / experts
    read = experts * (1.0 - (1.0 - chance) ** tokens)
    if chance >= 1.0:
        count = experts * float(-(-tokens // width))
    elif width == 1:
        count = float(tokens * active)
    elif tokens > _EXACT:
        count = experts * (tokens * chance / width + 0.5)  # the last tile of an expert is half full
    else:
        count = experts * _expected(tokens, chance, width)
    return Tiles(width, count, read, tokens * active)


def _expected(tokens: int, chance: float, width: int) -> float:
    """Tiles of an expert that each token chooses by a chance."""
    logs = math.lgamma(tokens + 1), math.log(chance), math.log1p(-chance)
    found = 0.0
    for n in range(1, tokens + 1):
        one = logs[0] - math.lgamma(n + 1) - math.lgamma(tokens - n + 1) + n * logs[1] + (tokens - n) * logs[2]
        found += math.exp(one) * -(-n // width)
    return found


def nearest(op: Op, target: Target, rows: Sequence[Experts]) -> Experts | None:
    """The row for experts of a format on a target, or of a format as wide; None where experts are as other linears."""
    mine = [row for row in rows if target.vendor in row.vendors]

    def apart(row: Experts) -> tuple[int, bool, bool]:
        return abs(bits(row.weights) - bits(op.w)), row.rounded != (op.activations is not None), row.weights != op.w

    return min(mine, key=apart, default=None)
