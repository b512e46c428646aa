"""What the host does for a step of the engine, beside a device that takes no time: in processor time.

    python benchmarks/engine_host.py [--rows 1,8,64,256] [--steps 150]

Requests decode, all of them at once, on the runner of GPUs; nothing is computed, and no driver is called. ``before the
launch`` is
what the device would wait for if it were idle: scheduling, and writing the numbers of the step where the device reads
them. ``beside it`` is what is done while the device works on the next step: tokens are counted and become text, and
pieces are handed over.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import RESULTS, provenance, save

from isobit.bundled import model_path
from isobit.engine.gpu_runner import GpuRunner
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import Schedule
from isobit.engine.sampler import Chooser
from isobit.engine.tokenizer import Tokenizer

PROMPT = 64


class Instant(GpuRunner):
    """The runner of GPUs, over a device on which nothing is computed and a common token is chosen for everybody."""

    def __init__(self, model: Any, sequences: int, tokens: list[int]) -> None:
        super().__init__(model, sequences)
        self._chosen, self._step, self.launched = tokens, 0, 0.0

    def reserve(self, least: int, wanted: int) -> int:
        return wanted

    def _held(self) -> Any:
        return None

    def _recorded(self, cache: Any) -> Any:
        return self

    def record(self, sequences: Iterable[int] = ()) -> None:
        """Nothing to do."""

    def run(self, *_: Any) -> torch.Tensor:
        """A graph in the place of others: the token of the step."""
        self._step += 1
        self._memory().chosen.fill_(self._chosen[self._step % len(self._chosen)])
        return self._memory().highest

    def run_pieces(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.run()

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Any:
        """As ever; notes when it was done."""
        launched = super().start(schedule, choosers)
        self.launched = time.thread_time()
        return launched


def measure(rows: int, steps: int, tokenizer: Tokenizer) -> tuple[float, float]:
    """Medians of microseconds a step: before its launch, and beside it."""
    text = tokenizer.encode("def add(first, second):\n    return first + second  # of two numbers\n")
    place = SimpleNamespace(target=None, tensors=torch.device("cpu"))
    config = SimpleNamespace(vocab_size=tokenizer.vocab_size, max_context=4096, hidden_size=4096)
    model: Any = SimpleNamespace(place=place, config=config, notes=())
    runner = Instant(model, rows, text)
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
