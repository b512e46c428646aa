"""A model benched: what was measured beside what the plan says of the same, and what of it later plans may use."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from isobit.engine.generate import require_room
from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, UsageError
from isobit.evaluation import bench
from isobit.evaluation.bench import Case, Measured
from isobit.evaluation.paths import hardware, layer_kernels, linear_kernels
from isobit.formats.caches import BLOCK, CacheFormat, cache_format
from isobit.formats.schemes import Scheme
from isobit.formats.schemes import scheme as scheme_named
from isobit.kernels.cpu import library as cpu_library
from isobit.legalize.calibration import (
    Measurement,
    Phase,
    doubt_of_bandwidth,
    doubt_of_rounds,
    formats_key,
    machine_key,
    software_key,
)
from isobit.legalize.plan import Plan, Request, plan
from isobit.legalize.workload import Workload, as_loaded
from isobit.models.decoder import Decoder
from isobit.models.opening import require_family
from isobit.models.planning import described, locate
from isobit.models.room import Room
from isobit.models.weights import load_model
from isobit.targets.detect import detect
from isobit.targets.here import here
from isobit.targets.prefill import prefill_chunk
from isobit.targets.spec import Board, Target
from isobit.targets.table import target as target_named


@dataclass(frozen=True)
class Figure:
    """A case measured and planned.

    Attributes:
        phase: what it is about: decoding, or reading a prompt.
        measured: what came of it.
        planned: the plan, by its tables alone; its ``cost`` may be None.
    """

    phase: Phase
    measured: Measured
    planned: Plan

    @property
    def speed(self) -> float:
        """Tokens per second: of all answers together, or of the prompt."""
        return self.measured.decode if self.phase == "decode" else self.measured.prefill

    @property
    def predicted(self) -> float | None:
        """The same, as planned."""
        cost = self.planned.cost
        return None if cost is None else cost.decode if self.phase == "decode" else cost.prefill

    @property
    def share(self) -> float | None:
        """Of the bytes that memory gives in a step's time, how many the step reads, as the plan counts them."""
        cost = self.planned.cost
        return None if cost is None else cost.step_bytes / self.measured.step / self.measured.bandwidth

    @property
    def doubt(self) -> str | None:
        """Why later plans do not use it; None where they may."""
        if self.planned.cost is None:
            return "no plan has figures for it"
        return doubt_of_rounds(self.measured.rounds if self.phase == "decode" else self.measured.prompts)

    @property
    def title(self) -> str:
        """What was run, for people."""
        case = self.measured.case
        return f"{case.batch} behind {case.prompt} tokens" if self.phase == "decode" else f"a prompt of {case.prompt}"


@dataclass(frozen=True)
class Bench:
    """What was measured of one model.

    Attributes:
        model: as it was named.
        title: what it is.
        hardware: what ran it.
        target: whose lowering.
        kernels: of linears, and of the rest of the layers.
        dtype: of activations.
        threads: of a CPU; 0 on a GPU.
        bandwidth: bytes per second that memory gave in the same run.
        figures: by case.
        measurements: what later plans of this machine may use; none where another card's lowering ran.
        unkept: why figures are not among them, for people.
        estimated: whether plans of this machine guess its bandwidth where none was measured.
        notes: of the model.
    """

    model: str
    title: str
    hardware: str
    target: str
    kernels: tuple[str, str]
    dtype: str
    threads: int
    bandwidth: float
    figures: tuple[Figure, ...]
    measurements: tuple[Measurement, ...]
    unkept: tuple[str, ...]
    estimated: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Planner:
    """Plans of one model for the machine that ran it; not ``timed`` where none counts what it reads."""

    work: Workload
    row: Scheme | None
    target: Target
    board: Board
    kv: str | None
    timed: bool = True

    def __call__(self, case: Case, phase: Phase, board: Board | None = None) -> Plan:
        context = case.context if phase == "decode" else case.prompt
        request = Request(min(context, self.work.max_context), case.batch if phase == "decode" else 1, self.kv)
        found = plan(self.work, self.row, self.target, board or self.board, request)
        return found if self.timed else replace(found, cost=None)


