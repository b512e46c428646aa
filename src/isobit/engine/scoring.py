"""Scores of tokens that are given, not chosen: of prompts, and of texts that a model is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from isobit.engine.params import TokenLogprob
from isobit.engine.request import Schedule
from isobit.engine.sampler import scores
from isobit.errors import IsobitError


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
