"""Repetition-aware sampling: the tokens of a plain one, whatever is beside them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from plain_sampler import plain_draw

from isobit.engine.params import Repetition, SamplingParams
from isobit.engine.sampler import Chooser, sample
from isobit.errors import UsageError

VOCAB = 300


class Plain:
    """The rule for one row: sorted by hand, summed in float64."""

    def __init__(self, params: SamplingParams) -> None:
        self.params, self.output = params, list[int]()
        self.random = random.Random(params.seed)

    def choose(self, logits: torch.Tensor) -> int:
        params, rule = self.params, self.params.repetition_aware
        assert rule is not None
        weights = np.exp((logits.double().numpy() - float(logits.max())) / params.temperature)
        order = np.argsort(-weights, kind="stable")
        kept, sum_ = [], 0.0
        for id in order:
            if sum_ >= params.top_p * weights.sum() or len(kept) == (params.top_k or VOCAB):
                break
            kept.append(id)
            sum_ += weights[id]
        few = np.zeros_like(weights)
        few[kept] = weights[kept]
        first, second = self.random.random(), self.random.random()
        token = plain_draw(few, first)
        if self.output[-rule.window :].count(token) >= rule.window * rule.share:
            token = plain_draw(weights, second)
        self.output.append(token)
        return token


def settings() -> list[SamplingParams]:
    chance = random.Random(3)
    return [
        SamplingParams(
            temperature=chance.choice([0.7, 1.0, 1.4]), top_k=chance.choice([0, 1, 5, 25]), seed=seed,
            top_p=chance.choice([0.3, 0.8, 1.0]),
            repetition_aware=Repetition(chance.choice([1, 4, 10]), chance.choice([0.1, 0.5, 1])),
        )
        for seed in range(24)
    ]  # fmt: skip


def test_the_tokens_are_those_of_the_rule_alone_and_in_any_batch() -> None:
    params, numbers = settings(), torch.Generator().manual_seed(0)
    plain = [Plain(one) for one in params]
    together, alone = ([Chooser(one) for one in params] for _ in range(2))
    others = [Chooser(SamplingParams()), Chooser(SamplingParams(temperature=1.0, top_p=0.9, seed=5))]
    redrawn = 0
    for _ in range(40):
        logits = torch.randn(len(params) + 2, VOCAB, generator=numbers) * 2
        logits[:, 7] += 6  # what a loop looks like
        found = [choice.token for choice in sample([*together, *others], logits)]
        wanted = [each.choose(row) for each, row in zip(plain, logits, strict=False)]
        assert found[: len(params)] == wanted
        single = [sample([one], logits[at : at + 1])[0].token for at, one in enumerate(alone)]
        assert single == wanted
        again = [choice.token for choice in sample([*together, *others], logits)]
        assert again == found  # a step that is computed again
        for one, token in zip([*together, *others], found, strict=True):
            one.add(token)
        for one, token in zip(alone, single, strict=True):
            one.add(token)
        redrawn += sum(token != 7 for token in wanted)
    assert redrawn > 100


def test_the_nucleus_is_a_share_of_the_whole_distribution() -> None:
    """Of what top_k leaves it would be another: 0.8 of 0.3 is reached by the first of them."""
    weights = torch.full((VOCAB,), 0.7 / (VOCAB - 3))
    weights[:3] = torch.tensor([0.2, 0.06, 0.04])
    rows = weights.log()[None].expand(400, -1)
    aware = [
        Chooser(SamplingParams(temperature=1, top_k=3, top_p=0.8, seed=s, repetition_aware=Repetition()))
        for s in range(400)
    ]
    tokens = [choice.token for choice in sample(aware, rows)]
    shares = [tokens.count(id) / 400 for id in range(3)]
    assert sum(shares) == 1 and abs(shares[0] - 2 / 3) < 0.08 and abs(shares[2] - 0.04 / 0.3) < 0.06


def test_of_equal_tokens_the_first_are_kept() -> None:
    rows = torch.zeros(200, VOCAB)
    choosers = [
        Chooser(SamplingParams(temperature=1, top_k=4, seed=s, repetition_aware=Repetition())) for s in range(200)
    ]
    assert {choice.token for choice in sample(choosers, rows)} == {0, 1, 2, 3}


def test_greedy_choices_are_left_alone() -> None:
    chooser = Chooser(SamplingParams(repetition_aware=Repetition()))
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 5
    for _ in range(12):
        assert sample([chooser], logits)[0].token == 9
        chooser.add(9)
    assert chooser.ahead and not Chooser(SamplingParams(temperature=1, repetition_aware=Repetition())).ahead


@pytest.mark.parametrize(
    "given", [(0, 0.1), (2000, 0.1), (True, 0.1), (10, 0.0), (10, 1.5), (10, "1"), (10, float("nan"))]
)
def test_what_cannot_be_is_refused(given: tuple[int, float]) -> None:
    with pytest.raises(UsageError, match="of repetitions must be"):
        Repetition(*given)
    with pytest.raises(UsageError, match="repetition_aware must be a Repetition"):
        SamplingParams(repetition_aware=(10, 0.1))  # type: ignore[arg-type]
