"""What goes wrong with one answer, one reader or one step of the engine changes nothing for the others."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest
import torch
from fake_model import FakeModel
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.interrupts import uninterrupted
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, CheckpointError, UsageError

PATIENCE = 60  # seconds, for what would otherwise hang for ever
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


def counting(tokenizer: Tokenizer) -> LLM:
    """A model whose next token says how many there were: a lost one is seen."""

    def rule(ids: list[int]) -> torch.Tensor:
        logits = torch.zeros(tokenizer.vocab_size)
        logits[40 + len(ids)] = 1.0
        return logits

    return LLM(FakeModel(tokenizer.vocab_size, rule), tokenizer)  # type: ignore[arg-type]


def wanted(prompt: int) -> tuple[int, ...]:
    return tuple(40 + prompt + at for at in range(12))


def drained(llm: LLM) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    while llm.unfinished:
        for id, piece in llm.step():
            found.setdefault(id, []).extend(piece.token_ids)
    return found


def test_an_answer_that_fails_takes_no_token_of_another(tokenizer: Tokenizer) -> None:
    llm = counting(tokenizer)
    bad, good = llm.add([5], PARAMS), llm.add([5, 6], PARAMS)

    def fails(output: object) -> None:
        raise CheckpointError("this tokenizer cannot decode that")

    llm._answers[bad].push = fails  # type: ignore[method-assign, assignment]
    pieces = llm.step()
    assert isinstance(dict(pieces)[bad].error, CheckpointError)
    rest = drained(llm)
    assert (*dict(pieces)[good].token_ids, *rest[good]) == wanted(2) and bad not in rest
    assert llm.engine.pool.free == llm.engine.pool.count


def test_a_reader_that_is_gone_ends_its_answer_alone(tokenizer: Tokenizer) -> None:
    llm = counting(tokenizer)
    loop = asyncio.new_event_loop()
    stream = llm.stream_async([5, 6, 7], PARAMS)
    loop.run_until_complete(stream.__anext__())
    loop.close()  # and nobody has closed the stream
    assert llm.generate([[5]], PARAMS)[0].token_ids == wanted(1)

    async def another() -> list[int]:
        return [id async for piece in llm.stream_async([5, 6], PARAMS) for id in piece.token_ids]

    assert asyncio.run(asyncio.wait_for(another(), PATIENCE)) == [*wanted(2)]
    assert drained(llm) == {} and not llm._answers


def test_a_thread_that_cannot_start_leaves_nothing_behind(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = counting(tokenizer)

    async def ask() -> list[int]:
        return [id async for piece in llm.stream_async([5, 6], PARAMS) for id in piece.token_ids]

    def refuses(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuses)
        with pytest.raises(RuntimeError, match="can't start"):
            asyncio.run(ask())
    assert not llm._answers
    assert asyncio.run(asyncio.wait_for(ask(), PATIENCE)) == [*wanted(2)]


def test_steps_that_fail_end_their_answers_and_the_thread_that_takes_them(tokenizer: Tokenizer) -> None:
    llm = counting(tokenizer)
    runner, calls = llm.engine._runner, []

    class Fails:
        block = runner.block
        reserve = runner.reserve

        def run(self, schedule: object) -> torch.Tensor:
            calls.append(schedule)
            raise MemoryError

    async def ask() -> None:
        async for _ in llm.stream_async([5, 6], PARAMS):
            pass

    llm.engine._runner = Fails()
    with pytest.raises(CapacityError):
        asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    driving = llm._driver.thread
    if driving is not None:
        driving.join(PATIENCE)
        assert not driving.is_alive()
    assert len(calls) == 1 and not llm.unfinished and llm.engine.pool.free == llm.engine.pool.count


@pytest.mark.parametrize("priority", ["a", None, 1.5, float("nan"), True, 10**9])
def test_a_priority_is_a_whole_number(tokenizer: Tokenizer, priority: object) -> None:
    llm = counting(tokenizer)
    good = llm.add([5], PARAMS)
    with pytest.raises(UsageError, match="priority must be a whole number"):
        llm.add([5], PARAMS, priority=priority)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="priority must be a whole number"):
        llm.generate([[5]], PARAMS, priority=priority)  # type: ignore[arg-type]
    assert drained(llm) == {good: [*wanted(1)]} and not llm._answers


def test_pieces_of_added_answers_wait_for_step(tokenizer: Tokenizer) -> None:
    llm = counting(tokenizer)
    added = llm.add([5], PARAMS)
    assert llm.generate([[5, 6, 7]], PARAMS)[0].token_ids == wanted(3)
    assert llm.unfinished and drained(llm) == {added: [*wanted(1)]}
    other = llm.add([5], PARAMS)
    assert llm.generate([[5, 6]], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids == wanted(2)[:3]
    ended = llm.abort(other)
    assert ended is not None and ended.token_ids == wanted(1)[: len(ended.token_ids)] and drained(llm) == {}


def test_ctrl_c_waits_for_what_must_not_be_cut(tokenizer: Tokenizer) -> None:
    came: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            came.append("the rest of the block")
        came.append("never")
    assert came == ["the rest of the block"]
    llm = counting(tokenizer)
    runner = llm.engine._runner
    interrupts = [True, False, False, True, False, True]

    class Interrupted:
        block = runner.block
        reserve = runner.reserve

        def run(self, schedule: object) -> torch.Tensor:
            if interrupts and interrupts.pop(0):
                signal.raise_signal(signal.SIGINT)
            return runner.run(schedule)  # type: ignore[arg-type]

    llm.engine._runner = Interrupted()
    ids = [llm.add([5] * length, PARAMS) for length in (1, 2, 3)]
    found: dict[int, list[int]] = {}
    interrupted = 0
    while llm.unfinished:
        try:
            for id, piece in llm.step():
                found.setdefault(id, []).extend(piece.token_ids)
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 3 and found == {id: [*wanted(length)] for id, length in zip(ids, (1, 2, 3), strict=True)}
