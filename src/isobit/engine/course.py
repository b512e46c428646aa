"""Requests that all go on by one token a step: what differs from step to step is a number.

A step of many requests that decode ahead of what is known feeds each of them what it chose last, one place further. So
the steps of a course are not made request by request: :class:`Onward` says which course it is a step of, and how many
came before it. Only who needs another block is looked at, once in as many steps as a block has tokens; and what a
request knows of itself (:class:`~isobit.engine.request.Running`) is brought up to date when the course ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from isobit.engine.blocks import BlockPool
from isobit.engine.holding import publish
from isobit.engine.request import ONE_UNKNOWN, UNKNOWN, Part, Running, Schedule, made


def steady(parts: Sequence[Part], lefts: Sequence[int]) -> bool:
    """Whether a step feeds a token that is not known yet of each request, of which ``lefts`` had so many to feed."""
    return lefts.count(1) == len(parts) == len(lefts) and all(
        [part.tokens is ONE_UNKNOWN and part.chooses for part in parts]
    )


class Course:
    """Requests that decode, each of which knows its last token by name alone.

    Args:
        states: they, by rank; each has a token or more to feed beside those under way.
        pool: whose blocks they hold.

    Attributes:
        ids: of the requests, in the order of every step.
        firsts: position of the token that each feeds in the first step.
        shifts: what is added to a token's place to get its position.
        longest: tokens of the longest of them with the first step.
        count: steps made so far.
        most: steps that it has at most: with the last one an answer is complete.
        active: whether it goes on.
    """

    def __init__(self, states: Sequence[Running], pool: BlockPool) -> None:
        self._states, self._pool, size = states, pool, pool.size
        self.ids = tuple([state.request.id for state in states])
        self.firsts = [state.held for state in states]
        self.shifts = [0 if state.request.sights is None else state.request.sights.shift for state in states]
        self.most = min([state.whole - len(state.tokens) for state in states])
        self.longest = 1 + max(self.firsts)
        self.count, self.active = 0, True
        self._turning: list[list[int]] = [[] for _ in range(size)]  # who begins a block in step s: at s % size
        for row, first in enumerate(self.firsts):
            self._turning[-first % size].append(row)
        self._listed: list[tuple[int, ...]] = [state.listed for state in states]  # never changed, only replaced
        self._chosen: list[Sequence[int]] = []  # tokens of the steps that are computed
        self._told = [0] * len(states)  # how many of these each request has been told

    @classmethod
    def of(cls, states: Sequence[Running], pool: BlockPool) -> Course | None:
        """One of these requests; None for none, and if one of them has nothing to feed, or a token that is known."""
        goes_on = bool(states) and all([state.unknown and state.left == 1 for state in states])
        return cls([*states], pool) if goes_on else None

    def turning(self, step: int) -> list[int]:
        """The rows of those that begin a block in a step."""
        return self._turning[step % self._pool.size]

    def next(self) -> Onward | None:
        """Another step; None if there is none, or where a block is lacking for it."""
        if self.count == self.most:
            return None
        turning = self.turning(self.count)
        if turning:
            listed, size = [*self._listed], self._pool.size
            for row in turning:
                state, held = self._states[row], (self.firsts[row] + self.count) // size + 1
                if len(state.blocks) < held:
                    taken = self._pool.take(1)
                    if taken is None:
                        return None
                    state.blocks += taken
                state.listed = listed[row] = tuple(state.blocks[:held])
            self._listed = listed
        self.count += 1
        return Onward(self, self.count - 1, self._listed)

    def commit(self, chosen: Sequence[int]) -> None:
        """The oldest step that is not computed yet is: with a token for each request, in their order."""
        step = len(self._chosen)
        if self._pool.keeps:
            for row in self.turning(step + 1):  # those whose block is full with this step
                state, end = self._states[row], self.firsts[row] + step + 1
                self._tell(row)
                publish(self._pool, state, end - 1, end)
        self._chosen.append(chosen)

    def end(self) -> None:
        """The requests know of themselves what they would if each step had been made for each."""
        self.active = False
        ahead = self.count - len(self._chosen)
        for row, state in enumerate(self._states):
            self._tell(row)
            state.tokens += [UNKNOWN] * ahead
            state.unknown += ahead
            state.flying += ahead
            state.held += self.count

    def _tell(self, row: int) -> None:
        """A request learns its tokens."""
        told = self._told[row]
        if told < len(self._chosen):
            self._states[row].tokens += [step[row] for step in self._chosen[told:]]
            self._told[row] = len(self._chosen)


class Onward(Schedule):
    """A step of a course.

    Args:
        course: it.
        step: how many steps it had before this one.
        listed: the blocks of each request, as many as its new token needs.
    """

    course: Course
    step: int
    listed: Sequence[tuple[int, ...]]

    def __init__(self, course: Course, step: int, listed: Sequence[tuple[int, ...]]) -> None:
        vars(self).update(course=course, step=step, listed=listed, block=course._pool.size, preempted=())

    @cached_property
    def parts(self) -> tuple[Part, ...]:  # made where somebody asks
        """As of every schedule; those who know what a course is need none of them."""
        rows = zip(self.course.ids, self.course.firsts, self.listed, self.course.shifts, strict=True)
        return tuple(
            [
                made(Part, (id, first + self.step, ONE_UNKNOWN, blocks, True, range(0), (), shift, False))
                for id, first, blocks, shift in rows
            ]
        )

    @property
    def last(self) -> bool:
        """Whether an answer is complete with it."""
        return self.step == self.course.most - 1
