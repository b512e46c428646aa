"""A cache that is played, and a model that reads it.

The cache remembers for each slot which history its keys and values belong to, and the model chooses the next token from
what it finds there. So a block that is lost, shared by mistake, written twice, or found for the wrong tokens, those of
another picture or other positions, changes an answer, or fails where it is seen.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

from hypothesis import strategies as st

from isobit.engine.blocks import BlockPool
from isobit.engine.request import UNKNOWN, Request, Schedule
from isobit.engine.scheduler import Scheduler
from isobit.engine.sights import Sight, Sights

History = tuple[int, ...]
Looks = tuple[list[tuple[bytes, set[int]]], list[int] | None, int]  # pieces, positions, shift

looks = st.none() | st.tuples(
    st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.sets(st.integers(0, 13), max_size=8)), max_size=2),
    st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=3),
    st.integers(-1, 1),
)


def next_token(history: History) -> int:
    """The played model: a function of everything so far."""
    return zlib.crc32(repr(history).encode()) % 5


def seen(request: Request, tokens: Sequence[int]) -> History:
    """What the model sees of a request's tokens: of those of a picture, and of others that do not stand at their place,
    a number that nothing else has."""
    sights = request.sights
    if sights is None:
        return tuple(tokens)
    parts = {place: (key, row) for key, places in sights.shown for row, place in enumerate(places)}
    found = []
    for place, token in enumerate(tokens):
        told = (place + sights.shift,) * sights.axes
        if place < sights.length:
            told = tuple(sights.told[place * sights.axes : (place + 1) * sights.axes]) or (place,) * sights.axes
        odd = parts.get(place), told if told != (place,) * sights.axes else None
        found.append(token if odd == (None, None) else zlib.crc32(repr((token, odd)).encode()))
    return tuple(found)


def looked(prompt: History, pieces: Sequence[tuple[bytes, set[int]]], told: Sequence[int] | None, shift: int) -> Sights:
    """Sights of a prompt: pieces at those of some places that are there and not taken; positions on two axes."""
    free = set(range(len(prompt)))
    shown = []
    for key, wanted in pieces:
        places = sorted(wanted & free)
        free -= wanted
        if places:
            shown.append(Sight(key, tuple(places)))
    shown.sort(key=lambda one: one.places)
    if told is None:
        return Sights(tuple(shown), len(prompt), shift=shift)
    positions = [place + told[at % len(told)] for place in range(len(prompt)) for at in (2 * place, 2 * place + 1)]
    return Sights(tuple(shown), len(prompt), 2, positions, shift)


def alone(request: Request) -> list[int]:
    """The answer of a request that nobody disturbs."""
    tokens = list(request.prompt)
    for _ in range(request.most):
        tokens.append(next_token(seen(request, tokens)))
    return tokens[len(request.prompt) :]


class Played:
    """A cache, a model and a scheduler that runs them, up to ``ahead`` steps before the tokens of a step are known.

    Attributes:
        made: per request what the model has chosen: it knows its own tokens before the scheduler does.
        answers: per request those that were committed while somebody wanted them.
    """

    def __init__(
        self,
        blocks: int,
        size: int,
        tokens: int,
        sequences: int,
        keeps: bool = True,
        ahead: int = 0,
        window: int | None = None,
    ) -> None:
        self.pool = BlockPool(blocks, size, keeps=keeps)
        self.scheduler = Scheduler(self.pool, tokens=tokens, sequences=sequences, ahead=ahead, window=window)
        self.cache: dict[int, History] = {}
        self.requests: dict[int, Request] = {}
        self.answers: dict[int, list[int]] = {}
        self.made: dict[int, list[int]] = {}
        self.scored: dict[int, list[tuple[History, int]]] = {}
        self.committed: Counter[int] = Counter()
        self.flights: list[tuple[Schedule, list[int]]] = []
        self.ended: set[int] = set()

    def add(self, request: Request) -> None:
        self.scheduler.add(request)
        self.requests[request.id] = request
        self.answers[request.id] = []
        self.made[request.id] = []
        self.committed[request.id] = 0
        self.scored[request.id] = []

    def compute(self, schedule: Schedule) -> list[int]:
        """What the model chooses; everything is written before anything is read, as in a layer."""
        size = schedule.block
        written = schedule.slots
        assert len(set(written)) == len(written) and min(written) >= 0 and max(written) < self.pool.count * size
        starts, table, lengths = schedule.starts, schedule.table, schedule.lengths
        assert schedule.positions == [
            position
            for begin, end, length in zip(starts, starts[1:], lengths, strict=False)
            for position in range(length - (end - begin), length)
        ]
        chosen = {}
        for sequence, part in enumerate(schedule.parts):
            history, visible = self.history_of(part.id), self.seen_of(part.id)
            sights = self.requests[part.id].sights
            assert part.shift == (0 if sights is None else sights.shift)
            assert part.looks == (sights is not None and part.first < sights.length)
            for place in range(starts[sequence], starts[sequence + 1]):
                position = schedule.positions[place]
                known = len(self.requests[part.id].prompt) + self.committed[part.id]
                assert schedule.tokens[place] == (history[position] if position < known else UNKNOWN)
                block = written[place] // size
                assert self.pool.holders(block) == 1, "a block that somebody else reads is written"
                self.cache[written[place]] = visible[: position + 1]
        for sequence, part in enumerate(schedule.parts):
            history = self.seen_of(part.id)
            length = lengths[sequence]
            window = self.scheduler.window
            seen = range(0 if window is None else max(0, part.first - window + 1), length)
            read = [self.cache[table[sequence][p // size] * size + p % size] for p in seen]
            assert read == [history[: p + 1] for p in seen], "a request attends to what is not its own"
            assert part.chooses == (length == len(history) and self.requests[part.id].most > 0)
            if part.chooses:
                chosen[part.id] = next_token(read[-1])
        assert schedule.choosers == list(chosen)
        for id, row in zip(chosen, schedule.rows, strict=True):
            assert schedule.tokens[row] in (UNKNOWN, self.history_of(id)[-1])
        for id, token in chosen.items():
            self.made[id].append(token)
        return list(chosen.values())

    def history_of(self, id: int) -> History:
        return (*self.requests[id].prompt, *self.made[id])

    def seen_of(self, id: int) -> History:
        return seen(self.requests[id], self.history_of(id))

    def commit(self, schedule: Schedule, chosen: list[int]) -> None:
        for part in schedule.parts:
            rows = [part.first + at for at in part.scored]
            found = [self.seen_of(part.id)[: row + 1] for row in rows]
            self.scored[part.id] += zip(found, part.targets, strict=True)
        for id, token in zip(schedule.choosers, chosen, strict=True):
            self.committed[id] += 1
            if id in self.scheduler:
                self.answers[id].append(token)
        self.ended.update(self.scheduler.commit(schedule, chosen))

    def launch(self) -> Schedule | None:
        """Another step is under way; it is computed at once, and nobody reads yet what it chose."""
        schedule = self.scheduler.schedule()
        if schedule is not None:
            self.flights.append((schedule, self.compute(schedule)))
        return schedule

    def land(self) -> None:
        """The oldest step under way is read."""
        self.commit(*self.flights.pop(0))

    def lose(self) -> None:
        """The newest step under way was not computed."""
        schedule, _ = self.flights.pop()
        self.scheduler.cancel(schedule)
        for id in schedule.choosers:
            self.made[id].pop()

    def step(self) -> Schedule | None:
        """A step, and what is then beyond what may be under way."""
        while len(self.flights) > self.scheduler.ahead:
            self.land()
        schedule = self.launch()
        if self.flights and (schedule is None or len(self.flights) > self.scheduler.ahead):
            self.land()
        return schedule

    def finish(self, most_steps: int) -> None:
        for _ in range(most_steps):
            self.step()
            if not self.flights and not self.scheduler.unfinished:
                return
        raise AssertionError(f"{self.scheduler.unfinished} requests have not ended after {most_steps} steps")

    def check_blocks(self) -> None:
        """Every block is free, or held by as many requests as the pool says; nothing is lost."""
        states = [self.scheduler.state(id) for id in self.scheduler.running]
        held = Counter(block for state in states for block in state.blocks[state.passed :])
        assert all(held[block] == self.pool.holders(block) for block in range(self.pool.count))
        assert self.pool.free == self.pool.count - len(held)
        for state in states:
            assert len(set(state.blocks)) == len(state.blocks) - state.passed
            size = self.pool.size
            for place, block in enumerate(state.blocks):
                if (place + 1) * size > state.held:
                    assert self.pool.holders(block) == 1, "a block that is not full is shared"
        waiting = [self.scheduler.state(id) for id in self.scheduler.waiting]
        assert all(not state.blocks and not state.held for state in waiting)
