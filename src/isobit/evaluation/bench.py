"""How fast a loaded model answers through the engine, and how fast its device reads memory: measured in one run.

A case is so many prompts at once, of so many tokens, each answered with so many. What counts as decoding is steps in
which every one of them gets a token.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from isobit.engine.blocks import blocks_for
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.errors import CapacityError, UsageError
from isobit.evaluation.speed import Reader
from isobit.formats.caches import BLOCK
from isobit.models.decoder import Decoder

GPU_BUFFER_BYTES = 4 << 30
CPU_BUFFER_BYTES = 512 << 20
PROMPT_NEW = 2  # tokens of the answers of a case that is about prompts
MOST_AGAIN = 4  # runs that are made again because graphs were recorded in them
SETTLE_STEPS = 2  # the first steps of decoding in a round are not counted: prompts may still be on the way


@dataclass(frozen=True)
class Case:
    """What is measured: ``batch`` prompts of ``prompt`` tokens at once, ``new`` tokens of answer each."""

    batch: int
    prompt: int
    new: int

    @property
    def context(self) -> int:
        """Tokens of each sequence halfway through its answer: what attention reads on average."""
        return self.prompt + self.new // 2

    @property
    def blocks(self) -> int:
        """Blocks of the cache with which all of it runs at once: one for each sequence stays free when others come."""
        return self.batch * (blocks_for(self.prompt + self.new, BLOCK) + 1)


@dataclass(frozen=True)
class Round:
    """One run of a case.

    Attributes:
        steps: seconds of each step in which every sequence got a token, behind the first few.
        host: seconds of each of them in which the engine worked and did not wait for the model; None where that
            cannot be told.
        first: seconds until the first token of the first prompt.
        prefill: seconds until all prompts had their first token.
        whole: seconds until the last token.
    """

    steps: tuple[float, ...]
    host: tuple[float, ...] | None
    first: float
    prefill: float
    whole: float


@dataclass(frozen=True)
class Measured:
    """A case, measured; medians over steps and rounds.

    Attributes:
        case: it.
        step: seconds of a step.
        host: seconds of a step in which the host does not wait for the model; None where that cannot be told.
        first_token: seconds from the prompts' arrival to the first token.
        prefill: tokens per second of the prompts together, until each has its first token.
        whole: tokens of answers per second of the whole run, prompts included.
        bandwidth: bytes per second that the device read in the same run when it did nothing else.
        rounds: seconds of each run's median step.
        prompts: seconds of each run until all prompts had their first token.
        readings: bytes per second that the device read, before each run and behind the last.
    """

    case: Case
    step: float
    host: float | None
    first_token: float
    prefill: float
    whole: float
    bandwidth: float
    rounds: tuple[float, ...]
    prompts: tuple[float, ...]
    readings: tuple[float, ...]

    @property
    def decode(self) -> float:
        """Tokens per second of all sequences together."""
        return self.case.batch / self.step


@dataclass
class Waiting:
    """Counts the seconds that a model computes while the host waits, on a CPU: there they are the same thread's."""

    model: Decoder
    seconds: float = 0.0
    _forward: Callable[..., torch.Tensor] = field(init=False, repr=False)

    def __enter__(self) -> Waiting:
        self._forward = self.model.forward

        def forward(*args: object, **kwargs: object) -> torch.Tensor:
            begin = time.perf_counter()
            try:
                return self._forward(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        self.model.forward = forward  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self.model.forward  # the class's own again


_TILES = ((2048, 8), (4096, 16), (8192, 4))  # (words at once, how often) of a program that reads


class GpuReader:
    """Reads a GPU's memory and does nothing else."""

    def __init__(self, device: torch.device, nbytes: int = GPU_BUFFER_BYTES) -> None:
        free = torch.cuda.mem_get_info(device)[0]
        unit = 4 * max(size * steps for size, steps in _TILES)
        count = max(1, min(nbytes, free // 4) // unit)
        self._buffer = torch.zeros(count * unit // 4, dtype=torch.int32, device=device)
        programs = self._buffer.numel() // min(size * steps for size, steps in _TILES)
        self._sink = torch.empty(programs, dtype=torch.int32, device=device)
        self.memory()

    def memory(self) -> float:
        """Bytes per second from memory: the best of a few runs."""
        size = self._buffer.numel() * 4
        return max(size / seconds for tile in _TILES for seconds in self._runs(*tile, count=5))

    def _runs(self, size: int, steps: int, count: int) -> Iterator[float]:
        from isobit.kernels.gpu.triton.read import read_all

        programs = self._buffer.numel() // (size * steps)
        for _ in range(count):
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            read_all[(programs,)](self._buffer, self._sink, SIZE=size, STEPS=steps, num_warps=8)
            end.record()
            end.synchronize()
            yield begin.elapsed_time(end) / 1e3


def reader(model: Decoder) -> Reader | GpuReader:
    """What reads the memory that a model lies in."""
    device = model.place.tensors
    return GpuReader(device) if device.type == "cuda" else Reader(CPU_BUFFER_BYTES)


def cases(batches: Sequence[int], prompt: int, new: int, context: int | None, longest: int) -> list[Case]:
    """The cases of a run: every batch behind ``prompt`` tokens; one sequence behind ``context`` tokens, if given.

    Raises:
        UsageError: the model's context does not hold a prompt and its answer.
    """
    found = [Case(batch, prompt, new) for batch in dict.fromkeys(batches)]
    if context is not None:
        found.append(Case(1, context, new))
    for case in found:
        if case.prompt + case.new > longest:
            raise UsageError(
                f"{case.prompt} tokens of prompt and {case.new} of answer: this model's context is {longest} tokens"
            )
    return found


def measure(llm: LLM, case: Case, read: Callable[[], float], *, rounds: int = 3, warm_up: int = 4) -> Measured:
    """Runs a case.

    Args:
        llm: its cache holds the case, and it keeps no prefixes.
        case: what is run.
        read: bytes per second of the memory; called before each round and behind the last.
        rounds: how often.
        warm_up: tokens of each answer in runs before them that are not counted: until none of them records a step.
            A round that does is run again, so that figures are those of a process that has answered before.
    """
    prompts = _prompts(case, int(llm.model.config.vocab_size))
    for _ in range(MOST_AGAIN):  # some steps are recorded when they come the second time
        recorded = llm.engine.recorded
        _run(llm, prompts, min(warm_up, case.new), counts=False)
        if llm.engine.recorded == recorded:
            break
    found: list[Round] = []
    ceilings, again = [read()], MOST_AGAIN
    while len(found) < rounds:
        recorded = llm.engine.recorded
        one = _run(llm, prompts, case.new)
        ceilings.append(read())
        if llm.engine.recorded > recorded and again:
            again -= 1
            continue
        found.append(one)
    hosts = [value for one in found for value in one.host or ()]
    prefill = statistics.median(one.prefill for one in found)
    return Measured(
        case,
        step=statistics.median(step for one in found for step in one.steps),
        host=statistics.median(hosts) if hosts else None,
        first_token=statistics.median(one.first for one in found),
        prefill=case.batch * case.prompt / prefill,
        whole=case.batch * case.new / statistics.median(one.whole for one in found),
        bandwidth=statistics.median(ceilings),
        rounds=tuple(statistics.median(one.steps) for one in found),
        prompts=tuple(one.prefill for one in found),
        readings=tuple(ceilings),
    )


def _prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """Prompts that share nothing."""
    draw = random.Random(case.batch * 1_000_003 + case.prompt)
    return [[draw.randrange(1, vocabulary) for _ in range(case.prompt)] for _ in range(case.batch)]


def _run(llm: LLM, prompts: list[list[int]], new: int, counts: bool = True) -> Round:
    """Answers the prompts together, greedily and to the end, and takes the time of each step.

    Short answers of many prompts end before the last prompt is read: then only ``counts=False`` takes it.
    """
    model = llm.model
    assert isinstance(model, Decoder)
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    on_cpu, engine = model.place.tensors.type == "cpu", llm.engine
    times: list[tuple[float, float, int]] = []  # (seconds, of them the engine's own, tokens) of each step
    first = prefill = 0.0
    waiting_for = set[int]()
    with Waiting(model) as waiting:
        begin = now = time.perf_counter()
        for prompt in prompts:
            waiting_for.add(llm.add(prompt, params))
        while llm.unfinished:
            waited, before = waiting.seconds if on_cpu else engine.waited, now
            asked = time.perf_counter()  # what is done here with the pieces is part of the step, and not the engine's
            pieces = llm.step()
            now = time.perf_counter()
            for id, piece in pieces:
                if piece.error is not None:
                    raise piece.error
                waiting_for.discard(id)
            if pieces and not first:
                first = now - begin
            if not waiting_for and not prefill:
                prefill, times = now - begin, []
                continue
            waited = (waiting.seconds if on_cpu else engine.waited) - waited
            times.append((now - before, now - asked - waited, len(pieces)))
    whole = [(taken, own) for taken, own, tokens in times if tokens == len(prompts)]
    if counts and not whole and new > PROMPT_NEW:
        raise CapacityError(f"{len(prompts)} sequences never decoded together: their cache is too small")
    counted = whole[SETTLE_STEPS:] or whole or [(now - begin, now - begin)]
    known = on_cpu or engine.scheduler.ahead > 0  # else the host's time and the device's are one
    host = tuple(own for _, own in counted) if known else None
    return Round(tuple(taken for taken, _ in counted), host, first, prefill, now - begin)
