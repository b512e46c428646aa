"""Which tokens of which requests go through the model in the next step: continuous batching over a pool of blocks.

Every request has a rank, given at its arrival: its priority and when it came. The first in rank is served first, its
blocks are never taken from it, and whatever it needs is taken from the last in rank: so it ends, and then the next is
first. What a request whose blocks were taken had computed is computed again when there is room.

A step feeds every decoding request its one token, and what is left of the step's tokens to prompts, in pieces.
The same calls give the same schedules: nothing here reads a clock or draws a number.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from isobit.engine.blocks import BEGIN, BlockPool, blocks_for, key_after
from isobit.engine.request import PATIENCE, Part, Request, Running, Schedule
from isobit.errors import CapacityError, UsageError


def _rank(state: Running) -> tuple[int, int]:
    return state.rank


class Scheduler:
    """The requests of one engine.

    Args:
        pool: of the key-value cache.
        tokens: the most that one step feeds.
        sequences: the most that take part in a step, at most ``tokens``.

    Attributes:
        steps: schedules made so far.
        preemptions: how often blocks were taken from a request.
    """

    def __init__(self, pool: BlockPool, *, tokens: int, sequences: int) -> None:
        if not 1 <= sequences <= tokens:
            raise UsageError(
                f"{sequences} sequences at once with {tokens} tokens a step: a step feeds each of them a token, so "
                "there must be one or more sequences, and as many tokens or more"
            )
        self.pool, self.tokens, self.sequences = pool, tokens, sequences
        self.steps = self.preemptions = 0
        self._arrivals = 0
        self._known: dict[int, Running] = {}
        self._running: list[Running] = []  # by rank; these hold blocks
        self._waiting: list[Running] = []  # by rank; these hold none
        self._flight: Schedule | None = None
        self._ending: set[int] = set()  # ended while a step that they are part of is under way

    # What there is

    def __contains__(self, id: int) -> bool:
        return id in self._known and id not in self._ending

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._known) - len(self._ending)

    @property
    def running(self) -> tuple[int, ...]:
        """Ids of the requests that hold blocks, by rank."""
        return tuple(state.request.id for state in self._running)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Ids of the requests that hold none, by rank."""
        return tuple(state.request.id for state in self._waiting)

    def state(self, id: int) -> Running:
        """How far a request is."""
        return self._known[id]

    # Coming and going

    def add(self, request: Request) -> None:
        """A request arrives.

        Raises:
            UsageError: it has no prompt, may not answer, or its id is taken.
            CapacityError: the whole cache is too small for it.
        """
        if not request.prompt or request.most < 0 or (request.most == 0 and request.scored is None):
            raise UsageError(f"request {request.id} has {len(request.prompt)} tokens and may answer {request.most}")
        if request.scored is not None and request.scored < 1:
            raise UsageError(f"request {request.id} asks for the score of token {request.scored}; the first has none")
        if request.id in self._known:
            raise UsageError(f"there is a request {request.id} already")
        size, count = self.pool.size, self.pool.count
        if blocks_for(request.longest, size) > count:
            room = count * size - len(request.prompt) + 1
            instead = f"ask for at most {room} tokens" if room > 0 else "shorten the prompt"
            raise CapacityError(
                f"a prompt of {len(request.prompt)} tokens and {request.most} tokens of answer never fit the key-value "
                f"cache, which holds {count * size} tokens ({count} blocks of {size}): {instead}, or give the cache "
                "more memory"
            )
        self._arrivals += 1
        state = Running(request, (self.steps + PATIENCE * request.priority, self._arrivals), list(request.prompt))
        self._known[request.id] = state
        insort(self._waiting, state, key=_rank)

    def end(self, id: int) -> bool:
        """A request ends now, whatever it is doing: it stopped, or nobody wants it any more.

        Its blocks are free at once, or behind the step that is under way. False for one that has ended already.
        """
        if id not in self:
            return False
        if self._flight is not None and any(part.id == id for part in self._flight.parts):
            self._ending.add(id)
        else:
            self._leave(self._known[id])
        return True

    def _leave(self, state: Running) -> None:
        for queue in (self._running, self._waiting):
            place = bisect_left(queue, state.rank, key=_rank)
            if place < len(queue) and queue[place] is state:
                del queue[place]
        self.pool.release(state.blocks)
        del self._known[state.request.id]

    # A step

    def schedule(self) -> Schedule | None:
        """The next step; None when there is no request. :meth:`commit` or :meth:`cancel` it before the next one."""
        if self._flight is not None:
            raise RuntimeError("the last step has neither been committed nor cancelled")
        if not self._known:
            return None
        self.steps += 1
        parts, preempted, budget = self._continued()
        if not preempted:
            parts += self._admitted(budget)
        parts.sort(key=lambda part: self._known[part.id].rank)
        self._flight = Schedule(tuple(parts), self.pool.size, tuple(preempted))
        return self._flight

    def _continued(self) -> tuple[list[Part], list[int], int]:
        """What the running requests feed, whose blocks were taken from them, and how many tokens are left."""
        parts: list[Part] = []
        preempted: list[int] = []
        budget = self.tokens
        decoding = sum(state.left == 1 for state in self._running)  # from here on; each has its token for certain
        place = 0
        while place < len(self._running):
            state = self._running[place]
            decoding -= state.left == 1
            count = min(state.left, budget - decoding)
            lost = self._make_room(state, count)
            decoding -= sum(victim.left == 1 for victim in lost if victim is not state)
            preempted += [victim.request.id for victim in lost]
            if count > 0 and state not in lost:
                parts.append(self._part(state, count))
                budget -= count
            place += 1
        return parts, preempted, budget

    def _make_room(self, state: Running, count: int) -> list[Running]:
        """Blocks for so many more tokens of a running request; returns those they were taken from, last in rank first.

        That may be the request itself, if it is the last.
        """
        lost: list[Running] = []
        needed = blocks_for(state.held + count, self.pool.size) - len(state.blocks)
        while needed > 0:
            taken = self.pool.take(needed)
            if taken is not None:
                state.blocks += taken
                break
            victim = self._running[-1]
            self._preempt(victim)
            lost.append(victim)
            if victim is state:
                break
        return lost

    def _preempt(self, state: Running) -> None:
        self._running.remove(state)
        self.pool.release(state.blocks)
        state.blocks, state.held = [], 0
        state.recomputed += 1
        self.preemptions += 1
        insort(self._waiting, state, key=_rank)

    def _admitted(self, budget: int) -> list[Part]:
        """What the first in rank of those that wait feed, as far as there is room."""
        parts: list[Part] = []
        while self._waiting and budget > 0 and len(self._running) < self.sequences:
            state = self._waiting[0]
            if not self._admit(state):
                break
            del self._waiting[0]
            insort(self._running, state, key=_rank)
            part = self._part(state, min(state.left, budget))
            parts.append(part)
            budget -= len(part.tokens)
        return parts

    def _admit(self, state: Running) -> bool:
        """Blocks for all tokens of a request that waits, shared ones where there are; False if there are too few.

        One block for each running request stays free, so that it is not taken in only to lose its blocks again.
        """
        pool = self.pool
        found = pool.look_up(self._keys(state)) if state.request.reuses else []
        needed = blocks_for(len(state.tokens), pool.size) - len(found)
        if pool.free - pool.idle(found) - needed < len(self._running):
            return False
        pool.share(found)
        state.blocks = found + (pool.take(needed) or [])
        state.held = len(found) * pool.size
        if state.reused is None:
            state.reused = state.held
            pool.asked += len(state.tokens)
            pool.found += state.held
        return True

    def _keys(self, state: Running) -> list[bytes]:
        """Keys of the full blocks that may be read instead of computed."""
        return self._keys_to(state, state.readable // self.pool.size)

    def _keys_to(self, state: Running, count: int) -> list[bytes]:
        """The first ``count`` keys of a request; made once."""
        size, keys = self.pool.size, state.keys
        while len(keys) < count:
            begin = len(keys) * size
            keys.append(key_after(keys[-1] if keys else BEGIN, state.tokens[begin : begin + size]))
        return keys[:count]

    def _part(self, state: Running, count: int) -> Part:
        first, end, request = state.held, state.held + count, state.request
        # Token t is scored by what the token before it gives.
        scored = range(max(state.unscored, first + 1), min(len(request.prompt), end + 1))
        return Part(
            id=request.id,
            first=first,
            tokens=tuple(state.tokens[first:end]),
            blocks=tuple(state.blocks[: blocks_for(end, self.pool.size)]),
            chooses=end == len(state.tokens) and request.most > 0,
            scored=range(scored.start - 1 - first, scored.stop - 1 - first) if scored else range(0),
            targets=request.prompt[scored.start : scored.stop],
        )

    # Behind a step

    def commit(self, schedule: Schedule, chosen: Sequence[int]) -> list[int]:
        """The step is computed.

        Args:
            schedule: the last one.
            chosen: a token for each of ``schedule.choosers``.

        Returns:
            Ids of the requests that have ended by it, since their answers are as long as they may be, in the order of
            the step.
        """
        if schedule is not self._flight:
            raise RuntimeError("this is not the step under way")
        self._flight = None
        for part in schedule.parts:
            state = self._known[part.id]
            state.held += len(part.tokens)
            state.unscored += len(part.targets)
            self._publish(state, part.first)
        for id, token in zip(schedule.choosers, chosen, strict=True):
            self._known[id].tokens.append(token)
        self._sweep()
        full = [part.id for part in schedule.parts if part.id in self and self._full(self._known[part.id])]
        for id in full:
            self._leave(self._known[id])
        return full

    def cancel(self, schedule: Schedule) -> None:
        """The step was not computed, or not to its end: its tokens are to be fed again."""
        if schedule is self._flight:
            self._flight = None
            self._sweep()

    def _publish(self, state: Running, first: int) -> None:
        """Blocks that are full now can be found."""
        pool = self.pool
        if not (pool.keeps and state.request.reuses):
            return
        full = state.held // pool.size
        keys = self._keys_to(state, full)
        for place in range(first // pool.size, full):
            pool.publish(state.blocks[place], keys[place])

    def _sweep(self) -> None:
        for id in sorted(self._ending):
            self._leave(self._known[id])
        self._ending.clear()

    @staticmethod
    def _full(state: Running) -> bool:
        most = state.request.most
        return state.answered >= most and (most > 0 or state.left == 0)
