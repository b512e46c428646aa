"""Sampling many rows at once: each is what the row alone gives, bit by bit, and what the steps for one row give."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from plain_sampler import PlainSampler, plain_logprob

from isobit.engine import distribution
from isobit.engine.params import SamplingParams
from isobit.engine.sampler import Choice, Chooser
from isobit.engine.sampler import sample as choices_of
from isobit.errors import UsageError

SETTINGS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.2, "logprobs": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5, "logprobs": 7},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.999, "repetition_penalty": 0.8},
    {"temperature": 2.0, "min_p": 0.05},
    {"temperature": 1.2, "top_k": 300, "top_p": 0.8, "min_p": 0.01, "frequency_penalty": -0.5},
    {"temperature": 1e-300},
    {"temperature": 50.0, "top_p": 0.3},
]
KINDS = {
    "random": lambda numbers, size: numbers.normal(0, 3, size),
    "flat": lambda numbers, size: numbers.normal(0, 0.01, size),
    "peaked": lambda numbers, size: numbers.normal(0, 9, size),
    "few values": lambda numbers, size: numbers.integers(0, 4, size).astype(float),
    "mostly -inf": lambda numbers, size: np.where(numbers.random(size) < 0.9, -np.inf, numbers.normal(0, 2, size)),
}


def logits_of(seed: int, rows: int, size: int) -> torch.Tensor:
    numbers = np.random.default_rng(seed)
    kinds = list(KINDS.values())
    made = [kinds[(row + seed) % len(kinds)](numbers, size) for row in range(rows)]
    for row in made:
        row[seed % size] = 1.5
    return torch.from_numpy(np.stack(made)).float()


def sample(choosers: list[Chooser], logits: torch.Tensor) -> list[Choice]:
    """Chooses, and counts what was chosen; asking twice gives the same."""
    choices = choices_of(choosers, logits)
    assert choices_of(choosers, logits)[:1] == choices[:1] or choices[0].error is not None
    for chooser, choice in zip(choosers, choices, strict=True):
        if choice.error is None:
            chooser.add(choice.token)
    return choices


def settings_of(row: int) -> SamplingParams:
    return SamplingParams(**SETTINGS[row % len(SETTINGS)], seed=row)


@pytest.mark.parametrize("size", [7, 1500, 33000])
def test_every_row_gets_what_it_gets_alone_token_by_token(size: int) -> None:
    rows, steps = 2 * len(SETTINGS), 12 if size < 10000 else 4
    prompts = [[row % size, 3, 3] for row in range(rows)]
    one_by_one = [PlainSampler(settings_of(row), prompts[row]) for row in range(rows)]
    together = [Chooser(settings_of(row), prompts[row]) for row in range(rows)]
    single = [Chooser(settings_of(row), prompts[row]) for row in range(rows)]
    for step in range(steps):
        logits = logits_of(step, rows, size)
        order = random.Random(step).sample(range(rows), rows)
        shuffled = sample([together[row] for row in order], logits[order])
        found = {row: choice for row, choice in zip(order, shuffled, strict=True)}
        for row in range(rows):
            alone = sample([single[row]], logits[row : row + 1])[0]
            assert found[row] == alone  # tokens and logprobs, to the last bit
            assert alone.token == one_by_one[row].sample(logits[row])
            wanted = settings_of(row).logprobs
            if wanted is None:
                assert alone.logprob is None
                continue
            expected = plain_logprob(logits[row], alone.token, wanted)
            assert alone.logprob is not None
            assert [id for id, _ in alone.logprob.top] == [id for id, _ in expected.top]
            assert alone.logprob.logprob == pytest.approx(expected.logprob, abs=1e-12)
            assert [v for _, v in alone.logprob.top] == pytest.approx([v for _, v in expected.top], abs=1e-12)


def test_threads_change_no_bit() -> None:
    """Of what is computed: :func:`sample` itself uses one thread on a CPU."""
    logits = logits_of(0, 9, 140000).double()
    weights = (logits - logits.amax(1, keepdim=True)).exp()
    shares = torch.linspace(0.1, 0.95, 9, dtype=torch.float64)
    bits = distribution.fixed_bits(140000)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            units = distribution.fixed(weights, bits)
            outside = distribution.outside_nucleus(weights, units, shares, bits)
            drawn = distribution.draw(units.masked_fill(outside, 0), shares)
            found.append((units, outside, drawn, distribution.folded_sum(weights)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])
    count = 4000
    chooser = Chooser(SamplingParams(temperature=1.0, seed=3))
    came = Counter(sample([chooser], logits)[0].token for _ in range(count))
    for id, share in enumerate(logits[0].double().softmax(0).tolist()):
        assert abs(came[id] - count * share) <= 4.5 * math.sqrt(count * share * (1 - share)) + 1e-3


def test_a_row_without_numbers_fails_alone() -> None:
    logits = torch.zeros(4, 5)
    logits[:, 2] = 1.0
    logits[1, 3] = math.nan
    logits[2] = -math.inf
    choosers = [Chooser(SamplingParams(temperature=1.0, top_p=0.9, seed=1, logprobs=1)) for _ in range(3)]
    choices = sample([*choosers, Chooser(SamplingParams())], logits)
    assert [choice.error is None for choice in choices] == [True, False, False, True]
    assert "1 of 5 are NaN or infinite" in str(choices[1].error)
    assert "0 of 5 are NaN or infinite" in str(choices[2].error)
    assert choices[3].token == 2
    alone = sample([Chooser(SamplingParams(temperature=1.0, top_p=0.9, seed=1, logprobs=1))], logits[:1])
    assert choices[0] == alone[0]


def test_the_logits_stay_as_they_are_and_any_dtype_is_read() -> None:
    logits = logits_of(2, len(SETTINGS), 50)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        given = logits.to(dtype)
        before = given.clone()
        sample([Chooser(settings_of(row), [1, 2]) for row in range(len(SETTINGS))], given)
        assert torch.equal(given, before)


def test_a_bias_is_added_before_anything_else() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    assert sample([Chooser(SamplingParams(logit_bias={2: 3.0}))], logits)[0].token == 2  # type: ignore[arg-type]
    banned = SamplingParams(logit_bias=((0, -100.0),), temperature=5.0, seed=1)
    chooser = Chooser(banned)
    assert 0 not in {sample([chooser], logits)[0].token for _ in range(50)}
    # 0 + 3 is positive when the penalty comes: 3 / 2 is still the largest, and then 1 is.
    chooser = Chooser(SamplingParams(logit_bias=((1, 3.0),), repetition_penalty=4.0), [1])
    assert sample([chooser], logits)[0].token == 0
    assert PlainSampler(SamplingParams(logit_bias=((2, 3.0),))).sample(logits[0]) == 2
    chosen = sample([Chooser(SamplingParams(logit_bias=((2, 3.0),), logprobs=1))], logits)[0].logprob
    assert chosen is not None
    assert (chosen.id, chosen.top[0][0]) == (2, 0)  # logprobs are the model's own


@pytest.mark.parametrize(
    "wrong", [{-1: 1.0}, {0: 101.0}, {0: math.nan}, {"a": 1.0}, {0: "1"}, {True: 1.0}, [1, 2], 7, {1.5: 2.0}]
)
def test_biases_that_cannot_be_used_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="logit_bias must be token ids and numbers between -100 and 100"):
        SamplingParams(logit_bias=wrong)


def test_biases_may_be_a_dict_and_are_compared_by_value() -> None:
    given: Any = {5: 1, 2: -3.5}
    assert SamplingParams(logit_bias=given) == SamplingParams(logit_bias=((2, -3.5), (5, 1.0)))
    assert hash(SamplingParams(logit_bias=given)) == hash(SamplingParams(logit_bias=((2, -3.5), (5, 1.0))))
    assert SamplingParams(logit_bias=None).logit_bias == ()  # type: ignore[arg-type]


def test_sums_have_one_order() -> None:
    numbers = np.random.default_rng(0).random((5, 1001))
    together = distribution.folded_sum(torch.from_numpy(numbers))
    for row in range(5):
        assert torch.equal(distribution.folded_sum(torch.from_numpy(numbers[row : row + 1])), together[row : row + 1])
        assert float(together[row]) == pytest.approx(math.fsum(numbers[row]), rel=1e-15)


@pytest.mark.parametrize("vocabulary", [1, 2, 1000, 2**18, 2**20 + 1])
def test_units_of_a_whole_vocabulary_do_not_overflow(vocabulary: int) -> None:
    units = distribution.fixed(torch.ones(1, vocabulary, dtype=torch.float64), distribution.fixed_bits(vocabulary))
    assert 2**60 < int(units.sum()) <= 2**62
    assert distribution.fixed_bits(vocabulary) >= 40


def test_a_draw_takes_each_place_by_its_share_and_none_of_weight_0() -> None:
    units = torch.tensor([[0, 1, 0, 3, 0]])
    uniforms = (0.0, 0.2499, 0.25, 0.9, math.nextafter(1.0, 0.0))
    found = [int(distribution.draw(units, torch.tensor([u], dtype=torch.float64))) for u in uniforms]
    assert found == [1, 1, 3, 3, 3]
