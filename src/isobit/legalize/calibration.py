"""What was measured on a machine, put in place of what is predicted for it.

`isobit bench` measures a model; each figure is kept beside what the plan said of the same case. A later plan for the
same machine, software and formats takes the nearest of them: its prediction is scaled by what the other's was wrong by,
which for the same case gives what was measured. Figures of models of quite another size say nothing: they are not used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from isobit.kernels import backends
from isobit.kernels import gpu as gpu_kernels
from isobit.kernels.cpu import library as cpu_library
from isobit.legalize.cost import Cost
from isobit.legalize.efficiency import EFFICIENCIES, ENGINES, LAUNCHES
from isobit.legalize.ops import Op
from isobit.legalize.plan import Plan
from isobit.targets.detect import usable_cores
from isobit.targets.spec import Board, Target
from isobit.version import __version__

Phase = Literal["decode", "prefill"]

MOST_APART = 4.0  # how many times larger or smaller a model, a batch or a context may be than what was measured
_SAME = 1.001
# What others than a measured case go by. A step of fewer bytes may be read from caches, and no step then shows whether
# the bandwidth measured beside it is what memory gives; two rounds may both be slow; and where rounds or readings are
# farther apart than these, something else was running.
ENOUGH_BYTES, ENOUGH_ROUNDS = 64 << 20, 3
ROUNDS_APART, READINGS_APART, ABOVE_MEMORY = 1.5, 1.25, 1.1


@dataclass(frozen=True)
class Measurement:
    """One figure of one model on one machine.

    Attributes:
        machine: what it was measured on; see :func:`machine_key`.
        machine_title: the same for people.
        software: what measured; see :func:`software_key`.
        date: of the measurement, as YYYY-MM-DD.
        model: what people call it.
        formats: of its weights, activations and cache, and how they are computed; see :func:`formats_key`.
        phase: decoding, or reading a prompt.
        batch: sequences at once.
        context: tokens of each.
        size: of the work: bytes read in a step, or operations for a token of a prompt.
        seconds: of a step; or for a token of a prompt.
        predicted: the same, as the plan had it with ``bandwidth`` in place of an estimated one.
        bandwidth: bytes per second that the machine read in the same run.
        steady: whether ``bandwidth`` may be taken for other models, too: :func:`doubt_of_bandwidth` found nothing.
    """

    machine: str
    machine_title: str
    software: str
    date: str
    model: str
    formats: str
    phase: Phase
    batch: int
    context: int
    size: float
    seconds: float
    predicted: float
    bandwidth: float
    steady: bool = False

    @property
    def place(self) -> tuple[object, ...]:
        """What a newer measurement of the same takes the place of."""
        return self.machine, self.software, self.formats, self.phase, self.batch, self.context, self.size

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def of(data: Any) -> Measurement:
        """From plain data.

        Raises:
            ValueError: it is none.
        """
        names: dict[str, Any] = {field.name: field.type for field in fields(Measurement)}
        del names["steady"]  # older files do not say it
        if not isinstance(data, dict) or data.keys() - {"steady"} != names.keys():
            raise ValueError(f"a measurement has {', '.join(names)}")
        if not isinstance(data.get("steady", False), bool):
            raise ValueError(f"steady is {data['steady']!r:.80}")
        for name, kind in names.items():
            value: Any = data[name]
            number = not isinstance(value, bool) and isinstance(value, (int, float) if kind == "float" else int)
            if not (isinstance(value, str) if kind == "str" or name == "phase" else number and 0 < value < 1e30):
                raise ValueError(f"{name} is {value!r:.80}")
        if data["phase"] not in ("decode", "prefill"):
            raise ValueError(f"phase is {data['phase']!r:.80}")
        return Measurement(**data)


def machine_key(target: Target, board: Board) -> str:
    """A machine: what it is, how large, and of a CPU its cores; a fingerprint that says nothing else of it."""
    told = (target.name, board.machine or board.name, board.memory, board.source if target.vendor == "cpu" else "")
    return hashlib.sha256(repr(told).encode()).hexdigest()[:24]


@cache
def software_key(gpu: bool) -> str:
    """What computes, and what predicts: other kernels have other speeds, and other predictions are wrong by another."""
    told: list[object] = [__version__, repr((EFFICIENCIES, ENGINES, LAUNCHES))]
    told += [_version(name) for name in ("torch", "triton")] if gpu else [_version("torch")]
    if gpu:
        folder = Path(gpu_kernels.__file__).parent
        told += [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    else:
        threads = cpu_library.wanted_threads().count
        told += [cpu_library.built(), threads, backends.forced()]
        if threads < usable_cores():  # before, plans were made for all cores whatever ran
            told.append("planned for its threads")
        told.append(os.environ.get("ISOBIT_ISA", ""))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def formats_key(plan: Plan) -> str:
    """What most of the time goes by: formats of weights, activations and cache, and what multiplies them."""
    op, lowering = plan.main
    cache = next((one.kv for one, _ in plan.ops if one.kind == "attention"), "")
    how = getattr(lowering, "compute", "")
    return f"{plan.target.name}: {_weights(op)} by {op.a}, in {how}, activations {op.dtype}, cache {cache}"


def _weights(op: Op) -> str:
    spec = op.weights
    if spec is None:
        return op.w
    shared = spec.group or ("x".join(map(str, spec.block)) if spec.block else "")
    return f"{spec.element} {spec.granularity}{shared}{'' if spec.symmetric else ' asymmetric'}"


def doubt_of_rounds(seconds: Sequence[float]) -> str | None:
    """Why a case's figure says nothing of the next run of it: for people; None where nothing speaks against it.

    Args:
        seconds: of each round, in the order in which they ran.
    """
    if max(seconds) <= ROUNDS_APART * min(seconds):
        return None
    return (
        f"its {len(seconds)} rounds took {1e3 * min(seconds):.3g} to {1e3 * max(seconds):.3g} ms: something else was"
        " running"
    )


def doubt_of_bandwidth(readings: Sequence[float], rounds: int, step_bytes: float, share: float | None) -> str | None:
    """Why a measured bandwidth says nothing of other models: for people; None where nothing speaks against it.

    Args:
        readings: bytes per second, all of a run.
        rounds: of each case.
        step_bytes: that the largest step read.
        share: of what memory gave in a step's time, how much a step read, at most; None where no step was planned.
    """
    if step_bytes < ENOUGH_BYTES:
        return f"a step reads {step_bytes / 1e6:.3g} MB, less than {ENOUGH_BYTES / 1e6:.3g}, which caches may hold"
    if rounds < ENOUGH_ROUNDS:
        return f"{rounds} {'round is' if rounds == 1 else 'rounds are'} fewer than {ENOUGH_ROUNDS}"
    low, high = min(readings), max(readings)
    if high > READINGS_APART * low:
        return f"memory gave {low / 1e9:.3g} to {high / 1e9:.3g} GB/s: something else was running"
    if share is not None and share > ABOVE_MEMORY:
        return f"steps read {share:.2f} times what memory gave: one of the two was measured in a slow moment"
    return None


def with_bandwidth(machine: str, software: str, board: Board, found: Sequence[Measurement]) -> Board:
    """The board of a machine whose bandwidth is only estimated, with the one measured there last by what runs now."""
    mine = (one for one in reversed(found) if one.steady and (one.machine, one.software) == (machine, software))
    last = next(mine, None)
    if not board.estimated or last is None:
        return board
    return replace(board, bandwidth=last.bandwidth)


def calibrated(plan: Plan, again: Callable[[Board], Plan], machine: str, found: Iterable[Measurement]) -> Plan:
    """A plan with the speed that measurements of its machine give it, where there are any.

    Args:
        plan: made for the board that :func:`with_bandwidth` gives.
        again: makes it for another one.
        machine: its key, made of the board as it was before.
        found: all there are.
    """
    if plan.cost is None:
        return plan
    software, formats = software_key(plan.target.is_gpu), formats_key(plan)
    mine = [one for one in found if (one.machine, one.software, one.formats) == (machine, software, formats)]
    decode, prefill = nearest(plan, "decode", mine), nearest(plan, "prefill", mine)
    used = [one for one in (decode, prefill) if one is not None]
    if not used:
        return plan

    def predicted(one: Measurement) -> Cost:
        """With the bandwidth that was measured beside it."""
        board = replace(plan.board, bandwidth=one.bandwidth) if plan.board.estimated else plan.board
        found = plan.cost if board == plan.board else again(board).cost
        assert found is not None
        return found

    cost, sources = plan.cost, [_source(one) for one in used]
    if decode is not None:
        cost = replace(cost, decode=predicted(decode).decode * decode.predicted / decode.seconds)
    if prefill is not None:
        cost = replace(cost, prefill=predicted(prefill).prefill * prefill.predicted / prefill.seconds)
    cost = replace(cost, measured=True, sources=(*cost.sources, *sources))
    return replace(plan, cost=cost, measured_here=_said(plan, used))


def alike(predicted: Sequence[Plan], found: Sequence[Plan]) -> list[Plan]:
    """Plans of one machine, those without a measurement scaled by what predictions of the others were wrong by.

    Else what was measured would be compared with what was predicted, and the better of two schemes would be the one
    whose figure is not known.

    Args:
        predicted: plans of several schemes, before anything was measured.
        found: the same with measurements, where there are any.
    """
    names, decodes, prefills = [], [], []
    for a, b in zip(predicted, found, strict=True):
        if b.measured_here and a.cost is not None and b.cost is not None:
            names.append(b.scheme)
            decodes.append(math.log(b.cost.decode / a.cost.decode))
            prefills.append(math.log(b.cost.prefill / a.cost.prefill))
    if not names:
        return list(found)
    decode, prefill = (math.exp(sum(logs) / len(logs)) for logs in (decodes, prefills))

    def scaled(plan: Plan) -> Plan:
        if plan.measured_here or plan.cost is None:
            return plan
        cost = replace(plan.cost, decode=plan.cost.decode * decode, prefill=plan.cost.prefill * prefill, measured=False)
        said = (
            f"not measured here: predicted, times {decode:.2f} ({prefill:.2f} for prompts) as {', '.join(names)} was"
            " found to be"
        )
        return replace(plan, cost=cost, measured_here=said)

    return [scaled(plan) for plan in found]


def nearest(plan: Plan, phase: Phase, found: Iterable[Measurement]) -> Measurement | None:
    """The measurement most like a plan's case; None where none is like it."""
    assert plan.cost is not None
    case = _case(plan, phase)

    def apart(one: Measurement) -> list[float]:
        return [abs(math.log(a / b)) for a, b in zip(case, (one.size, one.batch, one.context), strict=True)]

    limits = (MOST_APART, MOST_APART, math.inf if phase == "decode" else MOST_APART)
    near = [
        one
        for one in found
        if one.phase == phase and all(gap <= math.log(most) for gap, most in zip(apart(one), limits, strict=True))
    ]
    return min(reversed(near), key=lambda one: sum(apart(one)), default=None)


def _case(plan: Plan, phase: Phase) -> tuple[float, float, float]:
    """(size, batch, context) of a plan."""
    assert plan.cost is not None
    size = plan.cost.step_bytes if phase == "decode" else plan.cost.token_operations
    return size, plan.request.batch if phase == "decode" else 1, plan.request.context


def _source(one: Measurement) -> str:
    what = f"{one.batch} x {one.context} tokens" if one.phase == "decode" else f"a prompt of {one.context}"
    return f"{one.phase}: measured here on {one.date}: {one.model}, {what} (isobit bench)"


def _said(plan: Plan, used: Sequence[Measurement]) -> str:
    dates = " and ".join(dict.fromkeys(one.date for one in used))
    decode = next((one for one in used if one.phase == "decode"), None)
    if decode is None:
        return f"prompt speed goes by what was measured here on {dates}"
    pairs = zip(_case(plan, "decode"), (decode.size, decode.batch, decode.context), strict=True)
    if all(1 / _SAME < a / b < _SAME for a, b in pairs):
        return f"speed measured here on {dates}"
    case = f"{decode.model}, {decode.batch} x {decode.context} tokens"
    return f"speed goes by what was measured here on {dates} ({case})"
