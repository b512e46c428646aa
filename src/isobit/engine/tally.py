"""Tokens and how often each came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tally:
    """Tokens and how often each came, as arrays that grow with the text."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float64)
        for id, count in Counter(ids).items():
            self.add(id, count)

    def add(self, id: int, count: int = 1) -> None:
        """Counts a token."""
        place = self._places.setdefault(id, len(self._places))
        if place == len(self._ids):
            room = max(64, 2 * place)
            self._ids, self._counts = (_longer(part, room) for part in (self._ids, self._counts))
        self._ids[place] = id
        self._counts[place] += count

    @property
    def ids(self) -> NDArray[np.int64]:
        """Each token once."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float64]:
        """How often each of ``ids`` came."""
        return self._counts[: len(self._places)]


def _longer(part: NDArray[Any], room: int) -> NDArray[Any]:
    grown = np.zeros(room, part.dtype)
    grown[: len(part)] = part
    return grown
