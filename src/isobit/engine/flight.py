"""Steps under way: computed already, or on a device that has not said yet what it chose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from isobit.engine.params import TokenLogprob
from isobit.engine.request import Schedule
from isobit.engine.sampler import Choice, Chooser
from isobit.errors import IsobitError

Scores = Mapping[int, "list[TokenLogprob] | IsobitError"]


class Runner(Protocol):
    """What computes a step.

    Attributes:
        block: tokens of a block of its cache.
    """

    block: int

    def reserve(self, least: int, wanted: int) -> int:
        """Room in the cache for ``wanted`` blocks, or fewer but at least ``least``; returns how many there are.

        What the blocks hold stays.

        Raises:
            CapacityError: there is no memory for ``least``.
        """

    def run(self, schedule: Schedule) -> Tensor:
        """Logits ``[len(schedule.rows), V]``; they hold until the next call."""

    def scored(self, schedule: Schedule) -> Iterator[Tensor]:
        """Logits of ``schedule.scored`` behind the last :meth:`run`, in their order, few rows at once."""


class Pending(Protocol):
    """What a device will have chosen."""

    def wait(self) -> None:
        """Until the device has chosen; nothing else is done in that time."""

    def choices(self) -> list[Choice]:
        """A choice for each chooser; waits for the device. The same when it is called again."""

    def tokens(self) -> list[int] | None:
        """Those of :meth:`choices`, which it waits for likewise; None where more than tokens is to be said."""

    def seconds(self) -> float:
        """That the step took on the device, once :meth:`choices` has come back."""


@runtime_checkable
class Ahead(Protocol):
    """A runner that starts a step before the tokens of the one before it are known.

    Attributes:
        recorded: steps that it has recorded so far, which each took it far longer than a step.
    """

    @property
    def recorded(self) -> int: ...

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Pending:
        """Starts a step and waits for nothing.

        Args:
            schedule: where a token is unknown it is what the step that was started last chooses for that request.
            choosers: of ``schedule.choosers``; each :attr:`~isobit.engine.sampler.Chooser.ahead`.
        """

    def record(self) -> None:
        """Does before the first step what may be done before it."""


@dataclass(frozen=True)
class Known:
    """What was computed and chosen at once."""

    found: list[Choice]
    took: float

    def wait(self) -> None:
        """Nobody has to."""

    def choices(self) -> list[Choice]:
        return self.found

    def tokens(self) -> list[int] | None:
        found = self.choices()
        return None if any(one.error or one.logprob for one in found) else [one.token for one in found]

    def seconds(self) -> float:
        return self.took


@dataclass(frozen=True)
class Flight:
    """A step under way.

    Attributes:
        schedule, pending: it, and what comes of it.
        scores: of its prompts' tokens, by request.
        ahead: whether the next step may be started before the tokens of this one are known.
        started: when, on a monotonic clock.
    """

    schedule: Schedule
    pending: Pending
    scores: Scores = field(default_factory=dict)
    ahead: bool = False
    started: float = field(default_factory=time.perf_counter)


class Stopwatch:
    """How long steps take that overlap, and that a slow reader may come between.

    A step begins when it is started or when the one before it is done, whichever is later. Of the time until its tokens
    are there, what neither the device nor the engine worked is the caller's own, and is not counted.
    """

    def __init__(self) -> None:
        self._done = 0.0
        self._inside = 0.0  # seconds in the engine since the last step was done
        self._entered = 0.0

    def enter(self) -> None:
        """The engine begins to work."""
        self._entered = time.perf_counter()

    def leave(self) -> None:
        """It has ended."""
        self._inside += time.perf_counter() - self._entered

    def done(self, flight: Flight) -> float:
        """A step is done, the engine still works; returns the seconds that it took."""
        now = time.perf_counter()
        inside = self._inside + now - self._entered
        took = min(now - max(flight.started, self._done), flight.pending.seconds() + inside)
        self._done, self._inside, self._entered = now, 0.0, now
        return took
