"""Rows of legalize/mixtures.py, of what was measured of experts: by themselves (gpu_tune_experts.csv) and in whole
steps (gpu_experts.csv), which read as many experts as expert_choices.csv counts. ``fit_plan.py`` writes, checks them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from common import RESULTS
from gpu_experts import SHAPES, weight_bytes

from isobit.formats.schemes import scheme as scheme_named
from isobit.kernels.gpu.expert_tiles import width_of
from isobit.legalize import cost as costs
from isobit.legalize import plan as plans
from isobit.legalize.mixtures import Around, Experts, Tiles, tiles
from isobit.legalize.plan import Request, plan
from isobit.models.workload import workload
from isobit.targets.prefill import prefill_chunk
from isobit.targets.spec import Board, Target
from isobit.targets.table import lookup

VENDORS = ("nvidia", "amd")
PROMPTS = ((8, 1024), (64, 64))  # of those that were measured; shorter ones take as long for what is beside them
WITHOUT_MEAN = "2026-11-29"  # since when
UNITS = {"fp8": "e4m3fn", "int4": "float16"}  # what multiplies experts on an H200


@dataclass(frozen=True)
class Step:
    """A measured step of decoding, or of prompts: of which model, how many sequences and tokens of each, how long."""

    shape: str
    scheme: str
    batch: int
    context: int
    seconds: float
    prompt: bool
    where: str

    @property
    def weights(self) -> str:
        """Whether the mean of int4's random weights was zero: ``with`` or ``without`` one."""
        return "with" if self.scheme == "int4" and self.where.split(", ")[1] < WITHOUT_MEAN else "without"

    @property
    def machine(self) -> tuple[Target, Board]:
        target, board = lookup(self.where.split(",")[0].removeprefix("NVIDIA "))
        assert board is not None
        return target, board


@dataclass(frozen=True)
class Tuned:
    """Gate, up and down of a layer by themselves, in the fastest tiles: microseconds together."""

    shape: str
    scheme: str
    tokens: int
    us: float

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Experts, active ones, width of the model, and of an expert."""
        config = SHAPES[self.shape]
        experts = config.get("num_experts") or config["num_local_experts"]
        return experts, config["num_experts_per_tok"], config["hidden_size"], inner(config)


def inner(config: dict[str, Any]) -> int:
    return int(config.get("moe_intermediate_size") or config["intermediate_size"])


def measured(path: Path = RESULTS / "gpu_experts.csv") -> list[Step]:
    """The newest figure of each step, and of the larger prompts in pieces of 2048 tokens."""
    found: dict[tuple[object, ...], Step] = {}
    with open(path, newline="") as file:
        for row in sorted(csv.DictReader(file), key=lambda row: row["date"]):
            where = f"{row['device']}, {row['date']}, commit {row['commit']}"
            batch, prompt, new = (int(row[name]) for name in ("batch", "prompt", "new"))
            one = row["shape"], row["scheme"], batch
            if row["step_ms"]:
                found[*one, "step"] = Step(*one, prompt + new // 2, float(row["step_ms"]) / 1e3, False, where)
            seconds = batch * prompt / float(row["prefill_tok_s"])
            longer = 2048 < int(row["piece"] or 0) <= batch * prompt
            if (batch, prompt) in PROMPTS and not longer:
                found[*one, prompt] = Step(*one, prompt, seconds, True, where)
    return list(found.values())


def tuned(path: Path = RESULTS / "gpu_tune_experts.csv") -> list[Tuned]:
    """What was measured of experts by themselves."""
    best: dict[tuple[str, str, int, str], float] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            key = row["shape"], row["scheme"], int(row["tokens"]), row["linear"]
            best[key] = min(best.get(key, 1e9), float(row["us"]))
    cases = dict.fromkeys(key[:3] for key in best)
    return [Tuned(*case, sum(us for key, us in best.items() if key[:3] == case)) for case in cases]


@cache
def counted(path: Path = RESULTS / "expert_choices.csv") -> dict[tuple[str, str, str, int], Tiles]:
    """How the tokens of steps lay in tiles: (shape, scheme, with a mean of weights or without, tokens) -> that."""
    found = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            tokens, experts, active = (int(row[name]) for name in ("batch", "experts", "active"))
            width, pairs = width_of(tokens, tokens * active, experts), tokens * active
            lie = Tiles(width, float(row["tiles"]), float(row["read"]), pairs)
            found[row["shape"], row["scheme"], row["mean"], tokens] = lie
    return found


def planned(
    step: Step, experts: tuple[Experts, ...] | None = None, around: Around | None = None, *, chance: bool = False
) -> float:
    """Seconds that a plan says for a step, with other rows than those in use; by chance, or as its tokens chose."""
    tokens = _tokens(step)
    lie = None if chance else counted().get((step.shape, step.scheme, step.weights, tokens))

    def lying(*sizes: int) -> Tiles:
        return lie if lie is not None and sizes[0] == tokens else tiles(*sizes)

    target, board = step.machine
    with (
        patch.object(plans, "piece", lambda target, hidden, longest, **rest: prefill_chunk(target, hidden)),  # as then
        patch.object(costs, "EXPERTS", costs.EXPERTS if experts is None else experts),
        patch.object(costs, "AROUND", around or costs.AROUND),
        patch.object(costs, "tiles", lying),
    ):  # fmt: skip
        found = plan(
            workload(SHAPES[step.shape]), scheme_named(step.scheme), target, board, Request(step.context, step.batch)
        ).cost
    assert found is not None
    return step.batch * step.context / found.prefill if step.prompt else step.batch / found.decode


def limit(step: Step) -> float:
    """How far a plan may be off: more of prompts, and of choices that were counted in another run."""
    return 0.2 if step.prompt else 0.15 if step.weights == "with" else 0.1


def apart(step: Step, *, chance: bool = False) -> float:
    """A plan's speed over the measured one."""
    return step.seconds / planned(step, chance=chance)


