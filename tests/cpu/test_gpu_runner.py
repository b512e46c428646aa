"""The runner of GPUs, on a CPU: what it keeps on the device and what it tells the host, without graphs."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import make_model, save
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.flight import Ahead
from isobit.engine.gpu_runner import GpuRunner, runner_for
from isobit.engine.graphs import Inputs, Places
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.pieces import Bucket, bucket_of, buckets
from isobit.engine.request import Part
from isobit.engine.tokenizer import Tokenizer
from isobit.engine.turns import Turns
from isobit.errors import IsobitError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.sequences import MANY
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.targets.recorded import MOST_ROWS, ROWS, recorded_steps, rows_of, spans

PROBLEM = cpu_library.problem()
SAMPLINGS = [
    SamplingParams(max_tokens=70, ignore_eos=True),
    SamplingParams(max_tokens=60, temperature=1.0, top_p=0.9, seed=5, logprobs=2, ignore_eos=True),
    SamplingParams(max_tokens=40, temperature=0.8, top_k=20, seed=6, logprobs=0),
    SamplingParams(max_tokens=50, logprobs=3, stop=("e", "q"), logit_bias=((9, 2.0),), ignore_eos=True),
]
WAITS = SamplingParams(max_tokens=30, temperature=0.7, seed=8, frequency_penalty=0.7, ignore_eos=True)
SCORED = SamplingParams(max_tokens=5, temperature=1.0, seed=9, prompt_logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """One whose tokens do not depend on what is computed with them."""
    if PROBLEM:
        pytest.skip(PROBLEM)
    root = tmp_path_factory.mktemp("runner")
    made = save(make_model("LlamaForCausalLM", tie_word_embeddings=False, max_position_embeddings=512), root / "plain")
    quantize(made, root / "int8", Policy(scheme("int8"), (Rule("lm_head", "int8"),)), progress=False)
    return load_model(root / "int8")


def prompts(model: Decoder, count: int) -> list[list[int]]:
    numbers = random.Random(4)
    vocabulary = model.config.vocab_size
    shared = [numbers.randrange(vocabulary) for _ in range(BLOCK + 5)]
    return [
        shared[: (0, BLOCK + 5, 20)[at % 3]] + [numbers.randrange(vocabulary) for _ in range((1, 70, 9)[at % 3])]
        for at in range(count)
    ]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"sequences": 7}, ()),
        ({"sequences": 3, "chunk": 50}, ()),
        ({"sequences": 9, "cache_tokens": 5 * BLOCK, "prefix_cache": False}, ()),
        ({"sequences": 5}, (WAITS, SCORED)),
    ],
    ids=str,
)
def test_answers_are_those_of_the_plain_runner(
    options: dict[str, int], more: tuple[SamplingParams, ...], model: Decoder, tokenizer: Tokenizer
) -> None:
    every = [*SAMPLINGS, *more]
    params = [every[at % len(every)] for at in range(14)]
    given = prompts(model, 14)
    plain = LLM(model, tokenizer, sequences=3)
    assert not isinstance(plain.engine._runner, Ahead)
    wanted = plain.generate(given, params)
    llm = LLM(model, tokenizer, GpuRunner(model, options["sequences"]), **options)  # type: ignore[arg-type]
    llm.prepare()
    blocks = llm.engine.pool.count
    # A cache that grows has room for the longest of all sequences: it stays where it is.
    assert blocks == (5 if "cache_tokens" in options else options["sequences"] * (512 // BLOCK + 1))
    found = llm.generate(given, params)
    assert llm.engine.pool.count == blocks and llm.engine._runner._held().moves == 0  # type: ignore[attr-defined]
    assert max(llm.engine._runner._prompts()._seen.values()) > 1  # type: ignore[attr-defined]
    for one, other in zip(found, wanted, strict=True):
        assert one.token_ids == other.token_ids and one.logprobs == other.logprobs
        assert (one.text, one.finish_reason, one.stop) == (other.text, other.finish_reason, other.stop)
        assert one.prompt_logprobs == other.prompt_logprobs
    llm.step()
    assert not llm.unfinished and llm.engine.pool.free == llm.engine.pool.count
    assert ("cache_tokens" in options) == (llm.engine.scheduler.preemptions > 0)


def test_a_row_without_logits_fails_alone(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=1, logprobs=1, ignore_eos=True)
    (wanted,) = LLM(model, tokenizer).generate([[8, 9]], params)
    llm = LLM(model, tokenizer, GpuRunner(model, 4), sequences=4)
    bad, good = llm.add([3, 4], params), llm.add([8, 9], params)
    forward, steps = type(model).forward, iter(range(100))

    def broken(*args: object) -> torch.Tensor:
        logits: torch.Tensor = forward(*args)  # type: ignore[arg-type]
        if next(steps) == 5:
            logits[0] = torch.nan
        return logits

    monkeypatch.setattr(type(model), "forward", broken)
    tokens: dict[int, list[int]] = {bad: [], good: []}
    failed = None
    while llm.unfinished:
        for id, piece in llm.step():
            tokens[id] += piece.token_ids
            failed = piece.error or failed
    assert isinstance(failed, IsobitError) and "NaN or infinite" in str(failed)
    assert len(tokens[bad]) == 5 and tuple(tokens[good]) == wanted.token_ids


def test_a_cpu_has_the_plain_runner(model: Decoder) -> None:
    assert not isinstance(runner_for(model, 4), Ahead)


def test_rows_and_spans_of_graphs() -> None:
    assert [rows_of(count) for count in (1, 2, 3, 4, 5, 9, 60, 65, 250, 257)] == [1, 2, 4, 4, 8, 16, 64, 80, 256, 320]
    assert ROWS[-1] == MOST_ROWS and [rows_of(count) for count in ROWS] == [*ROWS]
    assert spans(1, 4096) == (256, 2048, 4096) and spans(64, 4096) == (256, 4096)
    assert spans(1, 256) == spans(64, 64 * 3)[:0] + (256,) and spans(2, 300) == (256, 300)


def test_a_sequence_keeps_its_row_while_it_is_there() -> None:
    places, numbers = Places(), random.Random(2)
    there: list[int] = []
    before: dict[int, int] = {}
    for turn in range(300):
        there = [id for id in there if numbers.random() > 0.1] + ([turn] if len(there) < 20 else [])
        rows = rows_of(max(1, len(there)))
        found = dict(zip(there, places.assign([*there], rows), strict=True))
        assert len(set(found.values())) == len(there) and all(0 <= row < rows for row in found.values())
        assert all(found[id] == row for id, row in before.items() if id in found and row < rows)
        before = found


def test_a_write_that_is_interrupted_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(4, 3, 4, torch.device("cpu"))
    parts = [Part(1, 5, (7,), (3, 1), True)]
    with monkeypatch.context() as patched:

        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(inputs, "_send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            inputs.write(parts, [0], [-1])
    inputs.write(parts, [0], [-1])
    assert inputs.batch(1, 20).sequences.table[0].tolist() == [3, 1, 0]


def test_inputs_are_what_was_written() -> None:
    """Blocks that come, go to another sequence and shrink; tokens from the host and from the device."""
    inputs = Inputs(6, 5, 4, torch.device("cpu"))
    inputs.chosen.copy_(torch.arange(100, 108))
    steps = [
        [(1, 5, 7, (3, 1), 2, -1), (2, 0, 8, (4,), 0, -1)],
        [(1, 6, -1, (3, 1), 2, 5), (2, 1, -1, (4,), 0, 1)],
        [(1, 8, 9, (3, 1, 0), 2, -1), (3, 9, 4, (7, 6, 5), 0, -1)],
        [(4, 2, 1, (2,), 0, -1)],
    ]
    for step in steps:
        parts = [Part(id, first, (token,), blocks, True) for id, first, token, blocks, _, _ in step]
        inputs.write(parts, [one[4] for one in step], [one[5] for one in step])
        batch = inputs.batch(4, 20)
        used = {one[4] for one in step}
        for _, first, token, blocks, row, source in step:
            assert batch.tokens is not None
            assert int(batch.tokens[row]) == (token if source < 0 else 100 + source)
            assert int(batch.positions[row]) == first and int(batch.sequences.lengths[row]) == first + 1
            assert int(batch.sequences.slots[row]) == blocks[first // 4] * 4 + first % 4
            assert tuple(batch.sequences.table[row, : len(blocks)].tolist()) == blocks
        for row in set(range(4)) - used:
            assert int(batch.sequences.slots[row]) == -1 and int(batch.sequences.lengths[row]) == 0


def test_turns_are_used_one_after_the_other_and_read_until_they_come_again() -> None:
    turns, device = Turns(4, torch.device("cpu")), torch.device("cpu")
    opened = [turns.open() for _ in range(3)]
    assert len({id(turn.page) for turn in opened}) == 3
    for number, turn in enumerate(opened):
        result = torch.zeros(4 * 12, dtype=torch.uint8)
        result[:32].view(torch.int64).fill_(number)
        result[32:].view(torch.float32).fill_(number / 2)
        turn.close(result)
        result.zero_()
    assert [turn.tokens.tolist() for turn in opened] == [[number] * 4 for number in range(3)]
    assert [turn.highest.tolist() for turn in opened] == [[number / 2] * 4 for number in range(3)]
    assert turns.open() is opened[0] and opened[0].seconds() == 0
    inputs = Inputs(4, 3, 4, device)
    for page in (opened[1].page, None):  # what an earlier step has left there is gone
        opened[1].page.tokens[:] = 9
        inputs.write([Part(1, 5, (7,), (3, 1), True)], [2], [-1], page)
        batch = inputs.batch(4, 20)
        assert batch.tokens is not None and batch.tokens.tolist() == [0, 0, 7, 0]
        assert batch.sequences.slots.tolist() == [-1, -1, 5, -1] and batch.positions.tolist() == [0, 0, 5, 0]


def test_steps_of_prompts_alone_have_graphs_of_their_own() -> None:
    """Padding counts: with few tokens of it, something has to write its zeros."""
    assert bucket_of([2048], 64) == bucket_of([1000, 1048], 64) == Bucket(2048, 8, MANY)
    assert bucket_of([40, 24], 64) == bucket_of([MANY, 40], 64) == Bucket(64, 8, MANY)
    assert bucket_of([2047, 1], 64) == bucket_of([2044], 64) == bucket_of([1000, 1047 - MANY, 1], 64) == Bucket(2048, 8)
    assert bucket_of([20] * 9, 64) == Bucket(256, 64) and bucket_of([20] * 65, 64) is bucket_of([2049], 64) is None
    for most in (8, 64):
        assert len(set(buckets(most))) == len(buckets(most))
        numbers = random.Random(most)
        for _ in range(300):
            counts = [numbers.choice((1, 3, MANY, 30, 200)) for _ in range(numbers.randrange(1, most + 1))]
            found = bucket_of(counts, most)
            if found is not None:
                pad = found.tokens - sum(counts)
                assert found in buckets(most) and pad >= 0 and len(counts) <= found.sequences
                assert min(*counts, pad or MANY) >= found.least


@pytest.mark.parametrize("sequences", [1, 5, 64, 250, 600])
def test_so_many_steps_are_recorded_before_the_first(sequences: int) -> None:
    """What is set aside for them (:mod:`isobit.models.room`) is for as many as there will be."""
    found = set[object]()

    class Counted(GpuRunner):
        def _held(self) -> Any:
            return None

        def _recorded(self, cache: Any) -> Any:
            return SimpleNamespace(run_pieces=run_pieces, record=record)

    def run_pieces(pieces: Any, bucket: tuple[int, int], *, record: bool) -> None:
        assert record
        found.add(("pieces", *bucket))

    def record(rows: set[int]) -> None:
        found.update(("rows", count, span) for count in rows for span in spans(count, 4096))

    model: Any = SimpleNamespace(
        place=SimpleNamespace(tensors=torch.device("cpu")), config=SimpleNamespace(max_context=4096)
    )
    Counted(model, sequences).record()
    assert len(found) == recorded_steps(sequences) > 10
