"""Makes src/isobit/legalize/pace_rows.py: how long whole steps take, by batch, of benchmarks/results/engine_decode.csv,
and what experts take, of gpu_experts.csv beside it (fit_mixtures.py).

    python benchmarks/fit_plan.py            # writes the file
    python benchmarks/fit_plan.py --check    # writes nothing; status 1 if a plan is far off: a tenth for most steps

Of each format the rows of the latest date and commit count, in the GPU's own lowering. Afterwards the plans that tests
and pages hold have to be made anew (docs/plan.md). Steps of mixtures are compared for the choices that their tokens
made (expert_choices.csv), and beside that for choices by chance, which plans are made for.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import fit_mixtures
from common import RESULTS
from shapes import SHAPES

from isobit.formats.schemes import scheme as scheme_named
from isobit.legalize.mixtures import Around, Experts
from isobit.legalize.ops import Op
from isobit.legalize.pace import Pace
from isobit.legalize.plan import Plan, Request, plan
from isobit.models.workload import workload
from isobit.targets.table import lookup

ROWS = Path(__file__).parents[1] / "src" / "isobit" / "legalize" / "pace_rows.py"
FITTED, CHECKED = ("7b",), ("8b",)  # shapes that rows are made of; that plans are compared with besides
HEAD = '''"""How long whole steps take, by format and batch. Made by benchmarks/fit_plan.py; not to be edited."""

from __future__ import annotations

from isobit.legalize.mixtures import Around, Experts
from isobit.legalize.pace import Pace

PACES: tuple[Pace, ...] = (
'''


@dataclass(frozen=True)
class Step:
    """A measured step: of which shape and scheme, how many sequences, behind how many tokens, how long."""

    shape: str
    scheme: str
    batch: int
    context: int
    seconds: float
    where: str


def measured(path: Path) -> list[Step]:
    """The steps of the latest commit that measured each shape and scheme."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["device"] != "CPU" and row["part"] in ("batch", "behind")]
    rows = [row for row in rows if not row["target"]]
    latest = {(row["shape"], row["scheme"]): (row["date"], row["commit"]) for row in rows}
    found: dict[tuple[str, str, int, int], Step] = {}
    for row in rows:
        if (row["date"], row["commit"]) == latest[row["shape"], row["scheme"]] and row["shape"] in FITTED + CHECKED:
            context = int(row["prompt"]) + int(row["new"]) // 2
            where = f"{row['device']}, {row['date']}, commit {row['commit']}"
            one = Step(row["shape"], row["scheme"], int(row["batch"]), context, float(row["step_ms"]) / 1e3, where)
            found[one.shape, one.scheme, one.batch, one.context] = one
    return list(found.values())


def planned(step: Step) -> Plan:
    """What the plan says of a step."""
    target, board = lookup(step.where.split(",")[0].removeprefix("NVIDIA "))
    assert board is not None
    work = workload(SHAPES[step.shape].config())
    return plan(work, scheme_named(step.scheme), target, board, Request(step.context, step.batch))


def split(step: Step) -> tuple[float, float]:
    """Seconds that a step would take by itself: attention, and all else."""
    cost: Any = planned(step).cost
    attention, rest = cost.attention / cost.pace_attention, cost.beside_attention / cost.pace
    return attention, rest


def fitted(steps: list[Step]) -> Pace:
    """The row of one scheme."""
    by_batch = sorted((one for one in steps if one.context < 1024), key=lambda one: one.batch)
    behind = [one for one in steps if one.context >= 1024 and one.batch == 1]
    first, attention = 1.0, 1.0
    for _ in range(8):  # each of the two says something of the other
        if by_batch:
            mine, rest = split(by_batch[0])
            first = (by_batch[0].seconds - attention * mine) / rest
        if behind:
            mine, rest = split(behind[0])
            attention = max(0.2, (behind[0].seconds - first * rest) / mine)
    points = []
    for one in by_batch:
        mine, rest = split(one)
        points.append((one.batch, round(max(0.1, (one.seconds - attention * mine) / rest), 3)))
    row = scheme_named(steps[0].scheme)
    element = row.weights.element if row.weights else {"bf16": "bfloat16", "f16": "float16"}[row.name]
    op = Op("linear", "any", 1, 1, row.weights, row.activations, dtype=element)
    target, _ = lookup(steps[0].where.split(",")[0].removeprefix("NVIDIA "))
    source = f"{steps[0].where}: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)"
    return Pace(
        ("nvidia", "amd"), *op.timed_as, tuple(points), round(attention, 3), (target.name,), source,
    )  # fmt: skip


def text(rows: list[Pace], experts: tuple[Experts, ...], around: Around) -> str:
    """The file."""
    lines = [line for row in rows for line in written(row)]
    lines += [")", "", "EXPERTS: tuple[Experts, ...] = (", *(line for row in experts for line in written(row)), ")", ""]
    (first, *fields), last = (line.removeprefix("    ") for line in written(around)[:-1]), ")"
    lines += [f"AROUND = {first}", *fields, last]
    return HEAD + "\n".join(lines).replace("'", '"') + "\n"


def written(row: Pace | Experts | Around) -> list[str]:
    """A row as the file has it."""
    return [f"    {type(row).__name__}(", *(f"        {value!r}," for value in astuple(row)), "    ),"]


def apart(step: Step) -> float:
    """A plan's decode speed over the measured one."""
    cost: Any = planned(step).cost
    return float(cost.decode * step.seconds / step.batch)


def main() -> int:
    """Fits and compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--csv", type=Path, default=RESULTS / "engine_decode.csv")
    args = parser.parse_args()
    steps = measured(args.csv)
    if not args.check:
        fit = [one for one in steps if one.shape in FITTED]
        names = list(dict.fromkeys(one.scheme for one in fit))
        paces = [fitted([one for one in fit if one.scheme == name]) for name in names]
        ROWS.write_text(text(paces, *fit_mixtures.fitted()))
        print(f"{ROWS} is written; run this with --check")
        return 0
    worst = 1.0
    for one in steps:
        ratio = apart(one)
        worst = max(worst, ratio, 1 / ratio)
        what = f"{one.shape} {one.scheme:<6} {one.batch:>4} x {one.context:<5}"
        print(f"{what} {1e3 * one.seconds:8.3f} ms  planned {ratio:.3f} of it")
    for mixed in fit_mixtures.measured():
        ratio, chance = (fit_mixtures.apart(mixed, chance=by_chance) for by_chance in (False, True))
        worst = max(worst, (max(ratio, 1 / ratio) - 1) / fit_mixtures.limit(mixed) * 0.1 + 1)
        what = f"{mixed.batch:>4} x {mixed.context:<5} {1e3 * mixed.seconds:8.3f} ms{' of prompts' * mixed.prompt}"
        print(f"{mixed.shape} {mixed.scheme:<5}{what}  planned {ratio:.3f} of it, by chance {chance:.3f}")
    return 0 if worst <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
