"""An engine on a device that works ahead: the next step is started before the tokens of the last one are read.

The device is played by a model on the CPU that keeps what it chose to itself until it is asked. Whatever ends, fails or
is interrupted in between, every answer is that of an engine that waits for each step.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from fake_model import FakeModel
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.answer import Completion
from isobit.engine.flight import Ahead, Known
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import UNKNOWN, Schedule
from isobit.engine.runner import ModelRunner
from isobit.engine.sampler import Choice, Chooser, sample
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import IsobitError
from isobit.models.cache.paged import BLOCK

SAMPLINGS = [
    SamplingParams(max_tokens=130, ignore_eos=True),
    SamplingParams(max_tokens=40),
    SamplingParams(max_tokens=130, temperature=1.0, seed=5, logprobs=1, ignore_eos=True),
    SamplingParams(max_tokens=30, temperature=0.8, top_p=0.9, seed=6, ignore_eos=True),
    SamplingParams(max_tokens=50, stop=("a", "q", "7", "e", "X", "0"), ignore_eos=True, logit_bias=((70, 3.0),)),
]
WAITS = SamplingParams(max_tokens=30, temperature=0.7, seed=8, repetition_penalty=1.3, ignore_eos=True)
SCORED = SamplingParams(max_tokens=5, temperature=1.0, seed=9, prompt_logprobs=1, ignore_eos=True)


class Device(ModelRunner):
    """Knows what it chose before anybody asks; a token that it must not know yet is an error.

    Attributes:
        blind: starts whose step had a token that the engine had not read.
        trouble: called with "start" or "choices" before either.
    """

    recorded = 0

    def __init__(self, model: FakeModel) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.chosen: dict[int, int] = {}
        self.steps = self.blind = 0
        self.trouble: Callable[[str], None] = lambda what: None

    def run(self, schedule: Schedule) -> torch.Tensor:
        parts = [
            part._replace(tokens=(*part.tokens[:-1], self.chosen[part.id])) if part.tokens[-1] == UNKNOWN else part
            for part in schedule.parts
        ]
        self.steps += 1
        self.blind += parts != list(schedule.parts)
        return super().run(Schedule(tuple(parts), schedule.block, schedule.preempted))

    def record(self) -> None:
        raise AssertionError("nobody asks for that here")

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Waiting:
        unread = [int(part.tokens[-1] == UNKNOWN) for part in schedule.parts if part.chooses]
        logits = self.run(schedule)
        found = sample(choosers, logits, unread) if choosers else []
        kept = [*found]
        best = logits.argmax(1).tolist() if choosers else []  # a row that fails feeds something all the same
        self.chosen = {
            id: greedy if one.error else one.token
            for id, one, greedy in zip(schedule.choosers, found, best, strict=True)
        }
        self.trouble("start")
        return Waiting(kept, 0.0, self)


class Waiting(Known):
    def __init__(self, found: list[Choice], took: float, device: Device) -> None:
        super().__init__(found, took)
        object.__setattr__(self, "device", device)

    def choices(self) -> list[Choice]:
        self.device.trouble("choices")  # type: ignore[attr-defined]
        return super().choices()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


def model(tokenizer: Tokenizer) -> FakeModel:
    """Its logits depend on every token so far."""

    def rule(ids: list[int]) -> torch.Tensor:
        number = zlib.crc32(str(ids).encode())
        logits = torch.randn(tokenizer.vocab_size, generator=torch.Generator().manual_seed(number))
        if number % 40 == 0:
            logits[list(tokenizer.eos_ids)] = 9.0
        if ids[0] == 3 and len(ids) > 9:
            logits[5] = float("nan")
        return logits

    return FakeModel(tokenizer.vocab_size, rule, context=512)


def ahead(tokenizer: Tokenizer, **options: int) -> tuple[LLM, Device]:
    made = model(tokenizer)
    device = Device(made)
    llm = LLM(made, tokenizer, device, **options)  # type: ignore[arg-type]
    assert isinstance(device, Ahead) and llm.engine.scheduler.ahead == 1
    return llm, device


def prompts(count: int) -> list[list[int]]:
    numbers = random.Random(4)
    shared = [numbers.randrange(4, 200) for _ in range(BLOCK + 5)]
    return [
        shared[: (0, BLOCK + 5, 20)[place % 3]] + [numbers.randrange(4, 200) for _ in range((1, 70, 9)[place % 3])]
        for place in range(count)
    ]


def essence(completion: Completion) -> object:
    return (
        completion.token_ids, completion.logprobs, completion.finish_reason, completion.stop, completion.text,
        completion.prompt_logprobs,
    )  # fmt: skip


def settings(count: int, *more: SamplingParams) -> list[SamplingParams]:
    every = [*SAMPLINGS, *more]
    return [every[place % len(every)] for place in range(count)]


def by_waiting(tokenizer: Tokenizer, params: list[SamplingParams]) -> list[object]:
    """Each prompt's answer by an engine that waits for each step."""
    made = model(tokenizer)
    found = [
        LLM(made, tokenizer, prefix_cache=False).generate([prompt], one)[0]  # type: ignore[arg-type]
        for prompt, one in zip(prompts(len(params)), params, strict=True)
    ]
    assert any(isinstance(one.stop, int) for one in found) and any(isinstance(one.stop, str) for one in found)
    return [essence(one) for one in found]


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk": 50, "sequences": 3}, {"cache_tokens": 5 * BLOCK, "sequences": 5, "prefix_cache": False}],
    ids=str,
)
def test_answers_are_those_of_an_engine_that_waits(options: dict[str, int], tokenizer: Tokenizer) -> None:
    params = settings(12)
    llm, device = ahead(tokenizer, **options)
    assert [essence(one) for one in llm.generate(prompts(12), params)] == by_waiting(tokenizer, params)
    assert device.blind > 0.8 * device.steps
    llm.step()
    assert not llm.unfinished and llm.engine.pool.free == llm.engine.pool.count
    assert ("cache_tokens" in options) == (llm.engine.scheduler.preemptions > 0)


