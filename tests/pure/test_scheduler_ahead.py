"""The scheduler one step ahead of what is known: the same invariants, the same answers, whatever ends in between."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from played_cache import History, Looks, Played, alone, looked, looks, seen

from isobit.engine.blocks import BlockPool
from isobit.engine.request import UNKNOWN, Request
from isobit.engine.scheduler import Scheduler

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14).map(tuple)


class Ahead(RuleBasedStateMachine):
    """Requests come, end and are preempted while up to two steps are under way."""

    @initialize(
        blocks=st.integers(3, 12), size=st.integers(1, 4), sequences=st.integers(1, 4), more=st.integers(0, 9),
        keeps=st.booleans(), window=st.none() | st.integers(1, 12),
    )  # fmt: skip
    def begin(self, blocks: int, size: int, sequences: int, more: int, keeps: bool, window: int | None) -> None:
        self.played = Played(blocks, size, sequences + more, sequences, keeps, ahead=1, window=window)
        self.last_id = 0
        self.aborted: set[int] = set()

    @rule(
        prompt=prompts, most=st.integers(0, 9), priority=st.integers(-1, 1), reuses=st.booleans(),
        scored=st.none() | st.integers(1, 14), looks=looks,
    )  # fmt: skip
    def arrive(
        self, prompt: History, most: int, priority: int, reuses: bool, scored: int | None, looks: Looks | None
    ) -> None:
        self.last_id += 1
        scored = len(prompt) if scored is None and most == 0 else scored
        sights = None if looks is None else looked(prompt, *looks)
        request = Request(self.last_id, prompt, most, priority, reuses or most % 3 > 0, scored, sights)
        if -(-request.longest // self.played.pool.size) <= self.played.pool.count:
            self.played.add(request)

    @precondition(lambda self: len(self.played.flights) < 2)
    @rule()
    def launch(self) -> None:
        scheduler = self.played.scheduler
        before = [scheduler.state(id) for id in scheduler.running]
        first = next((state for state in before if state.left), None)
        waits = first is not None and scheduler._lacks(first, 1) > self.played.pool.free
        schedule = self.played.launch()
        if schedule is None:
            assert first is None or waits, "nothing is fed, and the first in rank could be"
            return
        fed = {part.id for part in schedule.parts}
        assert fed and len(schedule.tokens) <= scheduler.tokens and len(fed) <= scheduler.sequences
        if first is not None and not waits:
            assert first.request.id in fed - set(schedule.preempted), "the first in rank waits"

    @precondition(lambda self: self.played.flights)
    @rule()
    def land(self) -> None:
        self.played.land()

    @precondition(lambda self: self.played.flights)
    @rule(both=st.booleans())
    def lose(self, both: bool) -> None:
        self.played.lose()
        while both and self.played.flights:
            self.played.lose()

    @precondition(lambda self: self.played.scheduler.unfinished)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Somebody stops: aborted, or at a token that ends the text, of which the step ahead knew nothing."""
        scheduler = self.played.scheduler
        there = [id for id in sorted({*scheduler.running, *scheduler.waiting}) if id in scheduler]
        id = data.draw(st.sampled_from(there))
        assert scheduler.end(id) and not scheduler.end(id) and id not in scheduler
        self.aborted.add(id)

    @rule()
    def forget(self) -> None:
        self.played.pool.forget()

    @invariant()
    def no_block_is_lost_or_shared_by_mistake(self) -> None:
        if hasattr(self, "played"):
            self.played.check_blocks()

    def teardown(self) -> None:
        if not hasattr(self, "played"):
            return
        work = sum(len(request.prompt) + request.most for request in self.played.requests.values())
        self.played.finish(most_steps=3 * work + 4)
        self.played.check_blocks()
        assert self.played.pool.free == self.played.pool.count
        for id, request in self.played.requests.items():
            expected = alone(request)
            if id in self.aborted:
                assert self.played.answers[id] == expected[: len(self.played.answers[id])]
            else:
                assert id in self.played.ended
                assert self.played.answers[id] == expected
                first = len(request.prompt) if request.scored is None else request.scored
                visible = seen(request, request.prompt)
                wanted = [(visible[:at], request.prompt[at]) for at in range(first, len(visible))]
                assert self.played.scored[id] == wanted, "a token of a prompt is scored twice, or not at all"