def _tokens(step: Step) -> int:
    """Of a step: those of prompts come in pieces of 2048."""
    return min(2048, step.batch * step.context) if step.prompt else step.batch


@dataclass(frozen=True)
class Alone:
    """What is known of a layer's experts by themselves, of one that :class:`Tuned` measured.

    Attributes:
        seconds: that were measured.
        reads: those for reading the experts at the whole bandwidth.
        weights: in all tiles together.
        multiplied: operations of all tiles.
        width: of a tile.
    """

    seconds: float
    reads: float
    weights: float
    multiplied: float
    width: int


def alone(one: Tuned, board: Board) -> Alone:
    """What the model has of it."""
    experts, active, hidden, inner = one.sizes
    lie, row = tiles(one.tokens, experts, active), scheme_named(one.scheme)
    bytes_of = weight_bytes(row, 2 * inner, hidden) + weight_bytes(row, hidden, inner)
    weights = 3 * hidden * inner * lie.count
    return Alone(
        one.us / 1e6, bytes_of * lie.experts / board.bandwidth, weights, 2.0 * weights * lie.width, lie.width
    )  # fmt: skip


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and height at zero of the line nearest to points, by what they are off in proportion."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    x0, y0 = (sum(w * point[at] for w, point in zip(weights, points, strict=True)) / total for at in (0, 1))
    slope = sum(w * (x - x0) * (y - y0) for w, (x, y) in zip(weights, points, strict=True))
    slope /= sum(w * (x - x0) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    return slope, y0 - slope * x0


def fitted() -> tuple[tuple[Experts, ...], Around]:
    """The rows of experts, and of what is around them."""
    steps = measured()
    target, board = steps[0].machine
    where, device = (target.name,), steps[0].where.split(",")[0]
    found = {name: [alone(one, board) for one in tuned() if one.scheme == name] for name in ("fp8", "int4")}
    slope, height = line([(one.reads, one.seconds) for one in found["fp8"] if one.width < 64])
    reading, launch = round(1 / slope, 3), round(height / 2, 8)
    source = f"{device}: experts by themselves, random choices (benchmarks/results/gpu_tune_experts.csv)"
    around = Around(((1, 0.0),), where, "")

    def rows(unpacking: float, wide: float) -> tuple[Experts, ...]:
        parts = {name: products(found[name], launch, board, unit) for name, unit in UNITS.items()}
        eight = (*parts["fp8"], (128, wide))
        return (
            Experts(VENDORS, "e4m3fn", True, "channel", 0, reading, 0.0, eight, launch, where, source),
            Experts(VENDORS, "int4", False, "group", 128, reading, unpacking, parts["int4"], launch, where, source),
            Experts(
                VENDORS,
                "bfloat16",
                False,
                "",
                0,
                reading,
                0.0,
                parts["int4"],
                launch,
                (),
                f"assumed: {source}",
            ),
        )

    plain = dict(board.rates)["f32"] * 1e12
    unpacking = mean(one.weights / (one.seconds - 2 * launch) for one in found["int4"] if one.width < 64) / plain
    (alike,) = (one for one in steps if not one.prompt and one.scheme == "int4" and one.batch == 64)
    (last,) = (one for one in steps if one.prompt and one.shape == "mixtral-8x7b" and one.batch == 64)
    by_itself, wide = unpacking, 0.5
    for _ in range(6):  # each says something of the others
        around = surroundings(steps, rows(unpacking, wide), where)
        wide *= planned(last, rows(unpacking, wide), around) / last.seconds
        # Faster where tokens choose alike than by itself, for random choices: as far from the one as from the other.
        unpacking *= (planned(alike, rows(unpacking, wide), around) / alike.seconds * by_itself / unpacking) ** 0.5
    return rows(round(unpacking, 4), round(wide, 3)), around


def products(found: list[Alone], launch: float, board: Board, unit: str) -> tuple[tuple[int, float], ...]:
    """How much of a unit's rate wide tiles reach."""
    rate = 1e12 * (board.tops(unit) or 1.0)
    return tuple(
        (one.width, round(one.multiplied / (one.seconds - 2 * launch) / rate, 3)) for one in found if one.width >= 64
    )


def surroundings(steps: list[Step], rows: tuple[Experts, ...], where: tuple[str, ...]) -> Around:
    """What is left of whole steps."""
    nothing, points = Around(((1, 0.0),), where, ""), []
    for tokens in (1, 8, 64, 2048):
        some = [one for one in steps if one.batch == tokens and not one.prompt]
        some = some or [one for one in steps if one.context == 1024 and one.scheme == "fp8"]
        pieces = [
            workload(SHAPES[one.shape]).layers * max(1.0, one.prompt * one.batch * one.context / 2048) for one in some
        ]
        left = [(one.seconds - planned(one, rows, nothing)) / count for one, count in zip(some, pieces, strict=True)]
        points.append((tokens, round(max(0.0, mean(left)), 8)))
    device, date = steps[0].where.split(", ")[:2]
    return Around(tuple(points), where, f"{device}, {date}: steps of two mixtures (benchmarks/results/gpu_experts.csv)")
