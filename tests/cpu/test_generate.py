"""Generation with a model whose answers are known: text, stopping, streaming, limits, errors."""

from __future__ import annotations

import array
import enum
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_model import FakeModel, writes
from tokenizers_for_tests import byte_level, write_folder

from isobit.checkpoint.text.generation import Defaults
from isobit.engine.generate import Generator
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.prompts import given_ids, room
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, IsobitError, UsageError
from isobit.targets.prefill import prefill_chunk
from isobit.targets.table import TARGETS

PROMPT = "def fib"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


def generator_that_says(text: str, tokenizer: Tokenizer, context: int = 128) -> Generator:
    """A generator whose greedy answer to PROMPT is ``text``, over and over."""
    rule = writes(tokenizer.encode(text), tokenizer.vocab_size, len(tokenizer.encode(PROMPT)))
    return Generator(LLM(FakeModel(tokenizer.vocab_size, rule, context), tokenizer))


def test_text_up_to_the_end_of_text_token(tokenizer: Tokenizer) -> None:
    answer = generator_that_says("(n): 🙂 漢</s>", tokenizer).generate(PROMPT)
    assert answer.text == "(n): 🙂 漢"
    assert answer.finish_reason == "stop" and answer.stop == tokenizer.encode("</s>")[0]
    assert list(answer.token_ids) == tokenizer.encode("(n): 🙂 漢</s>")
    assert answer.usage.prompt_tokens == len(tokenizer.encode(PROMPT))
    assert answer.usage.completion_tokens == len(answer.token_ids)
    assert answer.logprobs is None
    assert answer.timings.prefill_seconds > 0 and answer.timings.decode_seconds > 0


