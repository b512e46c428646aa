"""How fast models decode, and how fast this machine reads as many bytes: measured in turns, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isobit.engine.generate import Generator
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.evaluation.measure import Subject
from isobit.evaluation.paths import linear_kernels
from isobit.evaluation.results import Speed
from isobit.kernels import backends
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import linear as cpu

BUFFER_BYTES = 512 << 20
"""What memory is read from: far more than caches hold."""
REPEATED_BYTES = 128 << 20
"""At least so much is read of a buffer that caches may hold, again and again."""
SETTLE_SECONDS = 0.02
"""PyTorch's threads spin for a while behind a call and hold the cores."""


class Reader:
    """Reads memory and does nothing else, with isobit's kernel, or PyTorch's sum where that is not built."""

    def __init__(self, nbytes: int = BUFFER_BYTES) -> None:
        # Random numbers: a hypervisor may keep equal pages once, and a cache would hold that one.
        self._buffer = torch.empty(nbytes // 8, dtype=torch.int64).random_()
        self._read: Callable[[Tensor], object] = cpu.read_bandwidth if _own_kernels() else torch.sum
        self.memory()

    def memory(self) -> float:
        """Bytes per second from memory."""
        time.sleep(SETTLE_SECONDS)
        return self._rate(self._buffer, 1)

    def again(self, nbytes: int) -> float:
        """Bytes per second from the same ``nbytes`` again and again: from caches, as far as these hold them."""
        part = self._buffer[: max(1, nbytes // 8)]
        time.sleep(SETTLE_SECONDS)
        self._read(part)
        return self._rate(part, max(1, REPEATED_BYTES // (part.numel() * 8)))

    def _rate(self, part: Tensor, times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            self._read(part)
        return times * part.numel() * 8 / (time.perf_counter() - begin)


def _own_kernels() -> bool:
    return cpu_library.problem() is None and backends.forced() in (None, "cpu")


def decode_speeds(
    subjects: Sequence[Subject], tokenizer: Tokenizer, prompt: str, *, tokens: int, rounds: int, nbytes: int
) -> list[Speed]:
    """Greedy decoding with one request: medians over rounds in which the models take turns.

    Taking turns spreads a slow moment of the machine over all of them.

    Args:
        subjects: the models.
        tokenizer: theirs.
        prompt: what they go on with.
        tokens: how many tokens each decodes, at least 2.
        rounds: how often.
        nbytes: size of the buffer that memory is read from.
    """
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    reader = Reader(nbytes)
    measured: list[list[tuple[float, float, float]]] = [[] for _ in subjects]
    for _ in range(rounds):
        for subject, found in zip(subjects, measured, strict=True):
            memory, again = reader.memory(), reader.again(subject.read_bytes)
            speed = Generator(LLM(subject.model, tokenizer)).generate(prompt, params).timings.tokens_per_second
            assert speed is not None  # it decodes more than one token
            found.append((speed, memory, again))
    medians = [[statistics.median(values) for values in zip(*found, strict=True)] for found in measured]
    return [
        Speed(
            tokens_per_second,
            memory,
            again,
            read_bytes=subject.read_bytes,
            kernel=linear_kernels(subject.model),
            threads=cpu_library.threads() if _own_kernels() else torch.get_num_threads(),
        )
        for subject, (tokens_per_second, memory, again) in zip(subjects, medians, strict=True)
    ]
