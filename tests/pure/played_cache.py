"""A cache that is played, and a model that reads it.

The cache remembers for each slot which history its keys and values belong to, and the model chooses the next token from
what it finds there. So a block that is lost, shared by mistake, written twice or found for the wrong tokens changes an
answer, or fails where it is seen.
"""

from __future__ import annotations

import zlib
from collections import Counter

from isobit.engine.blocks import BlockPool
from isobit.engine.request import UNKNOWN, Request, Schedule
from isobit.engine.scheduler import Scheduler

History = tuple[int, ...]


def next_token(history: History) -> int:
    """The played model: a function of everything so far."""
    return zlib.crc32(bytes(history)) % 5


def alone(request: Request) -> list[int]:
    """The answer of a request that nobody disturbs."""
    tokens = list(request.prompt)
    for _ in range(request.most):
        tokens.append(next_token(tuple(tokens)))
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
            history = self.history_of(part.id)
            for place in range(starts[sequence], starts[sequence + 1]):
                position = schedule.positions[place]
                known = len(self.requests[part.id].prompt) + self.committed[part.id]
                assert schedule.tokens[place] == (history[position] if position < known else UNKNOWN)
                block = written[place] // size
                assert self.pool.holders(block) == 1, "a block that somebody else reads is written"
                self.cache[written[place]] = history[: position + 1]
        for sequence, part in enumerate(schedule.parts):
            history = self.history_of(part.id)
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

    def commit(self, schedule: Schedule, chosen: list[int]) -> None:
        for part in schedule.parts:
            rows = [part.first + at for at in part.scored]
            found = [self.history_of(part.id)[: row + 1] for row in rows]
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
