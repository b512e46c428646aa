"""Scores of a prompt's tokens: what the model's own logits say, however the prompt gets through the engine."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_model import FakeModel
from families import make_model, save
from plain_sampler import plain_logprob
from running import run
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine import runner as runners
from isobit.engine.answer import Completion
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, IsobitError, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.kernels.cpu import library as cpu_library
from isobit.models.cache.paged import BLOCK
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

CONTEXT = 512
PROBLEM = cpu_library.problem()
READ = SamplingParams(max_tokens=0, prompt_logprobs=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """One whose logits are the same bits in any batch: all of it is int8."""
    if PROBLEM:
        pytest.skip(PROBLEM)
    root = tmp_path_factory.mktemp("scores")
    made = save(make_model("LlamaForCausalLM", tie_word_embeddings=False, max_position_embeddings=CONTEXT), root / "f")
    quantize(made, root / "q", Policy(scheme("int8"), (Rule("lm_head", "int8"),)), progress=False)
    return load_model(root / "q")


def ids_for(model: Decoder, length: int, seed: int = 0) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(model.config.vocab_size) for _ in range(length)]


def expected(model: Decoder, ids: list[int], top: int) -> list[TokenLogprob]:
    """From the logits of one call of the model, in another way."""
    logits = run(model, torch.tensor([ids]))[0]
    return [plain_logprob(logits[place - 1], ids[place], top) for place in range(1, len(ids))]


def close(found: TokenLogprob, wanted: TokenLogprob) -> bool:
    return (
        (found.id, found.greedy) == (wanted.id, wanted.greedy)
        and [id for id, _ in found.top] == [id for id, _ in wanted.top]
        and math.isclose(found.logprob, wanted.logprob, abs_tol=1e-12)
        and all(math.isclose(a, b, abs_tol=1e-12) for (_, a), (_, b) in zip(found.top, wanted.top, strict=True))
    )


def scores_of(completion: Completion) -> tuple[TokenLogprob, ...]:
    found = completion.prompt_logprobs
    assert found is not None and found[0] is None
    assert len(found) == completion.usage.prompt_tokens
    return tuple(one for one in found if one is not None)


def test_a_prompt_is_scored_and_nothing_is_generated(model: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_for(model, 70)
    (found,) = LLM(model, tokenizer).generate([ids], READ)
    assert (found.text, found.token_ids, found.finish_reason, found.usage.completion_tokens) == ("", (), "length", 0)
    wanted = expected(model, ids, 3)
    assert all(close(one, each) for one, each in zip(scores_of(found), wanted, strict=True))


@pytest.mark.parametrize("step", [1, 7, 64])
def test_pieces_of_a_prompt_give_the_same_bits(model: Decoder, tokenizer: Tokenizer, step: int) -> None:
    ids = ids_for(model, 3 * BLOCK + 5, 1)
    params = replace(READ, max_tokens=4, ignore_eos=True)
    (whole,) = LLM(model, tokenizer).generate([ids], params)
    (parts,) = LLM(model, tokenizer, sequences=1, chunk=step).generate([ids], params)
    assert parts.prompt_logprobs == whole.prompt_logprobs
    assert parts.token_ids == whole.token_ids


def test_few_rows_at_once_give_the_same_bits(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_for(model, 50, 2)
    (whole,) = LLM(model, tokenizer).generate([ids], READ)
    sizes: list[int] = []
    logits = Decoder.logits

    def spy(self: Decoder, x: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        found = logits(self, x, rows)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Decoder, "logits", spy)
    monkeypatch.setattr(runners, "_SCORED_BYTES", {"cpu": 8 * 5 * model.config.vocab_size})
    (few,) = LLM(model, tokenizer).generate([ids], READ)
    assert few.prompt_logprobs == whole.prompt_logprobs
    assert sizes == [5] * 9 + [4], "the logits of a prompt were there all at once"


def test_a_prompts_row_and_a_chosen_tokens_row_are_the_same_numbers(model: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_for(model, 33, 3)
    llm = LLM(model, tokenizer)
    (chosen,) = llm.generate([ids], SamplingParams(max_tokens=20, logprobs=3, ignore_eos=True))
    assert chosen.logprobs is not None
    (read,) = llm.generate([[*ids, *chosen.token_ids]], READ)
    assert scores_of(read)[len(ids) - 1 :] == chosen.logprobs
    assert all(one.greedy and one.top[0] == (one.id, one.logprob) for one in chosen.logprobs)


def test_preempted_and_computed_again_nothing_is_scored_twice(model: Decoder, tokenizer: Tokenizer) -> None:
    prompts = [ids_for(model, length, length) for length in (60, 62, 50, 30)]
    params = replace(READ, max_tokens=60, ignore_eos=True)
    alone = [LLM(model, tokenizer).generate([ids], params)[0] for ids in prompts]
    llm = LLM(model, tokenizer, chunk=32, sequences=8, cache_tokens=5 * BLOCK)
    together = llm.generate(prompts, params)
    assert llm.engine.scheduler.preemptions > 0
    for one, other in zip(together, alone, strict=True):
        assert (one.prompt_logprobs, one.token_ids) == (other.prompt_logprobs, other.token_ids)


def test_prompts_in_the_cache_are_computed_again_where_they_are_scored(model: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_for(model, 4 * BLOCK, 5)
    llm = LLM(model, tokenizer)
    (first,) = llm.generate([ids], READ)
    (again,) = llm.generate([ids], READ)
    (other,) = llm.generate([ids], SamplingParams(max_tokens=1))
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 0)
    assert other.usage.cached_tokens == 3 * BLOCK, "what was scored is not found by others"
    assert again.prompt_logprobs == first.prompt_logprobs


def test_ranges_of_sequences_are_scored_behind_what_the_cache_holds(model: Decoder, tokenizer: Tokenizer) -> None:
    shared = ids_for(model, 2 * BLOCK + 3, 6)
    sequences = [shared + ids_for(model, length, length) for length in (5, 17, 1)]
    llm = LLM(model, tokenizer)
    whole = llm.generate(sequences, replace(READ, prompt_logprobs=2))
    fed: list[int] = []
    hidden = Decoder.hidden_states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "hidden_states", lambda *args: (fed.append(len(args[1].positions)), hidden(*args))[1])
        found = llm.score(sequences, len(shared), top=2)
    assert sum(fed) == sum(len(ids) - 2 * BLOCK for ids in sequences), "the cache was not read"
    for one, each in zip(found, whole, strict=True):
        assert one == scores_of(each)[len(shared) - 1 :]
    first, second = llm.score(sequences[:2], [len(sequences[0]), 1])
    assert first == () and len(second) == len(sequences[1]) - 1
    assert [one.logprob for one in second] == [one.logprob for one in scores_of(whole[1])]
    assert all(one.top == () for one in second)


def test_what_many_sequences_begin_with_is_computed_once_though_all_come_at_once(
    model: Decoder, tokenizer: Tokenizer
) -> None:
    contexts = [ids_for(model, 2 * BLOCK + 1, seed) for seed in (20, 21)]
    sequences = [context + ids_for(model, 3, seed) for context in contexts for seed in (30, 31, 32)]
    fed: list[int] = []
    hidden = Decoder.hidden_states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "hidden_states", lambda *args: (fed.append(len(args[1].positions)), hidden(*args))[1])
        found = LLM(model, tokenizer, chunk=4 * len(sequences[0])).score(sequences, len(contexts[0]))
    assert sum(fed) == 2 * len(sequences[0]) + 4 * (len(sequences[0]) - 2 * BLOCK)
    assert found == [LLM(model, tokenizer).score([ids], len(contexts[0]))[0] for ids in sequences]


def test_a_context_that_is_full_can_be_read(model: Decoder, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer)
    ids = ids_for(model, CONTEXT, 7)
    (found,) = llm.generate([ids], READ)
    assert len(scores_of(found)) == CONTEXT - 1
    with pytest.raises(CapacityError, match=f"at most {CONTEXT} tokens"):
        llm.generate([[*ids, 1]], READ)
    with pytest.raises(CapacityError, match=f"at most {CONTEXT - 1} tokens"):
        llm.generate([ids], replace(READ, max_tokens=1))


def test_one_token_has_nothing_to_be_scored(model: Decoder, tokenizer: Tokenizer) -> None:
    (found,) = LLM(model, tokenizer).generate([[3]], READ)
    assert (found.prompt_logprobs, found.token_ids) == ((None,), ())
    assert LLM(model, tokenizer).score([[3]]) == [()]


def test_streams_and_steps_give_them_with_their_completion(model: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_for(model, 20, 8)
    llm = LLM(model, tokenizer)
    (whole,) = llm.generate([ids], replace(READ, max_tokens=5, ignore_eos=True))
    *_, last = llm.stream(ids, replace(READ, max_tokens=5, ignore_eos=True))
    assert last.completion is not None and last.completion.prompt_logprobs == whole.prompt_logprobs
    pieces = list(llm.stream(ids, READ))
    assert len(pieces) == 1 and pieces[0].completion is not None
    id = llm.add(ids, READ)
    found = [pair for _ in range(3) for pair in llm.step()]
    assert [(number, piece.completion is not None) for number, piece in found] == [(id, True)]


def test_an_answer_that_is_ended_in_its_prompt_has_none(model: Decoder, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer, chunk=16, sequences=1)
    id = llm.add(ids_for(model, 60, 9), READ)
    llm.step()
    ended = llm.abort(id)
    assert ended is not None and ended.prompt_logprobs is None


def test_a_prompt_whose_logits_are_nan_takes_nothing_from_others(tokenizer: Tokenizer) -> None:
    def rule(ids: list[int]) -> torch.Tensor:
        return torch.full((50,), math.nan) if 13 in ids else torch.arange(50.0)

    llm = LLM(FakeModel(50, rule), tokenizer)  # type: ignore[arg-type]
    good, bad = (llm.add(ids, READ) for ids in ([1, 2, 3], [1, 13, 3, 4]))
    pieces = dict(llm.step())
    assert isinstance(pieces[bad].error, IsobitError) and "NaN" in str(pieces[bad].error)
    assert pieces[good].completion is not None and pieces[good].completion.prompt_logprobs is not None
    assert not llm.unfinished


def test_of_equal_logits_the_smallest_id_is_greedy(tokenizer: Tokenizer) -> None:
    llm = LLM(FakeModel(50, lambda ids: torch.tensor([0.0] * 4 + [5.0, 5.0] + [0.0] * 44)), tokenizer)  # type: ignore[arg-type]
    (found,) = llm.generate([[1, 4, 5, 2]], READ)
    assert [one.greedy for one in scores_of(found)] == [True, False, False]
    assert [id for id, _ in scores_of(found)[0].top] == [4, 5, 0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be an integer between 1"),
        ({"max_tokens": False, "prompt_logprobs": 1}, "max_tokens"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be an integer between 0 and 100"),
        ({"prompt_logprobs": 101}, "prompt_logprobs must be an integer between 0 and 100"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SamplingParams(**given)


def test_places_outside_of_a_sequence_are_refused(model: Decoder, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer)
    for first in (0, -1, 4):
        with pytest.raises(UsageError, match="use 1 to 3"):
            llm.score([[1, 2, 3]], first)
    with pytest.raises(UsageError, match="2 sequences and 1 places"):
        llm.score([[1, 2, 3], [4, 5]], [1])
    with pytest.raises(UsageError, match="empty"):
        llm.score([[]])
