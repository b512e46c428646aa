"""Answers told of their tokens one by one: their text is that of the tokens, in whichever way they come."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models
from tokenizers_for_tests import KINDS

from isobit.engine.answer import Answer, Piece
from isobit.engine.asked import Output
from isobit.engine.detokenizer import DecodeStream
from isobit.engine.params import SamplingParams
from isobit.engine.sampler import Choice
from isobit.engine.tokenizer import Tokenizer


def words() -> FastTokenizer:
    """Without a decoder, and no letter is a token: the library puts spaces between the words."""
    return FastTokenizer(models.WordLevel({f"w{number}": number for number in range(60)}, unk_token="w0"))


MADE = {**KINDS, "words": words}


def draw(tokenizer: Tokenizer, numbers: random.Random, count: int) -> list[int]:
    """Mostly tokens with a text of their own; some are parts of characters, special, or of no vocabulary."""
    size = tokenizer.vocab_size
    usual = [id for id in range(size) if tokenizer.behind(id)]
    return [numbers.choice(usual) if numbers.random() < 0.8 else numbers.randrange(size + 2) for _ in range(count)]


def told(answer: Answer, ids: list[int], numbers: random.Random, alike: float) -> list[Piece]:
    """Its pieces, if so many of its tokens come beside those of others."""
    pieces = []
    for place, id in enumerate(ids):
        if place and numbers.random() < alike:
            piece = answer.go_on(id, 0.25)
        else:
            piece = answer.push(Output(answer.place, Choice(id), None, 0.25))
        if piece is not None:
            pieces.append(piece)
            if piece.completion is not None:
                break
    return pieces


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("whole", [False, True])
def test_pieces_are_the_text_wherever_it_ends(kind: str, whole: bool) -> None:
    tokenizer, numbers = Tokenizer(MADE[kind]()), random.Random(3)
    for count in range(1, 60):
        ids = draw(tokenizer, numbers, count)
        answer = Answer(tokenizer, [1], SamplingParams(), count + 1)
        answer.whole = whole
        pieces = [*told(answer, ids, numbers, numbers.choice([0.0, 0.7, 1.0])), answer.abort()]
        completion = pieces[-1].completion
        assert completion is not None and completion.finish_reason == "abort"
        assert completion.text == tokenizer.decode([id for id in ids if tokenizer.name_of(id) is not None])
        assert completion.token_ids == tuple(ids)
        assert completion.timings.decode_seconds == 0.25 * (count - 1)
        if not whole:
            assert "".join(piece.text for piece in pieces) == completion.text
            assert [id for piece in pieces for id in piece.token_ids] == ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{"stop": ("th", "ab")}, {"stop": (" d",)}, {"kept_special": (1,)}])
def test_pieces_that_others_share_are_those_of_an_answer_alone(kind: str, settings: dict[str, Any]) -> None:
    tokenizer, numbers = Tokenizer(KINDS[kind]()), random.Random(4)
    stopped = 0
    for _ in range(60):
        ids = draw(tokenizer, numbers, 30)
        every = []
        for alike in (0.0, 0.6, 1.0):
            answer = Answer(tokenizer, [1], SamplingParams(**settings), 99)
            pieces = told(answer, ids, numbers, alike)
            every.append([*pieces, answer.abort()] if pieces[-1].completion is None else pieces)
        assert every[0] == every[1] == every[2]
        stopped += every[0][-1].completion.finish_reason == "stop"
    assert stopped or "stop" not in settings


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("skip_special", [True, False])
def test_tokens_pushed_together_are_those_pushed_one_by_one(kind: str, skip_special: bool) -> None:
    tokenizer, numbers = Tokenizer(MADE[kind]()), random.Random(5)
    for _ in range(60):
        ids = draw(tokenizer, numbers, 40)
        one, many = DecodeStream(tokenizer, skip_special), DecodeStream(tokenizer, skip_special)
        while ids:
            cut = numbers.randrange(len(ids)) + 1
            now, ids = ids[:cut], ids[cut:]
            assert many.push_all(now) == "".join(one.push(id) for id in now)
            assert many.complete == one.complete
        assert many.finish() == one.finish()


def test_pieces_are_made_once_and_go_with_their_tokenizer() -> None:
    tokenizer = Tokenizer(words())
    alive = weakref.ref(tokenizer)
    answers = [Answer(tokenizer, [1], SamplingParams(), 9) for _ in range(2)]
    for answer in answers:
        answer.push(Output(0, Choice(3)))
    assert answers[0].go_on(4, 0.0) is answers[1].go_on(4, 0.0)
    del tokenizer, answers, answer
    gc.collect()
    assert alive() is None
