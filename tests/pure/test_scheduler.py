"""The scheduler against a cache that is played: what every request attends to must be its own history, always.

Every answer is compared with that of the request alone; ``played_cache.py`` says what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from played_cache import History, Looks, Played, alone, looked, looks, seen

from isobit.engine.blocks import BEGIN, BlockPool, key_after
from isobit.engine.request import PATIENCE, Request, Schedule
from isobit.engine.scheduler import Scheduler
from isobit.errors import CapacityError, UsageError
from isobit.targets.prefill import beside

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14).map(tuple)


class Life(RuleBasedStateMachine):
    """Requests come, go and are preempted in any order."""

    @initialize(
        blocks=st.integers(3, 12), size=st.integers(1, 4), sequences=st.integers(1, 4), more=st.integers(0, 9),
        keeps=st.booleans(),
    )  # fmt: skip
    def begin(self, blocks: int, size: int, sequences: int, more: int, keeps: bool) -> None:
        self.played = Played(blocks, size, sequences + more, sequences, keeps)
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
        pool = self.played.pool
        if -(-request.longest // pool.size) > pool.count:
            with pytest.raises(CapacityError, match=f"{len(prompt)} tokens and {most} tokens of answer never fit"):
                self.played.add(request)
        else:
            self.played.add(request)

    @rule()
    def step(self) -> None:
        scheduler = self.played.scheduler
        before = [scheduler.state(id) for id in scheduler.running]
        decoding = {state.request.id for state in before if state.left == 1}
        schedule = self.played.step()
        if schedule is None:
            return
        fed = {part.id for part in schedule.parts}
        assert fed and len(schedule.tokens) <= scheduler.tokens and len(fed) <= scheduler.sequences
        assert decoding <= fed.union(schedule.preempted), "a request that decodes waits for prompts"
        if before:
            assert before[0].request.id in fed - set(schedule.preempted), "the first in rank waits"
        requests = self.played.requests
        if any(part.first + len(part.tokens) < len(requests[part.id].prompt) for part in schedule.parts):
            assert len(schedule.tokens) == scheduler.tokens, "a prompt waits and there was room in the step"

    @precondition(lambda self: self.played.scheduler.unfinished)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted({*self.played.scheduler.running, *self.played.scheduler.waiting})))
        assert self.played.scheduler.end(id)
        assert not self.played.scheduler.end(id)
        self.aborted.add(id)

    @precondition(lambda self: self.played.scheduler.unfinished)
    @rule(data=st.data(), computed=st.booleans())
    def abort_under_way(self, data: st.DataObject, computed: bool) -> None:
        """While a step is computed, which is then committed or, after an error, cancelled."""
        assert self.played.launch() is not None
        id = data.draw(st.sampled_from(sorted({*self.played.scheduler.running, *self.played.scheduler.waiting})))
        assert self.played.scheduler.end(id)
        assert id not in self.played.scheduler
        self.aborted.add(id)
        if computed:
            self.played.land()
        else:
            self.played.lose()

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
        self.played.finish(most_steps=2 * work + 2)
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


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def ids() -> Iterator[int]:
    return iter(range(1, 10**6))


def test_a_prompt_is_fed_in_pieces_beside_requests_that_decode() -> None:
    played = Played(blocks=20, size=4, tokens=6, sequences=4)
    played.add(Request(1, (1, 2), most=20))
    played.step()
    played.add(Request(2, tuple(range(13)), most=3))
    fed = []
    for _ in range(4):
        schedule = played.step()
        assert schedule is not None
        fed.append([(part.id, part.first, len(part.tokens), part.chooses) for part in schedule.parts])
    assert fed == [
        [(1, 2, 1, True), (2, 0, 5, False)],
        [(1, 3, 1, True), (2, 5, 5, False)],
        [(1, 4, 1, True), (2, 10, 3, True)],
        [(1, 5, 1, True), (2, 13, 1, True)],
    ]


def test_a_long_prompt_that_goes_first_does_not_stop_those_that_decode() -> None:
    played = Played(blocks=40, size=4, tokens=5, sequences=4)
    for id in (1, 2):
        played.add(Request(id, (id, 2), most=20))
    played.step()
    played.add(Request(3, tuple(range(11)), most=3, priority=-1))
    fed = [
        [(part.id, len(part.tokens)) for part in schedule.parts] for schedule in map(lambda _: played.step(), "1234")
    ]
    assert fed == [[(3, 3), (1, 1), (2, 1)]] * 3 + [[(3, 2), (1, 1), (2, 1)]]


def test_a_step_is_wide_where_so_much_is_due() -> None:
    def fed(lengths: tuple[int, ...], sequences: int = 8) -> list[int]:
        scheduler = Scheduler(BlockPool(64, 4), tokens=8, sequences=sequences, wide=24)
        for id, length in enumerate(lengths):
            scheduler.add(Request(id, (id + 1,) * length, most=1))
        counts = []
        while (schedule := scheduler.schedule()) is not None:
            counts.append(sum(len(part.tokens) for part in schedule.parts))
            scheduler.commit(schedule, [5] * len(schedule.choosers))
        return counts

    assert fed((23,)) == [8, 8, 7]
    assert fed((24,)) == [24]
    assert fed((10, 10, 10)) == [24, 6]
    assert fed((40, 20)) == [24, 24, 8, 4]
    assert fed((10, 10, 10), sequences=2) == [8, 8, 8, 6]  # a third does not take part, and does not count


def test_those_that_decode_go_beside_a_wide_step_of_prompts() -> None:
    scheduler = Scheduler(BlockPool(400, 4), tokens=16, sequences=8, wide=128)
    for id in range(8):
        scheduler.add(Request(id, (id + 1,) * 64, most=8))
    counts = []
    for _ in range(5):
        schedule = scheduler.schedule()
        assert schedule is not None
        counts.append([len(part.tokens) for part in schedule.parts])
        scheduler.commit(schedule, [5] * len(schedule.choosers))
    assert counts[:4] == [[64, 64], [1, 1, 64, 64], [1, 1, 1, 1, 64, 62], [1, 1, 1, 1, 1, 2, 64, 59]]
    assert beside(128) == 2, "more than two that decode leave prompts less than their room"


def test_a_schedule_says_what_a_flat_batch_needs() -> None:
    played = Played(blocks=8, size=2, tokens=8, sequences=4)
    played.add(Request(7, (4, 3, 2), most=4))
    played.add(Request(9, (1,), most=4))
    schedule = played.scheduler.schedule()
    assert schedule is not None
    assert schedule.tokens == [4, 3, 2, 1]
    assert schedule.positions == [0, 1, 2, 0]
    assert schedule.starts == [0, 3, 4]
    assert schedule.lengths == [3, 1]
    assert schedule.table == [[0, 1], [2, 0]]
    assert schedule.slots == [0, 1, 2, 4]
    assert (schedule.rows, schedule.choosers) == ([2, 3], [7, 9])


def test_a_prefix_that_was_computed_is_read_and_counted() -> None:
    played = Played(blocks=10, size=4, tokens=32, sequences=4)
    prompt = tuple(range(10))
    played.add(Request(1, prompt, most=3))
    played.finish(10)
    played.add(Request(2, (*prompt[:9], 50, 51), most=3))
    schedule = played.step()
    assert schedule is not None
    assert (schedule.parts[0].first, schedule.parts[0].tokens) == (8, (8, 50, 51))
    assert (played.pool.asked, played.pool.found) == (21, 8)
    assert played.scheduler.state(2).reused == 8


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    played = Played(blocks=10, size=4, tokens=32, sequences=4)
    for id in (1, 2):
        played.add(Request(id, tuple(range(8)), most=1))
        schedule = played.step()
        assert schedule is not None
    assert (schedule.parts[0].first, len(schedule.parts[0].tokens)) == (4, 4)


def test_an_answer_is_found_when_the_conversation_goes_on() -> None:
    played = Played(blocks=10, size=2, tokens=32, sequences=4)
    played.add(Request(1, (1, 2, 3), most=4))
    played.finish(10)
    told = played.history_of(1)
    played.add(Request(2, (*told, 9), most=1))
    schedule = played.step()
    assert schedule is not None
    assert schedule.parts[0].first == 6  # of the answer's four tokens three were fed


def test_who_does_not_reuse_neither_reads_nor_leaves_blocks() -> None:
    played = Played(blocks=10, size=2, tokens=32, sequences=4)
    for id, reuses in ((1, False), (2, True), (3, False), (4, True)):
        played.add(Request(id, tuple(range(8)), most=1, reuses=reuses))
        schedule = played.step()
        assert schedule is not None
        assert schedule.parts[0].first == (6 if id == 4 else 0)


def test_what_stands_in_front_of_scored_tokens_is_read_and_the_rest_is_computed() -> None:
    played = Played(blocks=10, size=2, tokens=32, sequences=4)
    prompt = tuple(range(9))
    played.add(Request(1, prompt, most=1))
    played.finish(5)
    for id, scored, first in ((2, 1, 0), (3, 4, 2), (4, 9, 8), (5, None, 8)):
        played.add(Request(id, prompt, most=1, scored=scored))
        schedule = played.step()
        assert schedule is not None
        (part,) = schedule.parts
        assert part.first == first
        assert schedule.targets == ([] if scored is None else [*prompt[scored:]])
        assert [part.first + at + 1 for at in schedule.scored] == schedule.targets  # tokens are their own places


def test_requests_that_only_score_end_without_a_token() -> None:
    played = Played(blocks=10, size=2, tokens=4, sequences=4)
    played.add(Request(1, tuple(range(6)), most=0, scored=3))
    first, second = played.step(), played.step()
    assert first is not None and second is not None
    assert (first.scored, first.targets, first.choosers) == ([2, 3], [3, 4], [])
    assert (second.scored, second.targets, second.choosers) == ([0], [5], [])
    assert played.ended == {1} and played.pool.free == 10
    with pytest.raises(UsageError, match="may answer 0"):
        played.scheduler.add(Request(2, (1, 2), most=0))
    with pytest.raises(UsageError, match="the first has none"):
        played.scheduler.add(Request(2, (1, 2), most=0, scored=0))


def test_blocks_that_were_free_longest_are_written_first() -> None:
    pool = BlockPool(4, 1)
    one, two = pool.take(2) or [], pool.take(2) or []
    keys = [key_after(BEGIN, [token]) for token in range(4)]
    for block, key in zip([*one, *two], keys, strict=True):
        pool.publish(block, key)
    pool.release(two)
    pool.release(one)
    assert pool.free == 4
    assert pool.take(1) == [two[1]]  # of what was given back first, the last of the sequence
    assert pool.look_up([keys[2]]) == [two[0]] and pool.look_up([keys[3]]) == []
    assert pool.take(1) == [two[0]]
    assert [pool.look_up([key]) for key in keys] == [[one[0]], [one[1]], [], []]


@pytest.mark.parametrize("keeps", [True, False])
def test_keys_are_made_behind_a_step_and_only_where_blocks_are_kept(keeps: bool) -> None:
    played = Played(blocks=20, size=2, tokens=20, sequences=4, keeps=keeps)
    played.add(Request(1, tuple(range(9)), most=4))
    schedule = played.scheduler.schedule()
    assert schedule is not None
    state = played.scheduler.state(1)
    assert len(state.keys) == keeps, "one, which is not there, says that the others are not"
    played.scheduler.commit(schedule, played.compute(schedule))
    assert len(state.keys) == 4 * keeps
    assert len(played.pool.look_up(state.keys)) == 4 * keeps
    played.add(Request(2, (*range(7), 3, 4), most=4))
    assert played.scheduler.schedule() is not None
    assert played.scheduler.state(2).reused == 6 * keeps


def test_keys_tell_histories_apart() -> None:
    histories = {key_after(key_after(BEGIN, [a]), [b, c]) for a in (1, -1) for b in (2, 2**40) for c in (0, 3)}
    assert len(histories) == 8
    assert key_after(BEGIN, [1, 2]) != key_after(key_after(BEGIN, [1]), [2])


def test_the_last_in_rank_loses_its_blocks_and_computes_again() -> None:
    played = Played(blocks=7, size=2, tokens=8, sequences=3, keeps=False)
    for id in (1, 2):
        played.add(Request(id, (id, 1, 1), most=8))
    played.add(Request(3, (3, 1), most=8, priority=-1))
    taken = []
    for _ in range(200):
        schedule = played.step()
        if schedule is None:
            break
        taken += schedule.preempted
    assert taken and 3 not in taken and taken[0] == 2
    assert {id: played.answers[id] for id in (1, 2, 3)} == {id: alone(played.requests[id]) for id in (1, 2, 3)}
    assert played.scheduler.preemptions == len(taken)


def test_a_smaller_number_goes_first_and_equals_in_order_of_arrival() -> None:
    played = Played(blocks=50, size=2, tokens=4, sequences=1)
    for id, priority in ((1, 0), (2, 1), (3, 0), (4, -1), (5, 1)):
        played.add(Request(id, (1,), most=2, priority=priority))
    order = []
    while (schedule := played.step()) is not None:
        order += [part.id for part in schedule.parts if part.first == 0]
    assert order == [4, 1, 3, 2, 5]


def test_nobody_is_overtaken_for_ever() -> None:
    """One request of the lowest priority, and urgent ones without end that fill the cache."""
    played = Played(blocks=4, size=2, tokens=4, sequences=2)
    played.add(Request(1, (1, 2, 3), most=2, priority=1))
    for id in range(2, 2 + 8 * PATIENCE):
        played.add(Request(id, (id % 7, 2, 3, 4), most=2))
        played.step()
        if 1 in played.ended:
            break
    assert played.answers[1] == alone(played.requests[1])


def test_requests_that_cannot_be_served_are_refused_with_numbers() -> None:
    scheduler = Scheduler(BlockPool(3, 4), tokens=8, sequences=2)
    scheduler.add(Request(1, (1,) * 10, most=3))
    with pytest.raises(CapacityError, match=r"10 tokens and 4 tokens of answer never fit.*12 tokens \(3 blocks of 4\)"):
        scheduler.add(Request(2, (1,) * 10, most=4))
    with pytest.raises(CapacityError, match="ask for at most 3 tokens"):
        scheduler.add(Request(2, (1,) * 10, most=4))
    with pytest.raises(CapacityError, match="shorten the prompt"):
        scheduler.add(Request(2, (1,) * 13, most=1))
    with pytest.raises(UsageError, match="there is a request 1 already"):
        scheduler.add(Request(1, (1,), most=1))
    with pytest.raises(UsageError, match="has 0 tokens"):
        scheduler.add(Request(2, (), most=1))
    with pytest.raises(UsageError, match="8 sequences at once with 4 tokens a step"):
        Scheduler(BlockPool(3, 4), tokens=4, sequences=8)


def test_a_step_is_committed_once_and_in_turn() -> None:
    scheduler = Scheduler(BlockPool(3, 4), tokens=8, sequences=2)
    assert scheduler.schedule() is None
    scheduler.add(Request(1, (1,), most=5))
    schedule = scheduler.schedule()
    assert schedule is not None
    with pytest.raises(RuntimeError, match="neither been committed nor cancelled"):
        scheduler.schedule()
    scheduler.commit(schedule, [2])
    with pytest.raises(RuntimeError, match="not the step under way"):
        scheduler.commit(schedule, [2])


def test_the_same_calls_give_the_same_schedules() -> None:
    def run() -> list[Schedule | None]:
        played = Played(blocks=7, size=2, tokens=5, sequences=3)
        made = []
        for id in range(1, 12):
            played.add(Request(id, tuple((id * k) % 3 for k in range(1, 2 + id % 5)), most=1 + id % 4))
            made.append(played.step())
        return made

    assert run() == run()
