"""Sounds that are cut at quiet places, and the texts of their parts joined: bounds, places, any order of pieces."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.engine.windows import Joined, between, cuts

RATE = 1000


def loud(seconds: float, *quiet: tuple[float, float]) -> np.ndarray:
    """Noise with pauses."""
    samples = np.random.default_rng(1).standard_normal(int(seconds * RATE)).astype(np.float32)
    for begin, end in quiet:
        samples[int(begin * RATE) : int(end * RATE)] = 0
    return samples


def test_what_is_short_enough_is_one_part() -> None:
    assert cuts(loud(100), RATE, 100) == [range(100_000)]
    assert cuts(loud(0.001), RATE, 100) == [range(1)]


def test_it_is_cut_in_the_pauses() -> None:
    found = cuts(loud(250, (79, 81), (163, 165), (90, 90.1), (170, 170.1)), RATE, 100)
    assert [round(part.stop / RATE) for part in found] == [80, 164, 250]


def test_silence_and_one_loudness_are_cut_into_parts_alike() -> None:
    for samples in (np.zeros(250 * RATE, np.float32), np.ones(250 * RATE, np.float32)):
        lengths = [len(part) / RATE for part in cuts(samples, RATE, 100)]
        assert len(lengths) == 3 and max(lengths) - min(lengths) < 1


@given(st.integers(1, 5000), st.floats(0.001, 60, allow_nan=False), st.integers(1, 400), st.integers(0, 3))
def test_parts_are_the_whole_and_none_is_too_long(count: int, longest: float, rate: int, seed: int) -> None:
    samples = np.random.default_rng(seed).standard_normal(count).astype(np.float32) * (seed > 0)
    found = cuts(samples, rate, longest)
    assert found[0].start == 0 and found[-1].stop == count
    assert all(one.stop == other.start for one, other in zip(found, found[1:], strict=False))
    assert all(0 < len(part) <= max(1, int(longest * rate)) for part in found)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_pieces_in_any_order_are_one_text(texts: list[str], rng: random.Random) -> None:
    whole = ""
    for text in (text.strip() for text in texts):
        if text:
            whole += (between(whole[-1], text[0]) if whole else "") + text
    joined, found = Joined(len(texts)), ""
    left = {place: list(text) for place, text in enumerate(texts)}
    while left:
        place = rng.choice(sorted(left))
        count = rng.randint(0, 3)
        piece, left[place] = "".join(left[place][:count]), left[place][count:]
        ended = not left[place]
        found += joined.push(place, piece, ended=ended)
        if ended:
            del left[place]
    assert found == whole


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["Hello there.", "How are you?"], "Hello there. How are you?"),
        ([" Hello\n", "\n", " you "], "Hello you"),
        (["今天天气很好。", "我们走吧"], "今天天气很好。我们走吧"),
        (["今天", "OK"], "今天OK"),
        (["カタカナ", "ひらがな"], "カタカナひらがな"),
        (["안녕하세요", "반갑습니다"], "안녕하세요 반갑습니다"),
        (["", ""], ""),
    ],
)
def test_texts_are_joined_as_their_scripts_want_it(texts: list[str], whole: str) -> None:
    joined = Joined(len(texts))
    assert "".join(joined.push(place, text, ended=True) for place, text in enumerate(texts)) == whole


def test_text_of_the_first_part_comes_while_others_are_written() -> None:
    joined = Joined(2)
    assert joined.push(1, "later") == ""
    assert joined.push(0, "first ") == "first"
    assert joined.push(0, "words") == " words"
    assert joined.push(0, "", ended=True) == " later"
    assert joined.push(1, " on", ended=True) == " on"
