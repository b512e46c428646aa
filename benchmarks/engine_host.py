"""What the host does for a step of the engine, beside a device that takes no time: in processor time.

    python benchmarks/engine_host.py [--rows 1,8,64,256] [--tokens text,random,words] [--steps 150]

Requests decode, all of them at once, on the runner of GPUs; nothing is computed, and no driver is called. ``before the
launch`` is what the device would wait for if it were idle: scheduling, and writing the numbers of the step where the
device reads them. ``beside it`` is what is done while the device works on the next step: tokens are counted and become
text, and pieces are handed over.

Each row gets a token of its own in each step: of a text, or drawn from all of the bundled vocabulary, many of which are
parts of characters, or from the 32,000 words of engine_decode.py's tokenizer. Each has come before, as in a server that
has run for a while.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from common import RESULTS, provenance, save
from gpu_generate import write_tokenizer

from isobit.bundled import model_path
from isobit.engine.gpu_runner import GpuRunner
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import Schedule
from isobit.engine.sampler import Chooser
from isobit.engine.tokenizer import Tokenizer

PROMPT = 64
TEXT = "def add(first, second):\n    return first + second  # of two numbers\n"
WORDS = 32000
KINDS = ("text", "random", "words")


class Instant(GpuRunner):
    """The runner of GPUs, over a device on which nothing is computed.

    Args:
        model: of which no layer is used.
        sequences: that take part in a step.
        steps: int64 ``[steps, sequences]``: what is chosen in each of them, by turns.
    """

    def __init__(self, model: Any, sequences: int, steps: torch.Tensor) -> None:
        super().__init__(model, sequences)
        self._chosen, self._step, self.launched = steps, 0, 0.0

    def reserve(self, least: int, wanted: int) -> int:
        return wanted

    def _held(self) -> Any:
        return None

    def _recorded(self, cache: Any) -> Any:
        return self

    def record(self, sequences: Iterable[int] = ()) -> None:
        """Nothing to do."""

    def run(self, *_: Any) -> torch.Tensor:
        """A graph in the place of others: the tokens of the step."""
        self._step += 1
        tokens = self._chosen[self._step % len(self._chosen)]
        self._memory().chosen[: len(tokens)].copy_(tokens)
        return self._memory().highest

    def run_pieces(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.run()

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Any:
        """As ever; notes when it was done."""
        launched = super().start(schedule, choosers)
        self.launched = time.thread_time()
        return launched


Device = TypeVar("Device", bound=Instant)


def drawn(tokens: list[int], rows: int) -> torch.Tensor:
    """int64 ``[997, rows]``: for each row the tokens by turns, from another one on than for its neighbours."""
    return torch.tensor([[tokens[(step + 7 * row) % len(tokens)] for row in range(rows)] for step in range(997)])


def chosen(kind: str, rows: int) -> tuple[Tokenizer, torch.Tensor]:
    """A tokenizer, and tokens of its vocabulary as :class:`Instant` takes them."""
    draw = random.Random(rows)
    if kind == "words":
        with tempfile.TemporaryDirectory() as made:
            write_tokenizer(Path(made), WORDS)
            tokenizer = Tokenizer.from_folder(made)
        return tokenizer, drawn([draw.randrange(WORDS) for _ in range(9973)], rows)
    tokenizer = Tokenizer.from_folder(model_path())
    if kind == "text":
        return tokenizer, drawn(tokenizer.encode(TEXT), rows)
    return tokenizer, drawn([draw.randrange(tokenizer.vocab_size) for _ in range(9973)], rows)


def engine(rows: int, tokenizer: Tokenizer, device: Callable[[Any], Device]) -> tuple[LLM, Device]:
    """An engine of so many sequences at once, on a device that is made for its model; and that device."""
    place = SimpleNamespace(target=None, tensors=torch.device("cpu"))
    config = SimpleNamespace(vocab_size=tokenizer.vocab_size, max_context=4096, hidden_size=4096)
    model: Any = SimpleNamespace(place=place, config=config, notes=())
    runner = device(model)
    return LLM(model, tokenizer, runner, sequences=rows, cache_tokens=rows * 1024, prefix_cache=False), runner  # type: ignore[arg-type]


def measure(rows: int, steps: int, tokenizer: Tokenizer, tokens: torch.Tensor) -> tuple[float, float]:
    """Medians of microseconds a step: before its launch, and beside it."""
    llm, runner = engine(rows, tokenizer, lambda model: Instant(model, rows, tokens))
    params = SamplingParams(max_tokens=steps, ignore_eos=True)
    for token in tokens.unique().tolist():
        tokenizer.behind(token)
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
    parser.add_argument("--tokens", default=",".join(KINDS))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--csv", type=Path, default=RESULTS / "engine_host.csv")
    options = parser.parse_args()
    kinds, found = options.tokens.split(","), []
    if set(kinds) - set(KINDS):
        parser.error(f"--tokens {options.tokens}: the kinds are {', '.join(KINDS)}")
    for kind, rows in itertools.product(kinds, map(int, options.rows.split(","))):
        before, beside = measure(rows, options.steps, *chosen(kind, rows))
        print(f"{kind:6} {rows:4} rows: {before:7.1f} us before the launch, {beside:7.1f} us beside it", flush=True)
        found.append({"tokens": kind, "rows": rows, "before_us": round(before, 1), "beside_us": round(beside, 1)})
    save([provenance() | row for row in found], options.csv)


if __name__ == "__main__":
    main()