def test_max_tokens_ends_with_length_and_gives_out_what_was_held(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("ab STO", tokenizer)
    count = len(tokenizer.encode("ab STO"))
    answer = generator.generate(PROMPT, SamplingParams(max_tokens=count, stop=("STOP",)))
    assert (answer.text, answer.finish_reason, answer.stop) == ("ab STO", "length", None)
    one = generator.generate(PROMPT, SamplingParams(max_tokens=1))
    assert len(one.token_ids) == 1 and one.timings.tokens_per_second is None


def test_ignore_eos_goes_on(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("x</s>", tokenizer)
    answer = generator.generate(PROMPT, SamplingParams(max_tokens=6, ignore_eos=True))
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == ("xxx", "length", 6)


@pytest.mark.parametrize("stop", ["STOP", "P now", "🙂", "d", "e STOP now 🙂"])
def test_a_stop_string_is_never_shown_not_even_its_begin(stop: str, tokenizer: Tokenizer) -> None:
    said = "one fine STOP now 🙂 and more"
    generator = generator_that_says(said, tokenizer)
    pieces = list(generator.stream(PROMPT, SamplingParams(stop=(stop,))))
    expected = said[: said.index(stop)]
    answer = pieces[-1].completion
    assert answer is not None
    assert answer.text == "".join(piece.text for piece in pieces) == expected
    assert (answer.finish_reason, answer.stop) == ("stop", stop)
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert expected.startswith(shown)


def test_pieces_add_up_and_only_the_last_has_the_completion(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("return 🙂 n\n</s>", tokenizer)
    pieces = list(generator.stream(PROMPT))
    assert [piece.completion is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    whole = generator.generate(PROMPT)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum((piece.token_ids for piece in pieces), ()) == whole.token_ids
    assert all("\ufffd" not in piece.text for piece in pieces)


def test_an_answer_cut_inside_a_character_ends_with_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("漢")
    generator = generator_that_says("漢", tokenizer)
    answer = generator.generate(PROMPT, SamplingParams(max_tokens=len(ids) - 1))
    assert answer.text == tokenizer.decode(ids[:-1]) == "\ufffd"


@pytest.mark.parametrize(
    ("target", "hidden", "chunk"),
    [(None, 4096, 512), ("sm_86", 4096, 2048), ("gfx942", 8, 1024), ("sm_90", 1024, 2048), ("sm_90", 4096, 8192)],
)
def test_prompt_goes_in_once_and_in_chunks_then_token_by_token(
    tokenizer: Tokenizer, target: str | None, hidden: int, chunk: int
) -> None:
    where = TARGETS[target] if target else None
    assert prefill_chunk(where, hidden) == chunk
    length = 2 * chunk + 3
    repeat = lambda ids: torch.eye(tokenizer.vocab_size)[ids[-1]]  # noqa: E731
    model = FakeModel(tokenizer.vocab_size, repeat, length + 10)
    model.place.target, model.config.hidden_size = where, hidden
    answer = Generator(LLM(model, tokenizer)).generate([5] * length, SamplingParams(max_tokens=4))
    assert answer.token_ids == (5, 5, 5, 5)
    assert model.calls == [chunk, chunk, 3, 1, 1, 1]
    assert answer.usage.prompt_tokens == length


def test_logprobs_do_not_depend_on_how_tokens_are_chosen(tokenizer: Tokenizer) -> None:
    rule = lambda ids: torch.sin(torch.arange(tokenizer.vocab_size) * float(len(ids)))  # noqa: E731
    generator = Generator(LLM(FakeModel(tokenizer.vocab_size, rule), tokenizer))
    params = SamplingParams(temperature=0.5, top_k=3, repetition_penalty=1.5, seed=1, max_tokens=5, logprobs=2)
    answer = generator.generate([1, 2, 3], params)
    assert answer.logprobs is not None and len(answer.logprobs) == 5
    for position, (id, entry) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
        reference = torch.log_softmax(rule([0] * (3 + position)).double(), -1)
        assert entry.id == id
        assert entry.logprob == pytest.approx(float(reference[id]), abs=1e-12)
        assert entry.top[0][1] == pytest.approx(float(reference.max()), abs=1e-12)
        assert all(a >= b for (_, a), (_, b) in pairwise(entry.top))


def test_the_same_seed_gives_the_same_answer_also_interleaved(tokenizer: Tokenizer) -> None:
    generator = Generator(
        LLM(FakeModel(tokenizer.vocab_size, lambda ids: torch.zeros(tokenizer.vocab_size)), tokenizer)
    )
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12, ignore_eos=True)
    alone = generator.generate(PROMPT, params).token_ids
    both = zip(generator.stream(PROMPT, params), generator.stream(PROMPT, params), strict=True)
    tokens = [(a.token_ids, b.token_ids) for a, b in both]
    assert sum((a for a, _ in tokens), ()) == sum((b for _, b in tokens), ()) == alone


def test_what_does_not_fit_the_context_is_refused_with_numbers(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("x", tokenizer, context=16)
    with pytest.raises(CapacityError, match="the prompt has 16 tokens and the model's context holds 16.*at most 15"):
        generator.generate([1] * 16)
    with pytest.raises(UsageError, match="max_tokens=7 does not fit.*holds 16.*prompt has 10; use max_tokens=6"):
        generator.stream([1] * 10, SamplingParams(max_tokens=7))
    full = generator.generate([1] * 10)
    assert (len(full.token_ids), full.finish_reason) == (6, "length")


def test_ids_of_every_kind_of_integer_become_python_s() -> None:
    class Token(enum.IntEnum):
        ONE = 1

    kinds = ([5, 1, 7], (5, 1, 7), [5, Token.ONE, np.int64(7)], np.array([5, 1, 7]), torch.tensor([5, 1, 7]))
    for prompt in (*kinds, array.array("q", [5, 1, 7]), iter([5, 1, 7])):
        found = given_ids(prompt)  # type: ignore[arg-type]
        assert found == [5, 1, 7] and {*map(type, found)} == {int}
    given = [5, 1, 7]
    assert given_ids(given) is not given, "whoever asks may change their list"
    assert given_ids([]) == given_ids(()) == [] and given_ids(range(5, 8)) == [5, 6, 7]


def test_prompts_that_cannot_be_used(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("x", tokenizer)
    with pytest.raises(UsageError, match="prompt is empty"):
        generator.generate("")
    for wrong in (tokenizer.vocab_size, -1, 2**40, -(2**70)):
        with pytest.raises(UsageError, match=f"token id {wrong} is outside the model's vocabulary of"):
            generator.generate([1, wrong])
        with pytest.raises(UsageError, match=f"token id {wrong} is outside the model's vocabulary of"):
            generator.generate([wrong, *[1] * 60, tokenizer.vocab_size + 1])  # the first of them is named
    mixed = [True], (1, True), [2, False, 3], [1, np.True_], (1, np.float64(2))
    for odd in (*mixed, b"abc", [1.5], ["1"], [[1]], 7, None, [None], torch.ones(2, 2), torch.ones(2)):
        with pytest.raises(UsageError, match="a prompt is a text or a list of token ids"):
            generator.generate(odd)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"lone surrogate \(U\+DC80, character 2\)"):
        generator.generate("a\udc80")


def test_token_ids_may_be_of_any_integer_type(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("x", tokenizer)
    once = SamplingParams(max_tokens=1)
    for ids in ([3, 4], (3, 4), np.array([3, 4], np.int32), torch.tensor([3, 4]), range(3, 5)):
        assert generator.generate(ids, once).usage.prompt_tokens == 2  # type: ignore[arg-type]


def test_a_token_that_only_the_tokenizer_knows_is_refused_by_name(tokenizer: Tokenizer) -> None:
    size = tokenizer.encode("<|end|>")[0]
    model = FakeModel(size, lambda ids: torch.zeros(size))
    with pytest.raises(UsageError, match=rf"token id {size} \('<\|end\|>', which the tokenizer knows and the model"):
        Generator(LLM(model, tokenizer)).generate("a<|end|>")


@pytest.mark.parametrize("prompt", [" ", "\x00", "a\x00b", "<s>", "</s></s>", "\ufeff", "\u2028", "🙂"])
def test_odd_prompts_are_prompts(prompt: str, tokenizer: Tokenizer) -> None:
    generator = generator_that_says("x", tokenizer)
    answer = generator.generate(prompt, SamplingParams(max_tokens=2))
    assert answer.usage.prompt_tokens == len(tokenizer.encode(prompt)) > 0


def test_a_prompt_of_hundreds_of_kilobytes_is_too_long_and_no_more(tokenizer: Tokenizer) -> None:
    generator = generator_that_says("x", tokenizer)
    with pytest.raises(CapacityError, match="the model's context holds 128"):
        generator.generate("ab \n\x00" * 2**16)


def test_the_model_s_own_length_counts_as_far_as_the_context_goes(tokenizer: Tokenizer) -> None:
    ids = [1] * 10
    assert room(ids, None, 1000, Defaults()) == 256
    assert room(ids, None, 1000, Defaults(max_tokens=700)) == 700
    assert room(ids, None, 100, Defaults(max_tokens=700)) == 90
    assert room(ids, None, 1000, Defaults(max_length=60)) == 50
    assert room(ids, None, 1000, Defaults(max_length=60, max_tokens=70)) == 70  # as in transformers
    assert room(ids, None, 1000, Defaults(max_length=10)) == 256
    assert room(ids, 5, 1000, Defaults(max_length=12, max_tokens=3)) == 5


def test_a_begin_of_text_token_read_twice_is_noted(tmp_path: Path) -> None:
    own = Tokenizer.from_folder(write_folder(tmp_path, byte_level(bos=True)))
    generator = generator_that_says("x", own)
    once = SamplingParams(max_tokens=1)
    assert generator.generate("x", once).notes == ()
    (note,) = generator.generate("<s>x", once).notes
    assert "reads '<s>' twice" in note
    assert generator.generate([own.bos_id, own.bos_id, 5], once).notes == (note,)  # type: ignore[list-item]


def test_nan_logits_are_an_error_and_no_token(tokenizer: Tokenizer) -> None:
    model = FakeModel(tokenizer.vocab_size, lambda ids: torch.full((tokenizer.vocab_size,), math.nan))
    with pytest.raises(IsobitError, match="are NaN or infinite"):
        Generator(LLM(model, tokenizer)).generate(PROMPT)
