"""Models read the windows of a text together, in the engine's steps; what is kept of a source is not computed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.engine import scoring
from isobit.evaluation.windows import Window


class Kept(Protocol):
    """Logits of a source that were computed before; :class:`isobit.evaluation.kept.KeptLogits` has them."""

    def has(self, window: Window) -> bool: ...

    def get(self, window: Window) -> Tensor | None: ...

    def put(self, window: Window, logits: Tensor) -> None: ...


@dataclass(frozen=True)
class Read:
    """Some scored tokens.

    Attributes:
        places: int64 ``[r]``: which of all scored tokens of the text they are, window after window.
        tokens: int64 ``[r]``: themselves.
        logits: of each model, float32 ``[r, V]``, where the models are.
    """

    places: NDArray[np.int64]
    tokens: Tensor
    logits: tuple[Tensor, ...]


def read(models: Sequence[Any], chosen: Sequence[Window], kept: Kept | None = None) -> Iterator[Read]:
    """All scored tokens of windows, each once; those of a window in their order.

    Args:
        models: of one vocabulary.
        chosen: the windows.
        kept: where logits of the first model are found again, and kept.
    """
    if kept is None or len(models) == 1:
        yield from _computed(models, chosen, range(len(chosen)))
        return
    known = [place for place, window in enumerate(chosen) if kept.has(window)]
    damaged: set[int] = set()
    yield from _known(models, chosen, known, kept, damaged)
    missing = sorted(set(range(len(chosen))) - set(known) | damaged)
    yield from _keeping(models, chosen, missing, kept)


def _computed(models: Sequence[Any], chosen: Sequence[Window], numbers: Iterable[int]) -> Iterator[Read]:
    """Windows of these numbers, read by all models."""
    begins = np.cumsum([0, *(window.num_scored for window in chosen)])
    firsts = np.array([window.first_scored for window in chosen], np.int64)
    taken: list[int] = []

    def sequences() -> Iterator[tuple[Sequence[int], int]]:
        for number in numbers:
            taken.append(number)
            yield chosen[number].ids, chosen[number].first_scored

    longest = max((len(window.ids) for window in chosen), default=1)
    for rows in scoring.read(models, sequences(), longest=longest):
        windows = np.array(taken, np.int64)[rows.sequences]
        yield Read(begins[windows] + rows.places - firsts[windows], rows.tokens, rows.logits)


def _keeping(models: Sequence[Any], chosen: Sequence[Window], numbers: Sequence[int], kept: Kept) -> Iterator[Read]:
    """The same; the first model's logits are kept, a window's when all of them are there."""
    begins = np.cumsum([0, *(window.num_scored for window in chosen)])
    held: dict[int, list[Tensor]] = {}
    for part in _computed(models, chosen, numbers):
        windows = np.searchsorted(begins, part.places, side="right") - 1
        for number in np.unique(windows).tolist():
            rows = torch.from_numpy(np.flatnonzero(windows == number)).to(part.logits[0].device)
            pieces = held.setdefault(number, [])
            pieces.append(part.logits[0][rows].cpu())
            if sum(map(len, pieces)) == chosen[number].num_scored:
                kept.put(chosen[number], torch.cat(held.pop(number)))
        yield part


def _known(
    models: Sequence[Any], chosen: Sequence[Window], numbers: Sequence[int], kept: Kept, damaged: set[int]
) -> Iterator[Read]:
    """Windows that the first model need not read; ``damaged`` gets those whose logits could not be used."""
    begins = np.cumsum([0, *(window.num_scored for window in chosen)])
    held: dict[int, Tensor] = {}

    def usable() -> Iterator[int]:
        for number in numbers:
            found = kept.get(chosen[number])
            if found is None:
                damaged.add(number)
            else:
                held[number] = found
                yield number

    for part in _computed(models[1:], chosen, usable()):
        windows = np.searchsorted(begins, part.places, side="right") - 1
        rows = [held[number][place] for number, place in zip(windows, part.places - begins[windows], strict=True)]
        yield Read(part.places, part.tokens, (torch.stack(rows).to(part.logits[0].device), *part.logits))
        for number in np.unique(windows).tolist():
            if begins[number + 1] - 1 in part.places:
                del held[number]