def test_what_needs_its_last_token_or_scores_waits_and_others_beside_it_are_the_same(tokenizer: Tokenizer) -> None:
    params = settings(12, WAITS, SCORED)
    llm, device = ahead(tokenizer, sequences=4)
    assert [essence(one) for one in llm.generate(prompts(12), params)] == by_waiting(tokenizer, params)
    assert 0 < device.blind < device.steps


@pytest.mark.parametrize("seed", range(4))
def test_arrivals_aborts_and_interruptions(seed: int, tokenizer: Tokenizer) -> None:
    numbers = random.Random(seed)
    params = settings(12, WAITS)
    wanted = by_waiting(tokenizer, params)
    llm, device = ahead(tokenizer, cache_tokens=6 * BLOCK, chunk=40, sequences=4)

    def trouble(what: str) -> None:
        if numbers.random() < 0.1:
            raise numbers.choice([KeyboardInterrupt, MemoryError])

    device.trouble = trouble
    given = prompts(12)
    places: dict[int, int] = {}
    done: dict[int, Completion] = {}
    aborted: dict[int, Completion] = {}
    while len(done) + len(aborted) < 24:
        if len(places) < 24 and numbers.random() < 0.3:
            place = len(places) % 12
            places[llm.add(given[place], params[place], priority=numbers.randrange(2))] = place
        if numbers.random() < 0.03 and (there := sorted(set(places) - set(done) - set(aborted))):
            id = numbers.choice(there)
            completion = llm.abort(id)
            assert completion is not None
            aborted[id] = completion
        try:
            came = llm.step()
        except (KeyboardInterrupt, IsobitError):
            continue
        for id, piece in came:
            assert id not in aborted and piece.error is None
            if piece.completion is not None:
                done[id] = piece.completion
    assert all(essence(one) == wanted[places[id]] for id, one in done.items())
    for id, one in aborted.items():
        assert one.token_ids == wanted[places[id]][0][: len(one.token_ids)]  # type: ignore[index]
    device.trouble = lambda what: None
    while llm.unfinished:
        llm.step()
    assert llm.engine.pool.free == llm.engine.pool.count


def test_an_error_comes_a_step_later_and_takes_no_other_with_it(tokenizer: Tokenizer) -> None:
    llm, _ = ahead(tokenizer)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    bad, good = llm.add([3, 4, 5, 6], params), llm.add([8, 9], params)
    tokens: dict[int, list[int]] = {bad: [], good: []}
    failed = None
    while llm.unfinished:
        for id, piece in llm.step():
            tokens[id] += piece.token_ids
            failed = piece.error or failed
    assert isinstance(failed, IsobitError) and "NaN" in str(failed)
    assert len(tokens[bad]) == 6 and len(tokens[good]) == 12
    waiting = LLM(model(tokenizer), tokenizer)  # type: ignore[arg-type]
    assert tuple(tokens[good]) == waiting.generate([[8, 9]], params)[0].token_ids
    assert llm.engine.pool.free == llm.engine.pool.count


def test_a_slow_reader_is_not_counted_and_a_step_is(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the test moves: a step takes 2 seconds on the device, who reads a piece takes 100."""
    clock = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    llm, device = ahead(tokenizer)
    free = [0.0]  # when the device is

    def start(schedule: Schedule, choosers: Sequence[Chooser]) -> object:
        found = Device.start(device, schedule, choosers).found
        free[0] = max(free[0], clock[0]) + 2.0
        return Later(found, 2.0, free[0])

    class Later(Known):
        def __init__(self, found: list[Choice], took: float, at: float) -> None:
            super().__init__(found, took)
            object.__setattr__(self, "at", at)

        def choices(self) -> list[Choice]:
            clock[0] = max(clock[0], self.at)  # type: ignore[attr-defined]
            return self.found

    device.start = start  # type: ignore[method-assign, assignment]
    pieces = []
    for piece in llm.stream([8, 9], SamplingParams(max_tokens=11, ignore_eos=True)):
        clock[0] += 100.0
        pieces.append(piece)
    assert pieces[-1].completion is not None
    timings = pieces[-1].completion.timings
    assert timings.prefill_seconds == pytest.approx(2.0)
    assert timings.decode_seconds == pytest.approx(20.0)