TestAhead = Ahead.TestCase
TestAhead.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def test_a_token_that_is_not_known_yet_is_fed_by_name() -> None:
    played = Played(blocks=8, size=2, tokens=8, sequences=4, ahead=1)
    played.add(Request(7, (4, 3, 2), most=3))
    fed = [[(part.first, part.tokens) for part in (played.step() or pytest.fail()).parts] for _ in range(3)]
    assert fed == [[(0, (4, 3, 2))], [(3, (UNKNOWN,))], [(4, (UNKNOWN,))]]
    assert played.step() is None  # the third token is the last
    while played.flights:
        played.land()
    assert played.answers[7] == alone(played.requests[7]) and 7 in played.ended
    assert played.pool.free == played.pool.count


def test_who_ends_is_dropped_behind_the_step_that_was_launched_already() -> None:
    played = Played(blocks=8, size=2, tokens=8, sequences=2, ahead=1)
    for id in (1, 2, 3):
        played.add(Request(id, (id, 2), most=5))
    first, second = played.launch(), played.launch()
    assert first is not None and second is not None and {part.id for part in second.parts} == {1, 2}
    held = played.pool.free
    played.scheduler.end(1)  # at the token of the first step
    played.land()
    assert 1 not in played.scheduler and played.pool.free == held, "its row of the second step still writes"
    third = played.launch()
    assert third is not None and {part.id for part in third.parts} == {2, 3}, "its place is taken at once"
    played.land()
    assert 1 not in played.scheduler._known
    played.finish(20)
    assert all(played.answers[id] == alone(played.requests[id]) for id in (2, 3))


def test_who_lacks_a_block_waits_for_one_that_comes_back() -> None:
    """Nothing is computed twice where a step under way is the last of somebody."""
    played = Played(blocks=4, size=1, tokens=4, sequences=2, ahead=1)
    played.add(Request(1, (1,), most=2))
    played.add(Request(2, (2,), most=3))
    played.finish(20)
    assert played.scheduler.preemptions == 0
    assert all(played.answers[id] == alone(played.requests[id]) for id in (1, 2))


@pytest.mark.parametrize("ahead", [0, 1])
def test_blocks_behind_a_window_are_free(ahead: int) -> None:
    played = Played(blocks=12, size=2, tokens=4, sequences=1, ahead=ahead, window=4)
    played.add(Request(1, tuple(range(4)), most=20))
    held = set()
    while played.scheduler.unfinished:
        played.step()
        held.add(played.pool.count - played.pool.free)
    assert max(held) <= 5 and played.answers[1] == alone(played.requests[1])
    played = Played(blocks=12, size=2, tokens=4, sequences=1, window=4)
    played.add(Request(2, tuple(range(9)), most=3))
    played.step()
    played.step()
    assert played.scheduler.state(2).passed == 2 and played.pool.look_up(played.scheduler.state(2).keys[:1])


def test_steps_are_cancelled_from_the_newest_on_and_no_further_than_allowed() -> None:
    scheduler = Scheduler(BlockPool(4, 4), tokens=8, sequences=2, ahead=1)
    scheduler.add(Request(1, (1,), most=5))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None
    with pytest.raises(RuntimeError, match="neither been committed nor cancelled"):
        scheduler.schedule()
    with pytest.raises(RuntimeError, match="not the step under way"):
        scheduler.commit(second, [1])
    with pytest.raises(RuntimeError, match="a newer step is under way"):
        scheduler.cancel(first)
    scheduler.cancel(second)
    scheduler.cancel(second)
    scheduler.cancel(first)
    assert scheduler.state(1).tokens == [1] and scheduler.state(1).held == 0
