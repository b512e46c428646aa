"""What the host does for a step of the engine, beside a device that takes no time: in processor time.

    python benchmarks/engine_host.py [--rows 1,8,64,256] [--steps 150]

Requests decode, all of them at once, on a runner that chooses at once; nothing is computed. ``before the launch`` is
what the device would wait for if it were idle: scheduling, and writing the numbers of the step where the device reads
them. ``beside it`` is what is done while the device works on the next step: tokens are counted and become text, and
pieces are handed over.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import RESULTS, provenance, save

from isobit.bundled import model_path
from isobit.engine.flight import Known
from isobit.engine.graphs import Inputs, Places, rows_of
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import UNKNOWN, Schedule
from isobit.engine.sampler import Choice, Chooser
from isobit.engine.tokenizer import Tokenizer

PROMPT, BLOCK = 64, 64


class Instant:
    """A runner that writes what a step needs, computes nothing and chooses a common token for everybody."""

    block = BLOCK

    def __init__(self, sequences: int, tokens: list[int]) -> None:
        self._inputs = Inputs(rows_of(sequences), 64, BLOCK, torch.device("cpu"))
        self._places, self._tokens, self._step = Places(), tokens, 0
        self._row_of: dict[int, int] = {}
        self.launched = 0.0

    def reserve(self, least: int, wanted: int) -> int:
        return wanted

    def record(self) -> None:
        """Nothing to do."""

    def run(self, schedule: Schedule) -> torch.Tensor:
        raise AssertionError("every step is started ahead")

    scored = run

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Known:
        """The numbers of a step are laid out, as ``GpuRunner`` does."""
        parts = schedule.parts
        if all(len(part.tokens) == 1 for part in parts):
            rows = self._places.assign([part.id for part in parts], rows_of(len(parts)))
            sources = [self._row_of.get(part.id, -1) if part.tokens[0] == UNKNOWN else -1 for part in parts]
            self._inputs.write(parts, rows, sources)
            self._row_of = dict(zip(schedule.choosers, rows, strict=True))
        self._step += 1
        token = self._tokens[self._step % len(self._tokens)]
        self.launched = time.thread_time()
        return Known([Choice(token)] * len(choosers), 0.0)


def measure(rows: int, steps: int, tokenizer: Tokenizer) -> tuple[float, float]:
    """Medians of microseconds a step: before its launch, and beside it."""
    text = tokenizer.encode("def add(first, second):\n    return first + second  # of two numbers\n")
    runner = Instant(rows, text)
    place = SimpleNamespace(target=None, tensors=torch.device("cpu"))
    config = SimpleNamespace(vocab_size=tokenizer.vocab_size, max_context=4096)
    model: Any = SimpleNamespace(place=place, config=config, notes=())
    llm = LLM(model, tokenizer, runner, sequences=rows, cache_tokens=rows * 1024, prefix_cache=False)  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=steps, ignore_eos=True)
    for number in range(rows):
        llm.add([number % 200 + 1] * PROMPT, params)
    before, beside = [], []
    while llm.unfinished:
        begin = time.thread_time()
        llm.step()
        end = time.thread_time()
        before.append(runner.launched - begin)
        beside.append(end - runner.launched)
    middle = slice(len(before) // 4, -len(before) // 4)
    return 1e6 * statistics.median(before[middle]), 1e6 * statistics.median(beside[middle])


def main() -> None:
    """Measure and append to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,64,256")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--csv", type=Path, default=RESULTS / "engine_host.csv")
    options = parser.parse_args()
    tokenizer, found = Tokenizer.from_folder(model_path()), []
    for rows in map(int, options.rows.split(",")):
        before, beside = measure(rows, options.steps, tokenizer)
        print(f"{rows:4} rows: {before:7.1f} us before the launch, {beside:7.1f} us beside it", flush=True)
        found.append({"rows": rows, "before_us": round(before, 1), "beside_us": round(beside, 1)})
    save([provenance() | row for row in found], options.csv)


if __name__ == "__main__":
    main()
