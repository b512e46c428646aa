"""Many prompts at once on real models: every answer is what its prompt gets alone, whatever happens beside it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_model import FakeCache, FakeModel, writes
from families import make_model, save
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.answer import Completion, Piece
from isobit.engine.engine import Engine
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.request import Schedule
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, IsobitError, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.kernels.cpu import library as cpu_library
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

PROBLEM = cpu_library.problem()
SAMPLINGS = [
    SamplingParams(max_tokens=130, logprobs=2, ignore_eos=True),
    SamplingParams(max_tokens=130, temperature=1.0, seed=5, ignore_eos=True),
    SamplingParams(max_tokens=90, temperature=0.8, top_p=0.9, seed=6, repetition_penalty=1.2, logprobs=0),
    SamplingParams(max_tokens=60, temperature=1.3, top_k=20, seed=7, frequency_penalty=0.3),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


@pytest.fixture(scope="module", params=["int8", "fp8"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """One whose tokens do not depend on what is computed with them."""
    if PROBLEM:
        pytest.skip(PROBLEM)
    root = tmp_path_factory.mktemp("engine")
    made = save(make_model("LlamaForCausalLM", tie_word_embeddings=False, max_position_embeddings=1024), root / "plain")
    policy = Policy(scheme(request.param), (Rule("lm_head", request.param),))
    quantize(made, root / "quantized", policy, progress=False)
    return load_model(root / "quantized")


def prompts_for(model: Decoder, count: int = 12) -> list[list[int]]:
    """Of many lengths; some begin alike."""
    numbers, vocabulary = random.Random(3), model.config.vocab_size
    shared = [numbers.randrange(vocabulary) for _ in range(2 * BLOCK + 3)]
    made = []
    for place in range(count):
        own = [numbers.randrange(vocabulary) for _ in range((1, 40, 90, 7)[place % 4])]
        made.append(shared[: (0, 2 * BLOCK + 3, BLOCK)[place % 3]] + own)
    return made


def params_for(count: int) -> list[SamplingParams]:
    return [SAMPLINGS[place % len(SAMPLINGS)] for place in range(count)]


def essence(completion: Completion) -> object:
    """What must not depend on anything beside the prompt: also the logprobs, to the last bit."""
    return completion.token_ids, completion.logprobs, completion.finish_reason, completion.text


@pytest.fixture(scope="module")
def alone(model: Decoder, tokenizer: Tokenizer) -> list[object]:
    """Each answer by an engine of its own."""
    prompts = prompts_for(model)
    return [
        essence(LLM(model, tokenizer, prefix_cache=False).generate([prompt], params)[0])
        for prompt, params in zip(prompts, params_for(len(prompts)), strict=True)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_cache": False},
        {"chunk": 50, "sequences": 3},
        {"cache_tokens": 7 * BLOCK, "chunk": 33, "sequences": 8},
        {"cache_tokens": 7 * BLOCK, "sequences": 8, "prefix_cache": False},
    ],
    ids=str,
)
def test_answers_are_those_of_each_prompt_alone(
    options: dict[str, int], model: Decoder, tokenizer: Tokenizer, alone: list[object]
) -> None:
    llm = LLM(model, tokenizer, **options)  # type: ignore[arg-type]
    prompts = prompts_for(model)
    for _ in range(2):  # the second time much of it is in the cache
        found = llm.generate(prompts, params_for(len(prompts)))
        assert [essence(one) for one in found] == alone
    pool = llm.engine.pool
    assert pool.free == pool.count and not llm.unfinished
    assert (pool.found > 0) == options.get("prefix_cache", True)
    assert sum(one.usage.cached_tokens for one in found) > 0 or not options.get("prefix_cache", True)
    if "cache_tokens" in options:
        assert pool.count == 7 and llm.engine.scheduler.preemptions > 0


def test_prompts_come_and_go_at_any_time(model: Decoder, tokenizer: Tokenizer, alone: list[object]) -> None:
    llm = LLM(model, tokenizer, cache_tokens=9 * BLOCK, chunk=64, sequences=5)
    numbers, prompts = random.Random(1), prompts_for(model)
    params = params_for(len(prompts))
    ids: dict[int, int] = {}
    done: dict[int, Completion] = {}
    aborted: dict[int, Completion] = {}
    turns = 0
    while len(done) + len(aborted) < 3 * len(prompts):
        turns += 1
        if turns % 2 and len(ids) < 3 * len(prompts):
            place = len(ids) % len(prompts)
            ids[llm.add(prompts[place], params[place], priority=numbers.randrange(3))] = place
        if turns % 9 == 0 and (open_ids := sorted(set(ids) - set(done) - set(aborted))):
            id = numbers.choice(open_ids)
            completion = llm.abort(id)
            assert completion is not None and completion.finish_reason == "abort" and llm.abort(id) is None
            aborted[id] = completion
        for id, piece in llm.step():
            assert id not in aborted
            if piece.completion is not None:
                done[id] = piece.completion
    assert len(aborted) > 3
    assert all(essence(one) == alone[ids[id]] for id, one in done.items())
    for id, one in aborted.items():
        whole = alone[ids[id]][0]  # type: ignore[index]
        assert one.token_ids == whole[: len(one.token_ids)]
    llm.step()
    assert llm.engine.pool.free == llm.engine.pool.count


def test_streams_beside_each_other(model: Decoder, tokenizer: Tokenizer, alone: list[object]) -> None:
    llm = LLM(model, tokenizer, sequences=4)
    prompts = prompts_for(model)
    texts, found = [""] * len(prompts), {}
    for place, piece in llm.stream_all(prompts, params_for(len(prompts))):
        texts[place] += piece.text
        if piece.completion is not None:
            assert piece.completion.text == texts[place]
            found[place] = essence(piece.completion)
    assert [found[place] for place in range(len(prompts))] == alone
    with pytest.raises(ValueError):
        llm.stream_all(prompts, [None])


def test_streams_in_turns_and_threads(model: Decoder, tokenizer: Tokenizer, alone: list[object]) -> None:
    llm = LLM(model, tokenizer, sequences=4)
    prompts = prompts_for(model)
    params = params_for(len(prompts))
    found: dict[int, object] = {}

    def answer(place: int) -> None:
        pieces = list(llm.stream(prompts[place], params[place]))
        assert pieces[-1].completion is not None
        assert "".join(piece.text for piece in pieces) == pieces[-1].completion.text
        found[place] = essence(pieces[-1].completion)

    threads = [threading.Thread(target=answer, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(prompts))] == alone
    assert llm.engine.scheduler.steps < sum(len(one[0]) for one in alone)  # type: ignore[index]


def test_a_slow_reader_gets_what_came_meanwhile_at_once(
    model: Decoder, tokenizer: Tokenizer, alone: list[object]
) -> None:
    llm = LLM(model, tokenizer)
    prompts, params = prompts_for(model)[:3], params_for(3)
    pieces: dict[int, list[Piece]] = {place: [] for place in range(3)}
    batches = 0

    async def read() -> None:
        nonlocal batches
        async with aclosing(llm.stream_batches_async(prompts, params)) as every:
            async for batch in every:
                batches += 1
                for place, piece in batch:
                    pieces[place].append(piece)
                while llm._answers:  # nothing else happens on this loop until all are made
                    time.sleep(0.001)

    asyncio.run(read())
    assert batches == 2
    for place, came in pieces.items():
        done = came[-1].completion
        assert done is not None and essence(done) == alone[place]
        assert "".join(piece.text for piece in came) == done.text
        assert tuple(id for piece in came for id in piece.token_ids) == done.token_ids


def test_an_error_comes_behind_what_was_made_before_it(model: Decoder, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer)
    prompts, params = prompts_for(model)[:2], [SamplingParams(max_tokens=800, ignore_eos=True)] * 2
    made: list[int] = []

    async def read() -> None:
        async with aclosing(llm.stream_all_async(prompts, params)) as every:
            async for _, piece in every:
                made.extend(piece.token_ids)
                if len(made) == len(piece.token_ids):  # the first piece
                    while llm.engine.scheduler.steps < 25:
                        time.sleep(0.001)
                    with llm._lock:  # between two steps
                        llm._fail(next(iter(llm._answers)), MemoryError("of one"))

    with pytest.raises(MemoryError, match="of one"):
        asyncio.run(read())
    assert len(made) >= 20 and not llm._answers


def test_asynchronous_streams(model: Decoder, tokenizer: Tokenizer, alone: list[object]) -> None:
    llm = LLM(model, tokenizer)
    prompts = prompts_for(model)
    params = params_for(len(prompts))

    async def answer(place: int) -> object:
        last: Piece | None = None
        async for piece in llm.stream_async(prompts[place], params[place]):
            last = piece
        assert last is not None and last.completion is not None
        return essence(last.completion)

    async def cancelled() -> None:
        async for _ in llm.stream_async(prompts[1], replace(params[1], max_tokens=850, ignore_eos=True)):
            pass

    async def all_of_them() -> list[object]:
        lost = asyncio.create_task(cancelled())
        first = await asyncio.gather(*(answer(place) for place in range(6)))
        lost.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lost
        return [*first, *await asyncio.gather(*(answer(place) for place in range(6, len(prompts))))]

    assert asyncio.run(all_of_them()) == alone
    for thread in threading.enumerate():
        if thread.name == "isobit-engine":
            thread.join()
    llm.step()
    assert not llm.unfinished and llm.engine.pool.free == llm.engine.pool.count


# Text, errors and limits, with a model whose answers are known


def says(text: str, tokenizer: Tokenizer, prompt: int, context: int = 512) -> FakeModel:
    return FakeModel(tokenizer.vocab_size, writes(tokenizer.encode(text), tokenizer.vocab_size, prompt), context)


def test_a_stop_text_ends_one_answer_and_no_other(tokenizer: Tokenizer) -> None:
    llm = LLM(says("one STOP two", tokenizer, 2), tokenizer)
    both = [SamplingParams(stop=("STOP",)), SamplingParams(max_tokens=20)]
    stopped, whole = llm.generate([[1, 2], [3, 4]], both)
    assert (stopped.text, stopped.finish_reason, stopped.stop) == ("one ", "stop", "STOP")
    assert whole.finish_reason == "length" and len(whole.token_ids) == 20 and whole.text.startswith("one STOP two")
    llm.step()
    assert llm.engine.pool.free == llm.engine.pool.count


def test_a_prompt_given_twice_is_read_from_the_cache(tokenizer: Tokenizer) -> None:
    model = says("x", tokenizer, 200)
    llm = LLM(model, tokenizer)
    once = SamplingParams(max_tokens=1)
    (first,) = llm.generate([[5] * 200], once)
    (second,) = llm.generate([[5] * 200], once)
    assert model.calls == [200, 200 - 3 * BLOCK]
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 3 * BLOCK)
    assert first.token_ids == second.token_ids


def test_the_cache_grows_with_what_is_asked_for_and_keeps_what_it_holds(tokenizer: Tokenizer) -> None:
    llm = LLM(says("x", tokenizer, 100, context=10_000), tokenizer)
    few = SamplingParams(max_tokens=1)
    assert llm.engine.pool.count == 0
    llm.generate([[5] * 100], few)
    assert llm.engine.pool.count == 2
    llm.generate([[6] * 900], few)
    assert llm.engine.pool.count == 15
    llm.generate([[7] * 1000], few)
    assert llm.engine.pool.count == 30
    assert llm.generate([[6] * 900], few)[0].usage.cached_tokens == 14 * BLOCK
    assert llm.engine.pool.count == 30


def test_what_never_fits_is_refused_and_others_go_on(tokenizer: Tokenizer) -> None:
    llm = LLM(says("x", tokenizer, 5), tokenizer, cache_tokens=2 * BLOCK)
    good = llm.add([1] * 5, SamplingParams(max_tokens=3))
    bad = llm.add([1] * (2 * BLOCK), SamplingParams(max_tokens=2))
    pieces = [llm.step() for _ in range(3)]
    failed = dict(pieces[0])[bad].error
    assert isinstance(failed, CapacityError) and "never fit the key-value cache" in str(failed)
    assert dict(pieces[2])[good].completion is not None
    with pytest.raises(CapacityError, match="never fit the key-value cache"):
        llm.generate([[1], [1] * (2 * BLOCK)], SamplingParams(max_tokens=2))
    assert llm.generate([[1] * 5], SamplingParams(max_tokens=1))[0].text == "x"


def test_memory_that_lacks_for_one_does_not_take_another_with_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = says("x", tokenizer, 5, context=10_000)
    made = FakeCache.grow

    def small(cache: FakeCache, blocks: int) -> None:
        if blocks > 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        made(cache, blocks)

    monkeypatch.setattr(FakeCache, "grow", small)
    llm = LLM(model, tokenizer)
    params = SamplingParams(max_tokens=2)
    good, bad, gone = llm.add([1] * 5, params), llm.add([1] * 900, params), llm.add([1] * 900, params)
    llm.abort(gone)
    came = [pair for _ in range(3) for pair in llm.step()]
    assert [id for id, _ in came] == [bad, good, good]
    assert isinstance(came[0][1].error, CapacityError) and "memory does not suffice" in str(came[0][1].error)
    assert came[2][1].completion is not None and not llm.unfinished
    with pytest.raises(CapacityError, match="memory does not suffice"):
        list(llm.stream([1] * 900, params))


def test_an_answer_that_fails_takes_no_other_with_it(tokenizer: Tokenizer) -> None:
    def rule(ids: list[int]) -> torch.Tensor:
        logits = torch.zeros(tokenizer.vocab_size)
        logits[7] = float("nan") if ids[0] == 3 and len(ids) > 4 else 1.0
        return logits

    llm = LLM(FakeModel(tokenizer.vocab_size, rule), tokenizer)
    good, bad = (llm.add([first, 1, 1], SamplingParams(max_tokens=6)) for first in (2, 3))
    came: dict[int, list[Piece]] = {good: [], bad: []}
    while llm.unfinished:
        for id, piece in llm.step():
            came[id].append(piece)
    assert isinstance(came[bad][-1].error, IsobitError) and len(came[bad]) == 3
    assert came[good][-1].completion is not None and came[good][-1].completion.token_ids == (7,) * 6
    with pytest.raises(IsobitError, match="NaN or infinite"):
        llm.generate([[2], [3, 3, 3, 3, 3]])


def test_a_step_that_is_interrupted_is_taken_again(tokenizer: Tokenizer) -> None:
    """Ctrl-C, or memory that lacked for a moment: the requests are as they were."""

    class Sometimes:
        block = 4

        def __init__(self) -> None:
            self.turns, self.fed = 0, list[tuple[int, ...]]()

        def reserve(self, least: int, wanted: int) -> int:
            return wanted

        def run(self, schedule: Schedule) -> torch.Tensor:
            self.turns += 1
            if self.turns % 2:
                raise KeyboardInterrupt if self.turns % 4 == 1 else MemoryError
            self.fed.append(tuple(schedule.tokens))
            return torch.ones(len(schedule.rows), 5)

    runner = Sometimes()
    engine = Engine(runner, tokens=8, sequences=2)
    params = SamplingParams(temperature=1.0, seed=4)
    chosen: list[list[int]] = []
    for failing in (True, False):
        id = engine.next_id()
        engine.add(id, [1, 2, 3], params, 6)
        tokens: list[int] = []
        while engine.unfinished:
            runner.turns += not failing and runner.turns % 2 == 0
            try:
                tokens += [output.choice.token for output in engine.step()]
            except (KeyboardInterrupt, CapacityError):
                assert failing
        chosen.append(tokens)
    assert chosen[0] == chosen[1] and len(chosen[0]) == 6
    assert runner.fed[:2] == [(1, 2, 3), (chosen[0][0],)]


def test_what_cannot_be_used_is_refused_before_anything_runs(tokenizer: Tokenizer) -> None:
    model = says("x", tokenizer, 1)
    llm = LLM(model, tokenizer)
    with pytest.raises(UsageError, match="2 prompts and 3 SamplingParams"):
        llm.generate(["a", "b"], [SamplingParams()] * 3)
    with pytest.raises(UsageError, match="prompt is empty"):
        llm.generate(["a", ""])
    with pytest.raises(UsageError, match="a prompt is a text or a list of token ids"):
        llm.generate([1, 2])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=f"logit_bias names token {tokenizer.vocab_size}; the model has"):
        llm.generate(["a"], SamplingParams(logit_bias=((tokenizer.vocab_size, 1.0),)))
    with pytest.raises(UsageError, match="0 sequences at once with"):
        LLM(model, tokenizer, sequences=0)
    assert model.calls == [] and not llm.unfinished
    assert llm.generate([]) == []
    assert len(llm.generate("a", SamplingParams(max_tokens=2))) == 1


def test_a_stream_that_nobody_reads_on_gives_its_blocks_back(tokenizer: Tokenizer) -> None:
    llm = LLM(says("x", tokenizer, 3), tokenizer)
    pieces = llm.stream([1, 2, 3], SamplingParams(max_tokens=50))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    never_begun = llm.stream([1, 2, 3], SamplingParams(max_tokens=50))
    del never_begun
    several = llm.stream_all([[1, 2, 3], [4, 5]], [SamplingParams(max_tokens=50)] * 2)
    next(several)
    several.close()  # type: ignore[attr-defined]
    llm.step()
    assert not llm.unfinished and llm.engine.pool.free == llm.engine.pool.count
