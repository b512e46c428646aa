"""What is chosen without waiting for the device is what the sampler chooses, to the last bit."""

from __future__ import annotations

import random

import pytest
import torch

from isobit.engine import device_sampler
from isobit.engine.params import SamplingParams
from isobit.engine.sampler import Chooser, sample

KINDS = [
    SamplingParams(),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.5, top_p=0.999),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=2.0, top_k=40, top_p=0.5, min_p=0.05),
    SamplingParams(temperature=0.3, min_p=0.2, logit_bias=((3, 5.0), (7, -100.0))),
    SamplingParams(logit_bias=((2, 8.0), (0, 1.5))),
    SamplingParams(temperature=1.0, top_p=1e-9),
    SamplingParams(temperature=1.0, top_k=10**6),
]


def logits(rows: int, vocabulary: int, seed: int, *, ties: bool) -> torch.Tensor:
    made = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return (2 * made).round() / 2 if ties else made


def choosers(count: int, seed: int, **more: int) -> list[Chooser]:
    numbers = random.Random(seed)
    made = []
    for place in range(count):
        kind = numbers.choice(KINDS)
        made.append(Chooser(SamplingParams(**{**vars(kind), **more, "seed": place})))
    return made


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 8), (3, 300), (24, 2500), (5, 40)])
def test_tokens_are_those_of_the_sampler(rows: int, vocabulary: int, ties: bool) -> None:
    for seed in range(12):
        numbers = logits(rows + 2, vocabulary, seed, ties=ties)
        those = random.Random(seed).sample(range(rows + 2), rows)
        one, other = choosers(rows, seed), choosers(rows, seed)
        for unread in (0, 1, 2):
            wanted = [choice.token for choice in sample(one, numbers[those], [0] * rows)]
            assert device_sampler.choose(numbers, those, other, [unread] * rows).tolist() == wanted
            for chooser, token in zip(one, wanted, strict=True):  # the other one is never told
                chooser.add(token)


def test_pieces_of_a_large_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = logits(9, 50, 1, ties=False)
    whole = device_sampler.choose(numbers, range(9), choosers(9, 3), [0] * 9).tolist()
    monkeypatch.setattr(device_sampler, "_AT_ONCE", 100)
    assert device_sampler.choose(numbers, range(9), choosers(9, 3), [0] * 9).tolist() == whole


@pytest.mark.parametrize("ties", [False, True])
def test_logprobs_are_those_of_the_sampler(ties: bool) -> None:
    for seed in range(10):
        numbers = logits(8, 120, seed, ties=ties)
        numbers[0, :4] = torch.tensor([0.0, -0.0, 0.0, -1e-30])
        numbers[1, 5] = -torch.inf
        counts = [0, 1, 5, 120, 3, 2, 0, 7]
        given = [
            Chooser(SamplingParams(temperature=1.0, seed=row, logprobs=min(n, 20))) for row, n in enumerate(counts)
        ]
        wanted = sample(given, numbers)
        tokens = torch.tensor([choice.token for choice in wanted])
        rows = [5, 0, 3, 1, 7]
        found = device_sampler.logprobs(numbers, rows, tokens, [given[row].params.logprobs or 0 for row in rows])
        assert found.read([wanted[row].token for row in rows]) == [wanted[row].logprob for row in rows]


def test_a_row_of_nothing_chooses_something_and_takes_no_other_with_it() -> None:
    numbers = logits(3, 64, 2, ties=False)
    bad = numbers.clone()
    bad[1] = torch.nan
    for params in KINDS[1:]:
        given = [[Chooser(SamplingParams(**{**vars(params), "seed": row})) for row in range(3)] for _ in range(2)]
        fine = device_sampler.choose(numbers, range(3), given[0], [0] * 3).tolist()
        found = device_sampler.choose(bad, range(3), given[1], [0] * 3).tolist()
        assert [found[0], found[2]] == [fine[0], fine[2]] and 0 <= found[1] < 64


def test_all_of_a_distribution_stays_whatever_is_beside_it() -> None:
    """top_p = 1 keeps the lightest token also where a neighbour asks for less."""
    numbers = torch.zeros(2, 9)
    numbers[:, 8] = -26.0  # some units of 2**-58
    last = [Chooser(SamplingParams(temperature=1.0, top_p=p)) for p in (1.0, 0.5)]
    for chooser in last:
        chooser._uniforms.append(1 - 2**-53)
    assert device_sampler.choose(numbers, [0], last[:1], [0]).tolist() == [sample(last[:1], numbers[:1])[0].token]
    assert device_sampler.choose(numbers, [0, 1], last, [0, 0])[0] == sample(last[:1], numbers[:1])[0].token
    assert sample(last, numbers)[0].token == sample(last[:1], numbers[:1])[0].token
