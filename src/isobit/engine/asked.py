"""What the engine keeps of each request beside the scheduler, and what it says of it behind a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from isobit.engine.course import Course
from isobit.engine.params import TokenLogprob
from isobit.engine.request import FinishReason, Request, made
from isobit.engine.sampler import Choice, Chooser
from isobit.errors import IsobitError
from isobit.models.media import MediaPrompt


class Output(NamedTuple):
    """A token of a request.

    Attributes:
        id: of the request.
        choice: the token; or the error that ended the request. None for a request that only has its prompt scored.
        reason: why the request has ended with it; None while it goes on.
        seconds: that its steps took since its last token, or since its prompt was first fed.
        cached: tokens of its prompt that were read from the cache, where another request had left them.
        scores: of its prompt's tokens, if they were asked for: with the first output of a request.
    """

    id: int
    choice: Choice | None
    reason: FinishReason | None = None
    seconds: float = 0.0
    cached: int = 0
    scores: tuple[TokenLogprob, ...] = ()


class Outputs(NamedTuple):
    """A token of each of some requests that go on, of which there is nothing else to say.

    Attributes:
        ids: of the requests.
        tokens: of each its next.
        seconds: that the step took.
        cached: tokens of each one's prompt that were read from the cache.
    """

    ids: Sequence[int]
    tokens: Sequence[int]
    seconds: float
    cached: Sequence[int]

    def each(self) -> list[Output]:
        """One by one."""
        rows = zip(self.ids, self.tokens, self.cached, strict=True)
        return [Output(id, made(Choice, (token, None, None)), None, self.seconds, cached) for id, token, cached in rows]


@dataclass
class Asked:
    """What the engine keeps of a request beside the scheduler."""

    request: Request
    chooser: Chooser
    stops: frozenset[int]
    seconds: float = 0.0
    top: int = 0  # most probable tokens that are given with a score
    scores: list[TokenLogprob] = field(default_factory=list)
    cached: int | None = None
    media: MediaPrompt | None = None

    def scored(self, found: Sequence[TokenLogprob] | IsobitError, choice: Choice | None) -> Choice | None:
        """Keeps scores of its prompt; returns what it gets instead of its token where there are none."""
        if isinstance(found, IsobitError):
            return Choice(-1, error=found)
        self.scores += found
        return choice

    def ends(self, choice: Choice) -> bool:
        """Whether it ends with this choice, which it knows from now on."""
        if choice.error is not None:
            return True
        if self.chooser.remembers:
            self.chooser.add(choice.token)
            if self.chooser.finished:
                return True
        return choice.token in self.stops


class Voices:
    """The requests of a course, in its order: what is the same in each of its steps.

    Each can be chosen for ahead, so none has a constraint or a penalty; what it made before the course has been given.

    Args:
        course: it.
        asked: what is kept of each.
    """

    def __init__(self, course: Course, asked: Sequence[Asked]) -> None:
        self.course = course
        self.choosers = [one.chooser for one in asked]
        self._stops = [one.stops for one in asked]
        self._any_stop = frozenset[int]().union(*self._stops)
        self._remember = [(row, one) for row, one in enumerate(self.choosers) if one.remembers]
        self._asked = asked
        self._cached: list[int] | None = None

    def stop(self, tokens: Sequence[int]) -> bool:
        """Whether one of them ends with these tokens."""
        if self._any_stop.isdisjoint(tokens):
            return False
        return any(token in stops for token, stops in zip(tokens, self._stops, strict=True))

    def outputs(self, tokens: Sequence[int], seconds: float) -> Outputs:
        """These tokens are theirs, and end nothing."""
        for row, chooser in self._remember:
            chooser.add(tokens[row])
        if self._cached is None:  # not before all of them have their first token
            self._cached = [one.cached or 0 for one in self._asked]
        return Outputs(self.course.ids, tokens, seconds, self._cached)
