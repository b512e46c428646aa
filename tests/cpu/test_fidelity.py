"""KL, top-1 agreement and perplexity of one model against another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_model import TableModel

from isobit.errors import ModelError
from isobit.evaluation.fidelity import compare, compare_all, divergence
from isobit.evaluation.likelihood import likelihood
from isobit.evaluation.windows import windows

VOCAB = 23


class NoisyModel(TableModel):
    """A random table, or a given one, with some noise on it."""

    def __init__(self, seed: int, noise_on: torch.Tensor | None = None, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(VOCAB, VOCAB, generator=generator) if noise_on is None else noise_on
        super().__init__(table + noise * torch.randn(VOCAB, VOCAB, generator=generator) if noise else table)


IDS = torch.randint(VOCAB, (600,), generator=torch.Generator().manual_seed(5)).tolist()
WINDOWS = windows(IDS, 30)


def expected(source: NoisyModel, other: NoisyModel) -> tuple[np.ndarray, np.ndarray]:
    """KL and agreement at each scored token, by numpy in float64 from the definition."""
    p_logits, q_logits = source.table.double().numpy(), other.table.double().numpy()
    kls, same = [], []
    for position in range(len(IDS)):
        if position % 30 == 0:
            continue
        p, q = (np.exp(row - row.max()) for row in (p_logits[IDS[position - 1]], q_logits[IDS[position - 1]]))
        p, q = p / p.sum(), q / q.sum()
        kls.append(float(np.sum(p * np.log(p / q))))
        same.append(float(p.argmax() == q.argmax()))
    return np.array(kls), np.array(same)


def test_kl_and_agreement_follow_their_definitions() -> None:
    source = NoisyModel(0)
    other = NoisyModel(1, source.table, 0.7)
    kl, same = expected(source, other)
    found = compare(source, other, WINDOWS, bytes_per_token=3.0)
    assert found.tokens == kl.size == 580
    assert found.windows == 20
    assert found.kl_mean.value == pytest.approx(kl.mean(), rel=1e-10)
    assert found.kl_p99.value == pytest.approx(np.quantile(kl, 0.99, method="inverted_cdf"), rel=1e-10)
    assert found.top1.value == pytest.approx(same.mean())
    assert 0.2 < found.top1.value < 1
    for estimate in (found.kl_mean, found.kl_p99, found.top1, found.perplexity, found.perplexity_ratio):
        assert estimate.low <= estimate.value <= estimate.high
    assert found.kl_mean.low < found.kl_mean.high


def test_perplexities_are_those_of_the_models_alone() -> None:
    source, other = NoisyModel(0), NoisyModel(1)
    found = compare(source, other, WINDOWS, bytes_per_token=3.0)
    assert found.source_perplexity == likelihood(source, WINDOWS, bytes_per_token=3.0).perplexity
    alone = likelihood(other, WINDOWS, bytes_per_token=3.0)
    assert (found.perplexity, found.bits_per_byte) == (alone.perplexity, alone.bits_per_byte)
    assert found.perplexity_ratio.value == pytest.approx(found.perplexity.value / found.source_perplexity.value)


def test_identical_models_lose_nothing_at_all() -> None:
    source = NoisyModel(0)
    found = compare(source, NoisyModel(0, source.table), WINDOWS, bytes_per_token=3.0)
    assert (found.kl_mean.value, found.kl_mean.high, found.kl_p99.value) == (0.0, 0.0, 0.0)
    assert (found.top1.value, found.top1.low) == (1.0, 1.0)
    assert found.perplexity == found.source_perplexity
    assert found.perplexity_ratio.value == 1.0


def test_a_shift_of_all_logits_is_no_loss() -> None:
    source = NoisyModel(0)
    found = compare(source, NoisyModel(0, source.table + 4.0), WINDOWS, bytes_per_token=3.0)
    assert 0 <= found.kl_mean.value < 1e-12
    assert found.top1.value == 1.0


def test_kl_is_directed_from_the_source() -> None:
    p, q = torch.tensor([[0.9, 0.1]]).double().log(), torch.tensor([[0.5, 0.5]]).double().log()
    assert divergence(p, q).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert divergence(q, p).item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5))


def test_several_models_share_one_reading_of_the_source() -> None:
    source = NoisyModel(0)
    others = {f"noise {n}": NoisyModel(3, source.table, n) for n in (0.01, 0.1, 1.0)}
    seen: list[tuple[int, int]] = []
    own, found = compare_all(source, others, WINDOWS, bytes_per_token=3.0, progress=lambda *at: seen.append(at))
    assert sum(source.calls) == len(IDS)
    assert seen == sorted(set(seen)) and seen[-1] == (20, 20)
    assert own.tokens == 580
    for name, other in others.items():
        assert found[name] == compare(source, other, WINDOWS, bytes_per_token=3.0)
    losses = [found[name].kl_mean.value for name in others]
    assert losses == sorted(losses)
    assert found["noise 0.01"].kl_mean.high < found["noise 0.1"].kl_mean.low


def test_the_seed_moves_the_interval_and_not_the_value() -> None:
    source = NoisyModel(0)
    other = NoisyModel(1, source.table, 0.5)
    one, again, two = (compare(source, other, WINDOWS, bytes_per_token=3.0, seed=s) for s in (1, 1, 2))
    assert one == again
    assert one.kl_mean.value == two.kl_mean.value
    assert one.kl_mean.low != two.kl_mean.low


def test_a_model_that_gives_nan_is_refused_by_name() -> None:
    source = NoisyModel(0)
    broken = NoisyModel(0, source.table.clone())
    broken.table[4, 7] = math.nan
    with pytest.raises(ModelError, match="int9: the likelihood is NaN"):
        compare(source, broken, WINDOWS, bytes_per_token=3.0, name="int9")
