"""What a prompt's tokens stand for beside themselves, as the scheduler knows it: keys and places. No torch.

A token of a picture has the same id as one of any other picture. So what the cache holds of it is told apart by the key
of the piece that it is a part of, by which part it is, and by the positions that it was given.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Sight(NamedTuple):
    """A piece in a prompt.

    Attributes:
        key: of the piece.
        places: of the tokens that stand for its parts, ascending.
    """

    key: bytes
    places: tuple[int, ...]


class Glimpse(NamedTuple):
    """What of a piece falls into some tokens in a row.

    Attributes:
        number: of the piece in its prompt.
        first: its first part that does; the others follow.
        places: of their tokens, counted from the first of those in a row.
    """

    number: int
    first: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Sights:
    """The pieces of a prompt.

    Attributes:
        shown: them, in the order of their first places.
        length: tokens of the prompt.
        axes: positions that each of its tokens has.
        told: these, token by token; empty where they are its place.
        shift: what is added to the place of a token of the answer to get its position.
    """

    shown: tuple[Sight, ...]
    length: int
    axes: int = 1
    told: Sequence[int] = ()
    shift: int = 0

    def within(self, begin: int, end: int) -> Iterator[Glimpse]:
        """What of the pieces falls into the tokens from ``begin`` to ``end - 1``."""
        for number, (_, places) in enumerate(self.shown):
            if places[0] >= end:
                return
            first, last = bisect_left(places, begin), bisect_left(places, end)
            if first < last:
                yield Glimpse(number, first, tuple(place - begin for place in places[first:last]))

    def positions(self, begin: int, end: int) -> array[int]:
        """Positions of these tokens on every axis, one token behind the other; empty where they are their places."""
        found = array("q")
        for place in range(begin, end):
            if place >= self.length:
                found.extend([place + self.shift] * self.axes)
            elif self.told:
                found.extend(self.told[place * self.axes : (place + 1) * self.axes])
            else:
                found.extend([place] * self.axes)
        plain = (place for place in range(begin, end) for _ in range(self.axes))
        return array("q") if all(one == other for one, other in zip(found, plain, strict=True)) else found

    def named(self, begin: int, end: int) -> bytes:
        """What tells these tokens from others with the same ids; empty where nothing does."""
        seen = b"".join(
            self.shown[one.number].key + array("q", (len(one.places), one.first, *one.places)).tobytes()
            for one in self.within(begin, end)
        )
        told = self.positions(begin, end)
        return seen + array("q", (self.axes, *told)).tobytes() if seen or told else b""