def run(
    folder: Path,
    name: str,
    *,
    device: str,
    lowering: str | None,
    dtype: str | None,
    batches: Sequence[int],
    prompt: int,
    new: int,
    context: int | None,
    rounds: int,
    kv_cache: str,
    memory: int | None,
    progress: Callable[[str], object],
) -> Bench:
    """Benches a checkpoint; :func:`isobit.api.bench` says what the arguments are.

    Raises:
        IsobitError: it cannot be loaded, or its context is too short for what is asked.
    """
    progress("loading")
    require_family(folder)
    tokenizer = Tokenizer.from_folder(folder)
    left = require_room(folder, device, memory, kv_cache, max(batches))
    if left is not None:  # what cannot be run is refused before a tensor is read
        _cache_tokens(bench.cases(batches, prompt, new, context, left.context), left)
    model = load_model(folder, dtype=dtype, device=device, lowering=lowering, kv_cache=kv_cache)
    longest = int(model.config.max_context)
    cases = bench.cases(batches, prompt, new, context, longest)
    wide = None if left is None else left.piece
    chunk = min(wide or prefill_chunk(model.place.target, model.config.hidden_size), longest - 2)
    if chunk < 1:
        raise UsageError(f"this model's context of {longest} tokens leaves nothing to measure")
    asked: list[tuple[Phase, Case]] = [
        *(("decode", case) for case in cases),
        ("prefill", Case(1, chunk, bench.PROMPT_NEW)),
    ]
    tokens = _cache_tokens([case for _, case in asked], left)
    planner = _planner(folder, model, cache_format(kv_cache))
    reader = bench.reader(model)
    llm = LLM(
        model, tokenizer, sequences=max(case.batch for _, case in asked), prefix_cache=False,
        cache_tokens=tokens, wide=wide,
    )  # fmt: skip
    figures = []
    for phase, case in asked:
        progress(f"{case.batch} x ({case.prompt} + {case.new}) tokens")
        measured = bench.measure(llm, case, reader.memory, rounds=rounds)
        figures.append(Figure(phase, measured, planner(case, phase)))
    machine = detect()
    on_cpu = model.place.tensors.type == "cpu"
    kept, unkept = _kept_and_not(figures, planner, name) if lowering is None else ((), (_OTHER_CARD,))
    return Bench(
        model=name,
        title=planner.work.title,
        hardware=hardware(model, machine),
        target=planner.target.name,
        kernels=(linear_kernels(model), layer_kernels(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=(cpu_library.threads() if cpu_library.problem() is None else torch.get_num_threads()) if on_cpu else 0,
        bandwidth=max(one.measured.bandwidth for one in figures),
        figures=tuple(figures),
        measurements=kept,
        unkept=unkept,
        estimated=planner.board.estimated,
        notes=tuple(llm.notes),
    )


def _cache_tokens(cases: Iterable[Case], left: Room | None) -> int:
    """Tokens of the cache that some cases need.

    Raises:
        CapacityError: there is no room for it.
    """
    tokens = BLOCK * max(case.blocks for case in cases)
    if left is not None and tokens > left.tokens:
        raise CapacityError(
            f"these cases need a cache of {tokens} tokens, and there is room for {left.tokens} ({left}): ask for fewer"
            " sequences at once, or shorter ones"
        )
    return tokens


def _planner(folder: Path, model: Decoder, cache: CacheFormat) -> _Planner:
    """What plans the model as it was loaded."""
    work = described(*locate(folder))
    found = here(cpu_library.wanted_threads())
    target, board = next(pair for pair in found if pair[0].is_gpu == (model.place.target is not None))
    if model.place.target is not None and model.place.target.name != target.name:
        target = target_named(model.place.target.name)
    row, on_gpu = as_loaded(work, target), model.place.target is not None
    if on_gpu and row is not None:  # in the dtype that was asked for
        row = scheme_named("f16" if model.dtype == torch.float16 else "bf16")
    wide = on_gpu and model.dtype == torch.float32  # which plans do not have there
    return _Planner(work, row, target, board, cache.kv or None, timed=not wide)


_OTHER_CARD = "nothing is kept for plans: another card's lowering ran"


def _kept_and_not(
    figures: Sequence[Figure], planner: _Planner, name: str
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """What later plans may use, and why they may not use the rest."""
    unkept = [f"{one.title}: {one.doubt}" for one in figures if one.doubt is not None]
    trusted = [one for one in figures if one.doubt is None]
    doubt = None
    if trusted and planner.board.estimated:
        doubt = doubt_of_bandwidth(
            [one for figure in figures for one in figure.measured.readings],
            len(trusted[0].measured.rounds),
            max(one.planned.cost.step_bytes for one in figures if one.planned.cost is not None),
            max((one.share for one in trusted if one.phase == "decode" and one.share is not None), default=None),
        )
        if doubt is not None:
            unkept.append(f"the memory's bandwidth, for plans of other models: {doubt}")
    return tuple(_kept(one, planner, name, doubt is None) for one in trusted), tuple(unkept)


def _kept(figure: Figure, planner: _Planner, name: str, steady: bool) -> Measurement:
    """What a later plan needs to know of a figure."""
    measured, case = figure.measured, figure.measured.case
    board = planner.board
    known = replace(board, bandwidth=measured.bandwidth) if board.estimated else board
    cost = planner(case, figure.phase, known).cost
    assert cost is not None
    decode = figure.phase == "decode"
    return Measurement(
        machine=machine_key(planner.target, board),
        machine_title=board.name,
        software=software_key(planner.target.is_gpu),
        date=datetime.date.today().isoformat(),
        model=name,
        formats=formats_key(figure.planned),
        phase=figure.phase,
        batch=figure.planned.request.batch,
        context=figure.planned.request.context,
        size=cost.step_bytes if decode else cost.token_operations,
        seconds=measured.step if decode else 1 / measured.prefill,
        predicted=case.batch / cost.decode if decode else 1 / cost.prefill,
        bandwidth=measured.bandwidth,
        steady=steady,
    )
