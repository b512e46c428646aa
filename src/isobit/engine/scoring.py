"""Scores of tokens that are given, not chosen: of prompts, and of texts that a model is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.engine.blocks import BlockPool, blocks_for
from isobit.engine.params import TokenLogprob
from isobit.engine.request import Request, Schedule
from isobit.engine.runner import ModelRunner
from isobit.engine.sampler import scores
from isobit.engine.scheduler import Scheduler
from isobit.errors import IsobitError
from isobit.formats.caches import BLOCK
from isobit.targets.prefill import prefill_chunk


def by_request(
    schedule: Schedule, logits: Iterable[Tensor], tops: Mapping[int, int]
) -> dict[int, list[TokenLogprob] | IsobitError]:
    """Log-probabilities of the tokens that a step scores, by request; or why a request has none.

    Args:
        schedule: the step.
        logits: of ``schedule.scored``, in pieces ``[r, V]``, each of which may be gone when the next is taken.
        tops: request -> how many of the most probable tokens are given beside each.
    """
    ids = [part.id for part in schedule.parts for _ in part.targets]
    found: dict[int, list[TokenLogprob] | IsobitError] = {}
    for id, score in zip(ids, _rows(logits, schedule.targets, [tops[id] for id in ids]), strict=True):
        held = found.setdefault(id, [])
        if isinstance(held, list):
            if isinstance(score, TokenLogprob):
                held.append(score)
            else:
                found[id] = score
    return found


def _rows(logits: Iterable[Tensor], tokens: list[int], counts: list[int]) -> Iterator[TokenLogprob | IsobitError]:
    begin = 0
    for piece in logits:
        end = begin + len(piece)
        yield from scores(piece, tokens[begin:end], counts[begin:end])
        begin = end


def waves(beginnings: Sequence[Sequence[int]], at_once: int) -> list[list[int]]:
    """Sequences parted so that no two that begin alike come in the same step before what they share is computed.

    What a step computes can be read from the next one on. So of as many neighbours as are worked on at once the first
    of each beginning comes before the others.

    Args:
        beginnings: of each sequence: what may be shared.
        at_once: sequences that are worked on at once.
    """
    found: list[list[int]] = []
    gathered: list[int] = []
    for first in range(0, len(beginnings), at_once):
        seen: set[tuple[int, ...]] = set()
        others: list[int] = []
        for place in range(first, min(first + at_once, len(beginnings))):
            beginning = tuple(beginnings[place])
            (others if beginning in seen else gathered).append(place)
            seen.add(beginning)
        if others:
            found += [gathered, others]
            gathered = []
    return [*found, gathered] if gathered else found


@dataclass(frozen=True)
class Rows:
    """Tokens that models have read beside each other and scored.

    Attributes:
        sequences: int64 ``[r]``: number of the sequence of each token.
        places: int64 ``[r]``: its place in the sequence.
        tokens: int64 ``[r]``: itself, where the logits are.
        logits: of each model, float32 ``[r, V]``: what it says of the token behind all that come before it. They may
            be gone when the next rows are taken.
    """

    sequences: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: Tensor
    logits: tuple[Tensor, ...]


def read(
    models: Sequence[Any],
    sequences: Iterable[tuple[Sequence[int], int]],
    *,
    longest: int,
    chunk: int | None = None,
) -> Iterator[Rows]:
    """Models read the same sequences, all in the same steps; nothing of a step is kept for the next but their caches.

    Args:
        models: of one vocabulary, at one kind of place.
        sequences: token ids, and the place of the first that is scored (their length: none is). They are asked for
            as they are needed.
        longest: tokens of a sequence at most.
        chunk: tokens of a step at most; None for what suits the machine.

    Yields:
        The scored tokens of all sequences; those of one sequence in their order.

    Raises:
        CapacityError: there is no memory for the caches of one sequence.
    """
    chunk = chunk or prefill_chunk(models[0].place.target, models[0].config.hidden_size)
    at_once = 1 + -(-chunk // longest)  # as many as fill a step
    runners = [ModelRunner(model, at_once, longest) for model in models]
    pool = BlockPool(0, BLOCK, keeps=False)
    need = blocks_for(longest, pool.size)
    pool.grow(min(runner.reserve(need, at_once * need + at_once - 1) for runner in runners))
    scheduler = Scheduler(pool, tokens=max(chunk, at_once), sequences=at_once)
    waiting = enumerate(sequences)
    while True:
        while scheduler.unfinished < at_once and (one := next(waiting, None)) is not None:
            number, (ids, first) = one
            scheduler.add(Request(number, tuple(ids), 0, reuses=False, scored=first))
        schedule = scheduler.schedule()
        if schedule is None:
            return
        with torch.inference_mode():
            for runner in runners:
                runner.run(schedule)
        yield from _scored(runners, schedule)
        scheduler.commit(schedule, [])


def _scored(runners: Sequence[ModelRunner], schedule: Schedule) -> Iterator[Rows]:
    """What a step scores, few rows at once."""
    parts = [(part.id, part.first + at + 1) for part in schedule.parts for at in part.scored]
    numbers = np.array(parts, np.int64).reshape(-1, 2)
    targets = torch.tensor(schedule.targets, dtype=torch.int64)
    logits, begin = [runner.scored(schedule) for runner in runners], 0
    while begin < len(numbers):
        with torch.inference_mode():
            pieces = tuple(next(one) for one in logits)
        end = begin + len(pieces[0])
        tokens = targets[begin:end].to(pieces[0].device)
        yield Rows(numbers[begin:end, 0], numbers[begin:end, 1], tokens, pieces)
        begin = end
