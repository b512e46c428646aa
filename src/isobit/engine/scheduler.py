"""Which tokens of which requests go through the model in the next step: continuous batching over a pool of blocks.

Every request has a rank, given at its arrival: its priority and when it came. The first in rank is served first, its
blocks are never taken from it, and whatever it needs is taken from the last in rank: so it ends, and then the next is
first. What had been computed of a request whose blocks were taken is computed again when there is room.

A step feeds every decoding request its one token, and what is left of the step's tokens to prompts, in pieces.

A step may be scheduled before the tokens of the one before it are known: what that one chooses is then fed as
:data:`~isobit.engine.request.UNKNOWN`. Steps are computed in the order of their schedules, so what one of them writes
to the cache is there for the next. A request that turns out to have ended takes part in the next step all the same,
whose result nobody reads; its blocks are free behind it.

The same calls give the same schedules: nothing here reads a clock or draws a number.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from isobit.engine.blocks import BlockPool, blocks_for
from isobit.engine.course import Course, Onward, steady
from isobit.engine.holding import give_back, key_of, publish, require_room
from isobit.engine.request import ONE_UNKNOWN, PATIENCE, UNKNOWN, Part, Request, Running, Schedule, made
from isobit.errors import UsageError
from isobit.targets.prefill import beside

_NONE = range(0)


def _rank(state: Running) -> tuple[int, int]:
    return state.rank


class Scheduler:
    """The requests of one engine.

    Args:
        pool: of the key-value cache.
        tokens: the most that one step feeds, unless ``wide`` are due.
        sequences: the most that take part in a step, at most ``tokens``.
        ahead: steps that may be under way when another is scheduled.
        window: latest tokens that a token attends to, in all layers of the model; None where one attends to all.
        wide: tokens of prompts in a step where so many are due, if that is more.

    Attributes:
        steps: schedules made so far.
        preemptions: how often blocks were taken from a request.
    """

    def __init__(
        self, pool: BlockPool, *, tokens: int, sequences: int, ahead: int = 0, window: int | None = None, wide: int = 0
    ) -> None:
        if not 1 <= sequences <= tokens:
            raise UsageError(
                f"{sequences} sequences at once with {tokens} tokens a step: a step feeds each of them a token, so "
                "there must be one or more sequences, and as many tokens or more"
            )
        self.pool, self.tokens, self.sequences, self.ahead, self.window = pool, tokens, sequences, ahead, window
        self.wide = max(tokens, wide)
        self.steps = self.preemptions = 0
        self._arrivals = 0
        self._known: dict[int, Running] = {}
        self._running: list[Running] = []  # by rank; these hold blocks
        self._waiting: list[Running] = []  # by rank; these hold none
        self._flights: deque[Schedule] = deque()  # the steps under way, the oldest first
        self._ending = 0  # requests that ended while a step that they are part of is under way
        self._course: Course | None = None
        self._still = False  # whether the next step is as the last one, unless a request ends or is done

    # What there is

    def __contains__(self, id: int) -> bool:
        state = self._known.get(id)
        return state is not None and not state.ending

    @property
    def unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._known) - self._ending

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
        self._leave_course()
        return self._known[id]

    # Coming and going

    def add(self, request: Request) -> None:
        """A request arrives.

        Raises:
            UsageError: it has no prompt, may not answer, or its id is taken.
            CapacityError: the whole cache is too small for it.
        """
        if request.id in self._known:
            raise UsageError(f"there is a request {request.id} already")
        require_room(request, self.pool.size, self.pool.count)
        self._arrivals += 1
        state = Running(request, (self.steps + PATIENCE * request.priority, self._arrivals), list(request.prompt))
        self._known[request.id] = state
        insort(self._waiting, state, key=_rank)

    def end(self, id: int) -> bool:
        """A request ends now, whatever it is doing: it stopped, or nobody wants it any more.

        Its blocks are free at once, or behind the steps under way that it takes part in. False for one that has ended
        already.
        """
        if id not in self:
            return False
        self._leave_course()
        state = self._known[id]
        if state.flying:
            state.ending = True
            self._ending += 1
        else:
            self._leave(state)
        return True

    def _leave(self, state: Running) -> None:
        queue = self._running if state.blocks else self._waiting
        del queue[bisect_left(queue, state.rank, key=_rank)]
        self.pool.release(state.blocks[state.passed :])
        self._ending -= state.ending
        del self._known[state.request.id]

    # A step

    def schedule(self) -> Schedule | None:
        """The next step; None when there is nothing to feed. :meth:`commit` or :meth:`cancel` it.

        Raises:
            RuntimeError: more than ``ahead`` steps are under way.
        """
        if len(self._flights) > self.ahead:
            raise RuntimeError("the last step has neither been committed nor cancelled")
        if not self._known:
            return None
        schedule = self._onward() or self._next()
        if schedule is not None:
            self.steps += 1
            self._flights.append(schedule)
        return schedule

    def _onward(self) -> Onward | None:
        """The next step where all that run decode, and nobody comes in; None where it takes a look at each.

        A course begins with the second such step: those who come and go with every step are no course.
        """
        if self._course is None and self._still:
            self._course = Course.of(self._running, self.pool)
        step = None if self._course is None or self._comes_in(0) else self._course.next()
        if step is None:
            self._leave_course()
        return step

    def _leave_course(self) -> None:
        """Every request knows how far it is."""
        self._still = False
        if self._course is not None:
            self._course.end()
            self._course = None

    def _next(self) -> Schedule | None:
        """The next step, looked for request by request."""
        lefts = [state.left for state in self._running]
        ends = lefts.count(0)  # they only wait for what is under way
        parts, preempted, budget = self._continued(lefts)
        if not preempted and (admitted := self._admitted(budget, ends)):
            parts = sorted(parts + admitted, key=lambda part: self._known[part.id].rank)
        if not parts:
            return None  # all wait for what is under way
        self._still = self.ahead > 0 and self.window is None and not preempted and steady(parts, lefts)
        return Schedule(tuple(parts), self.pool.size, tuple(preempted))

    def _continued(self, lefts: list[int]) -> tuple[list[Part], list[int], int]:
        """What the running requests feed, whose blocks were taken from them, and how many tokens are left.

        Args:
            lefts: tokens that each has to feed. Where one has none, it ends with what is under way, and who lacks a
                block waits for its blocks.
        """
        ends = 0 in lefts
        size = self.pool.size
        parts: list[Part] = []
        preempted: list[int] = []
        decoding = lefts.count(1)  # from here on; each has its token for certain
        budget = self._most(sum(lefts), decoding)
        place = 0
        while place < len(self._running):
            state, left = self._running[place], lefts[place]
            place += 1
            if left == 1:
                decoding -= 1
                if budget > decoding and state.held < size * len(state.blocks):  # most of them, most of the time
                    parts.append(self._part(state, 1))
                    budget -= 1
                    continue
            while 0 < (count := min(left, budget - decoding)):
                lost: list[Running] = []
                if state.held + count > size * len(state.blocks):
                    if ends and self._lacks(state, count) > self.pool.free:
                        break
                    lost = self._make_room(state, count)
                if not lost:
                    parts.append(self._part(state, count))
                    budget -= count
                    break
                preempted += [victim.request.id for victim in lost]
                if state in lost:
                    break
                decoding = lefts[place : len(self._running)].count(1)  # what they would have fed is left for this one
        return parts, preempted, budget

    def _most(self, due: int, decoding: int) -> int:
        """Tokens of the next step at most; ``due`` are those of the running requests, of which so many decode.

        Those are fed beside a wide step of prompts: in it, they would leave a prompt's last tokens for another.
        """
        if self.wide <= self.tokens:
            return self.tokens
        free = max(0, self.sequences - len(self._running))
        due += sum([state.left for state in self._waiting[:free]]) - decoding
        return self.wide + min(decoding, beside(self.wide)) if due >= self.wide else self.tokens

    def _lacks(self, state: Running, count: int) -> int:
        """Blocks that so many more tokens of a request need beside its own."""
        return blocks_for(state.held + count, self.pool.size) - len(state.blocks)

    def _make_room(self, state: Running, count: int) -> list[Running]:
        """Blocks for so many more tokens of a running request; returns those they were taken from, last in rank first.

        That may be the request itself, if it is the last.
        """
        lost: list[Running] = []
        needed = self._lacks(state, count)
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
        self.pool.release(state.blocks[state.passed :])
        state.blocks, state.listed, state.held, state.passed = [], (), 0, 0
        state.recomputed += 1
        self.preemptions += 1
        insort(self._waiting, state, key=_rank)

    def _admitted(self, budget: int, ends: int) -> list[Part]:
        """What the first in rank of those that wait feed, as far as there is room, of which ``ends`` take none."""
        parts: list[Part] = []
        while budget > 0 and self._comes_in(ends):
            state = self._waiting.pop(0)
            self._admit(state)
            insort(self._running, state, key=_rank)
            part = self._part(state, min(state.left, budget))
            parts.append(part)
            budget -= len(part.tokens)
        return parts

    def _comes_in(self, ends: int) -> bool:
        """Whether the first in rank of those that wait may run, beside the running of whom ``ends`` end.

        One block for each running request stays free, so that it is not taken in only to lose its blocks again.
        """
        if not self._waiting or len(self._running) - ends >= self.sequences or self._waiting[0].flying:
            return False
        state, pool = self._waiting[0], self.pool
        found = self._found(state)
        needed = blocks_for(len(state.tokens), pool.size) - len(found)
        return pool.free - pool.idle(found) - needed >= len(self._running)

    def _admit(self, state: Running) -> None:
        """Blocks for all tokens of a request that waited, shared ones where there are."""
        pool, found = self.pool, self._found(state)
        pool.share(found)
        state.blocks = found + (pool.take(blocks_for(len(state.tokens), pool.size) - len(found)) or [])
        state.held = len(found) * pool.size
        if state.reused is None:
            state.reused = state.held
            pool.asked += len(state.tokens)
            pool.found += state.held

    def _found(self, state: Running) -> list[int]:
        """The full blocks that a request may read instead of computing them."""
        size = self.pool.size
        if not (self.pool.keeps and state.request.reuses):
            return []
        return self.pool.look_up(key_of(state, number, size) for number in range(state.readable // size))

    def _part(self, state: Running, count: int) -> Part:
        """What a request feeds; from here on it counts as fed, and what it chooses as there."""
        first, end, request = state.held, state.held + count, state.request
        tokens = state.tokens
        held = -(-end // self.pool.size)
        if len(state.listed) != held:
            state.listed = tuple(state.blocks[:held])
        chooses = end == len(tokens) and request.most > 0
        fed = ONE_UNKNOWN if tokens[first] == UNKNOWN else tuple(tokens[first:end])  # nothing follows what is unknown
        part = made(Part, (request.id, first, fed, state.listed, chooses, _NONE, (), 0, False))
        if state.unscored < len(request.prompt):  # a token is scored by what the token before it gives
            scored = range(max(state.unscored, first + 1), min(len(request.prompt), end + 1))
            places = range(scored.start - 1 - first, scored.stop - 1 - first) if scored else range(0)
            part = part._replace(scored=places, targets=request.prompt[scored.start : scored.stop])
            state.unscored += len(part.targets)
        if request.sights is not None:
            part = part._replace(shift=request.sights.shift, looks=first < len(request.prompt))
        state.held = end
        state.flying += 1
        if chooses:
            tokens.append(UNKNOWN)
            state.unknown += 1
        return part

    # Behind a step

    def commit(self, schedule: Schedule, chosen: Sequence[int]) -> list[int]:
        """A step is computed.

        Args:
            schedule: the oldest under way.
            chosen: a token for each of ``schedule.choosers``.

        Returns:
            Ids of the requests that have ended by it, since their answers are as long as they may be, in the order of
            the step.
        """
        if not self._flights or schedule is not self._flights[0]:
            raise RuntimeError("this is not the step under way")
        self._flights.popleft()
        if isinstance(schedule, Onward) and schedule.course is self._course:
            if not schedule.last:
                self._course.commit(chosen)
                return []
            self._leave_course()
        tokens, full = iter(chosen), list[int]()
        known, size = self._known, self.pool.size
        for part in schedule.parts:
            state = known[part.id]
            state.flying -= 1
            if state.blocks:  # else they were taken from it in the meantime
                first = part.first
                end = first + len(part.tokens)
                if first // size != end // size:
                    publish(self.pool, state, first, end)
                if self.window is not None:
                    give_back(self.pool, state, end, self.window)
            if part.chooses:
                state.tokens[-state.unknown] = next(tokens)
                state.unknown -= 1
            if state.flying:
                continue
            if state.ending:
                self._leave(state)
            elif state.complete:
                self._leave(state)
                full.append(part.id)
        return full

    def cancel(self, schedule: Schedule) -> None:
        """A step was not computed, or not to its end: its tokens are to be fed again. The newest goes first.

        Raises:
            RuntimeError: there is a newer one.
        """
        if not any(flight is schedule for flight in self._flights):
            return
        if schedule is not self._flights[-1]:
            raise RuntimeError("a newer step is under way: it has to be cancelled first")
        self._leave_course()
        self._flights.pop()
        for part in schedule.parts:
            state = self._known[part.id]
            state.flying -= 1
            state.unscored -= len(part.targets)
            if part.chooses:
                state.tokens.pop()
                state.unknown -= 1
            if state.blocks:
                state.held = part.first
            if state.ending and not state.flying:
                self._leave(state)
