"""Steps that are made for all requests at once (engine/course.py): the same as those made for each, and as right."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from played_cache import History, Looks, Played, alone, looked, looks

from isobit.engine.blocks import BlockPool
from isobit.engine.course import Onward
from isobit.engine.request import ONE_UNKNOWN, UNKNOWN, Request, Schedule
from isobit.engine.scheduler import Scheduler

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple)


class Pair(RuleBasedStateMachine):
    """Two schedulers are told the same; one of them has to say of each request how far it is, behind every call."""

    @initialize(
        blocks=st.integers(4, 30), size=st.integers(1, 4), sequences=st.integers(1, 4), more=st.integers(0, 9),
        keeps=st.booleans(), window=st.none() | st.integers(1, 12),
    )  # fmt: skip
    def begin(self, blocks: int, size: int, sequences: int, more: int, keeps: bool, window: int | None) -> None:
        self.free, self.asked = (
            Played(blocks, size, sequences + more, sequences, keeps, ahead=1, window=window) for _ in range(2)
        )
        self.last_id, self.aborted = 0, set[int]()

    def same(self) -> None:
        for id in self.asked.scheduler.running:
            self.asked.scheduler.state(id)
        free, asked = self.free, self.asked
        assert asked.scheduler._course is None
        assert free.scheduler.running == asked.scheduler.running and free.scheduler.waiting == asked.scheduler.waiting
        assert free.scheduler.steps == asked.scheduler.steps and free.ended == asked.ended
        assert free.pool._holders == asked.pool._holders and free.pool._by_key == asked.pool._by_key
        assert free.pool._empty == asked.pool._empty and [*free.pool._idle] == [*asked.pool._idle]

    @rule(prompt=prompts, most=st.integers(1, 24), priority=st.integers(-1, 1), reuses=st.booleans(), looks=looks)
    def arrive(self, prompt: History, most: int, priority: int, reuses: bool, looks: Looks | None) -> None:
        self.last_id += 1
        sights = None if looks is None else looked(prompt, *looks)
        request = Request(self.last_id, prompt, most, priority, reuses, None, sights)
        if -(-request.longest // self.free.pool.size) <= self.free.pool.count:
            self.free.add(request)
            self.asked.add(request)

    @rule(steps=st.integers(1, 12))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            one, other = self.free.step(), self.asked.step()
            assert not isinstance(other, Onward)
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert one.parts == other.parts and one.preempted == other.preempted and one.block == other.block
            self.same()

    @rule()
    def launch_or_land(self) -> None:
        if len(self.free.flights) < 2:
            one, other = self.free.launch(), self.asked.launch()
            assert (one and one.parts) == (other and other.parts)
        else:
            self.free.land()
            self.asked.land()
        self.same()

    @precondition(lambda self: self.free.flights)
    @rule()
    def lose(self) -> None:
        self.free.lose()
        self.asked.lose()
        self.same()

    @precondition(lambda self: self.free.scheduler.unfinished)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        scheduler = self.free.scheduler
        there = [id for id in sorted({*scheduler.running, *scheduler.waiting}) if id in scheduler]
        id = data.draw(st.sampled_from(there))
        assert scheduler.end(id) and self.asked.scheduler.end(id)
        self.aborted.add(id)
        self.same()

    @rule()
    def look(self) -> None:
        """Blocks are looked at, so that a course ends."""
        self.free.check_blocks()
        self.asked.check_blocks()

    def teardown(self) -> None:
        if not hasattr(self, "free"):
            return
        work = sum(len(request.prompt) + request.most for request in self.free.requests.values())
        self.free.finish(most_steps=3 * work + 4)
        assert self.free.pool.free == self.free.pool.count
        for id, request in self.free.requests.items():
            found = self.free.answers[id]
            assert found == alone(request)[: len(found)] and (id in self.aborted or len(found) == request.most)


TestPair = Pair.TestCase
TestPair.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def made(played: Played, steps: int) -> list[Schedule | None]:
    return [played.step() for _ in range(steps)]


def test_steady_steps_are_of_a_course_until_somebody_comes_or_is_done() -> None:
    played = Played(blocks=40, size=4, tokens=16, sequences=4, ahead=1)
    for id, most in ((1, 9), (2, 20)):
        played.add(Request(id, (id, 2, 3), most=most))
    kinds = [isinstance(step, Onward) for step in made(played, 9)]
    # A prompt, a first step of unknown tokens, and from then on a course; with the ninth token one of them is done.
    assert kinds == [False, False, True, True, True, True, True, True, True]
    assert [isinstance(step, Onward) for step in made(played, 3)] == [False, False, True]
    played.add(Request(3, (7, 7), most=5))
    after = made(played, 3)
    assert [isinstance(step, Onward) for step in after] == [False, False, True]
    assert after[0] is not None and [part.id for part in after[0].parts] == [2, 3]
    played.finish(50)
    assert all(played.answers[id] == alone(request) for id, request in played.requests.items())


def test_who_has_no_place_does_not_end_a_course_and_gets_the_first_one() -> None:
    played = Played(blocks=40, size=4, tokens=16, sequences=2, ahead=1)
    for id in range(1, 6):
        played.add(Request(id, (id, 2, 3), most=20 + id))
        made(played, 1)
    assert all(isinstance(step, Onward) for step in made(played, 9)) and len(played.scheduler.waiting) == 3
    played.finish(150)
    assert all(played.answers[id] == alone(request) for id, request in played.requests.items())


def test_there_is_no_course_of_nobody() -> None:
    scheduler = Scheduler(BlockPool(9, 2), tokens=8, sequences=1, ahead=1)
    for id in (1, 2):
        scheduler.add(Request(id, (4, 3, 2), most=2))
    steps = [scheduler.schedule(), scheduler.schedule()]  # the second is as a course begins, and the last
    ended = [id for step in steps if step is not None for id in scheduler.commit(step, [5])]
    after = scheduler.schedule()
    assert ended == [1] and after is not None and [part.id for part in after.parts] == [2]


def test_a_step_of_a_course_says_what_any_schedule_says() -> None:
    played = Played(blocks=9, size=2, tokens=8, sequences=2, ahead=1)
    played.add(Request(1, (4, 3, 2), most=8))
    played.add(Request(2, (5,), most=8))
    step = made(played, 5)[-1]
    assert isinstance(step, Onward) and step.parts[0].tokens is ONE_UNKNOWN
    assert step.positions == [6, 4] and step.lengths == [7, 5] and step.choosers == [1, 2] and step.rows == [0, 1]
    assert [len(blocks) for blocks in (step.parts[0].blocks, step.parts[1].blocks)] == [4, 3]


@pytest.mark.parametrize("ends", [True, False])
def test_a_cache_that_is_too_small_for_a_course_takes_blocks_from_the_last(ends: bool) -> None:
    played = Played(blocks=7, size=2, tokens=8, sequences=3, keeps=False, ahead=1)
    for id in (1, 2, 3):
        played.add(Request(id, (id,), most=11 if ends else 12))
    played.finish(120)
    assert played.scheduler.preemptions > 0 and played.pool.free == 7
    assert all(played.answers[id] == alone(request) for id, request in played.requests.items())


def test_many_steps_behind_each_other_are_those_of_requests_that_are_alone() -> None:
    numbers = random.Random(3)
    played = Played(blocks=300, size=4, tokens=64, sequences=16, ahead=1)
    onward = 0
    for id in range(1, 40):
        played.add(Request(id, tuple(numbers.choices((0, 1), k=numbers.randrange(1, 9))), numbers.randrange(1, 60)))
        onward += sum(isinstance(step, Onward) for step in made(played, numbers.randrange(12)))
    while played.scheduler.unfinished or played.flights:
        onward += isinstance(played.step(), Onward)
    assert onward > 60
    assert all(played.answers[id] == alone(request) for id, request in played.requests.items())


@pytest.mark.parametrize("flights", [0, 1, 2])
def test_a_course_that_ends_with_steps_under_way_has_counted_them(flights: int) -> None:
    played = Played(blocks=40, size=4, tokens=16, sequences=4, ahead=1)
    for id in (1, 2):
        played.add(Request(id, (id, 2, 3), most=30))
    made(played, 9)
    while len(played.flights) < flights:
        assert isinstance(played.launch(), Onward)
    while len(played.flights) > flights:
        played.land()
    assert played.scheduler._course is not None
    for id in (1, 2):
        state, given = played.scheduler.state(id), len(played.answers[id])
        assert state.tokens == [*played.requests[id].prompt, *played.answers[id], *[UNKNOWN] * flights]
        assert (state.flying, state.unknown, state.held) == (flights, flights, 2 + given + flights)
    played.finish(60)
    assert all(played.answers[id] == alone(request) for id, request in played.requests.items())
