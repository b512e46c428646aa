"""Sampling against independent numpy versions of each step, against transformers, and by frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from plain_sampler import plain_draw, plain_weights
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from isobit.engine import distribution
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.sampler import Chooser, sample, truncated
from isobit.engine.stops import StopWatch
from isobit.errors import IsobitError, UsageError

GRID = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0, "top_k": 5},
    {"top_p": 0.5},
    {"top_p": 0.9, "temperature": 0.7},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.5},
    {"top_p": 1e-9},
]


def logits_of(seed: int, size: int = 50) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, size)).float()


class Sampler:
    """One answer, of the many that are chosen at once."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int] = ()) -> None:
        self._chooser = Chooser(params, prompt)

    def sample(self, logits: torch.Tensor) -> int:
        (choice,) = sample([self._chooser], logits[None])
        if choice.error is not None:
            raise choice.error
        self._chooser.add(choice.token)
        return choice.token


def units_of(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What a token is drawn from, over the whole vocabulary, in units."""
    units, places = truncated([params], logits.double()[None].clone())
    if places is None:
        return units[0]
    return torch.zeros(len(logits), dtype=torch.int64).scatter_(0, places[0], units[0])


def probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The same as probabilities."""
    units = units_of(logits, params).double()
    return units / units.sum()


def token_logprob(logits: torch.Tensor, id: int, top: int) -> TokenLogprob:
    """Log-probabilities where ``id`` is chosen, by the greatest bias there may be."""
    (choice,) = sample([Chooser(SamplingParams(logit_bias=((id, 100.0),), logprobs=top))], logits[None])
    assert choice.logprob is not None
    return choice.logprob


def numpy_distribution(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The documented steps, written once more, token by token."""
    scaled = logits.astype(np.float64) / params.temperature
    order = sorted(range(len(scaled)), key=lambda id: -scaled[id])
    keep = set(order[: params.top_k] if params.top_k else order)
    weight = {id: math.exp(scaled[id] - scaled[order[0]]) for id in keep}
    total = sum(weight.values())
    nucleus, reached = [], 0.0
    for id in order:
        if id in keep and (not nucleus or reached < params.top_p):
            nucleus.append(id)
            reached += weight[id] / total
    final = {id: weight[id] for id in nucleus if weight[id] >= params.min_p * weight[order[0]]}
    result = np.zeros(len(scaled))
    for id, value in final.items():
        result[id] = value / sum(final.values())
    return result


@pytest.mark.parametrize("options", GRID)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_distribution_is_that_of_the_steps_written_out(options: dict[str, Any], seed: int) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    logits = logits_of(seed)
    got = probabilities(logits.double(), params).numpy()
    np.testing.assert_allclose(got, numpy_distribution(logits.numpy(), params), atol=1e-12)


@pytest.mark.parametrize("options", GRID)
def test_the_distribution_is_that_of_transformers(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    logits = logits_of(5).double()
    scores = TemperatureLogitsWarper(float(params.temperature))(None, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    torch.testing.assert_close(probabilities(logits, params), scores.softmax(-1)[0], rtol=0, atol=1e-12)


def test_frequencies_follow_the_distribution() -> None:
    """Pearson's chi-square over 4000 draws; 30 degrees of freedom would be exceeded at 60 once in a thousand runs."""
    params = SamplingParams(temperature=1.3, top_k=12, top_p=0.95, seed=11)
    logits = 0.3 * logits_of(3)
    sampler = Sampler(params)
    expected = numpy_distribution(logits.numpy(), params)
    drawn = 4000
    counts = np.bincount([sampler.sample(logits) for _ in range(drawn)], minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    used = expected > 0
    assert used.sum() > 5
    assert ((counts[used] - drawn * expected[used]) ** 2 / (drawn * expected[used])).sum() < 60


def test_a_seed_decides_the_tokens_whatever_else_runs() -> None:
    params = SamplingParams(temperature=1.0, seed=42)
    logits = logits_of(4)
    alone = [token for sampler in [Sampler(params)] for token in (sampler.sample(logits) for _ in range(50))]
    one, other = Sampler(params), Sampler(replace(params, seed=43))
    mixed, others = [], []
    for _ in range(50):
        others.append(other.sample(logits))
        torch.rand(3)
        mixed.append(one.sample(logits))
    assert mixed == alone
    assert others != alone
    fresh = [[Sampler(replace(params, seed=None)).sample(logits) for _ in range(30)] for _ in range(2)]
    assert fresh[0] != fresh[1]


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(SamplingParams()).sample(torch.tensor([0.0, 3.0, 3.0, 1.0])) == 1


def test_repetition_penalty_is_that_of_transformers() -> None:
    params = SamplingParams(repetition_penalty=1.7)
    logits = logits_of(6)
    prompt = [3, 9, 9, 20]
    sampler = Sampler(params, prompt)
    so_far = list(prompt)
    for _ in range(20):
        scores = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([so_far]), logits[None].double())
        assert sampler.sample(logits) == int(scores.argmax())
        so_far.append(int(scores.argmax()))


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    sampler = Sampler(SamplingParams(frequency_penalty=0.4), [0, 0, 0, 0])
    # Token 0 has 2 - 0.4 n against 1 for token 1: equal after 2.5 tokens; then they take turns down to token 2.
    assert [sampler.sample(logits) for _ in range(10)] == [0, 0, 0, 1, 0, 1, 0, 1, 0, 2]
    sampler = Sampler(SamplingParams(presence_penalty=1.5), [0])
    assert [sampler.sample(logits) for _ in range(4)] == [0, 1, 0, 0]


ADVERSARIAL = {
    "random": lambda random: random.normal(0, 3, 3000),
    "flat": lambda random: random.normal(0, 0.01, 3000),
    "peaked": lambda random: random.normal(0, 9, 3000),
    "equal": lambda random: np.full(3000, 1.5),
    "few values": lambda random: random.integers(0, 4, 3000).astype(float),
    "two equal peaks": lambda random: np.where(np.arange(3000) % 1500 == 7, 30.0, random.normal(0, 1, 3000)),
    "mostly -inf": lambda random: np.where(random.random(3000) < 0.99, -np.inf, random.normal(0, 2, 3000)),
    "one finite": lambda random: np.where(np.arange(3000) == 1234, 0.0, -np.inf),
    "huge": lambda random: random.normal(0, 1e30, 3000),
    "rising": lambda random: np.linspace(-20, 20, 3000),
    "one token": lambda random: np.array([3.0]),
    "five tokens": lambda random: random.normal(0, 1, 5),
}
CHOICES = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2999},
    {"top_p": 0.9},
    {"top_p": 0.55},  # at 0.5, tokens of less than a unit decide whether one of two equal peaks is half
    {"top_p": 1e-9},
    {"top_p": 1 - 1e-15},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1e-300},
    {"temperature": 50.0, "top_p": 0.3},
]


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_what_is_left_out_changes_no_token(kind: str, options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 0.7, **options})
    for seed in range(4):
        random = np.random.default_rng(seed)
        logits = ADVERSARIAL[kind](random)
        with np.errstate(over="ignore"):
            plain = plain_weights(logits, params)
        units = units_of(torch.from_numpy(logits), params)
        wanted = distribution.fixed(torch.from_numpy(plain), distribution.fixed_bits(len(logits)))
        assert bool(((units - wanted).abs() <= 1 + wanted * 2.0**-51).all())  # the exponential's last bit
        for uniform in random.random(20):
            drawn = distribution.draw(units[None], torch.tensor([uniform], dtype=torch.float64))
            assert int(drawn) == plain_draw(plain, uniform)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_largest_are_those_of_a_stable_sort(kind: str) -> None:
    values = ADVERSARIAL[kind](np.random.default_rng(9))
    order = np.argsort(-values, kind="stable")
    for count in (0, 1, 2, 5, 11, 47, 100):
        (choice,) = sample([Chooser(SamplingParams(logprobs=count))], torch.from_numpy(values)[None])
        assert choice.logprob is not None
        assert [id for id, _ in choice.logprob.top] == order[:count].tolist()
    for count in (1, 2, 47, len(values)):
        if count <= len(values):
            found, places = distribution.largest(torch.from_numpy(values)[None], torch.tensor([count]))
            kept = np.flatnonzero(values >= values[order[count - 1]])
            assert places[0].tolist() == kept.tolist() and found[0].tolist() == values[kept].tolist()


def nucleus(weights: np.ndarray, share: float) -> list[int]:
    rows = torch.from_numpy(weights)[None]
    bits = distribution.fixed_bits(len(weights))
    shares = torch.tensor([share], dtype=torch.float64)
    outside = distribution.outside_nucleus(rows, distribution.fixed(rows, bits), shares, bits)
    found: list[int] = (~outside[0]).nonzero()[:, 0].tolist()
    return found


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 6.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999, 1 - 1e-12])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_stable_sort(spread: float, share: float) -> None:
    found = np.exp(np.random.default_rng(3).normal(0, spread, 50_000))
    found[::7] = found[0]
    found /= found.max()
    order = np.argsort(-found, kind="stable")
    scale = 2.0 ** distribution.fixed_bits(50_000)
    units = [round(float(weight) * scale) for weight in found[order]]
    wanted, count, reached = math.ceil(share * float(sum(units))), 0, 0
    while reached < wanted:
        reached += units[count]
        count += 1
    assert nucleus(found, share) == sorted(order[:count].tolist())


def test_of_equal_tokens_the_first_make_the_nucleus() -> None:
    assert nucleus(np.ones(100), 0.5) == list(range(50))
    assert nucleus(np.array([0.5, 1.0, 0.5, 0.5]), 0.6) == [0, 1]
    assert nucleus(np.array([1.0, 0.0, 0.0]), 0.999) == [0]


def test_logprobs_are_the_models_own() -> None:
    logits = logits_of(8)
    reference = logits.double().numpy()
    reference = reference - reference.max() - np.log(np.exp(reference - reference.max()).sum())
    entry = token_logprob(logits, 7, 3)
    assert entry.logprob == pytest.approx(reference[7], abs=1e-12)
    best = np.argsort(-reference)[:3]
    assert [id for id, _ in entry.top] == best.tolist()
    assert [value for _, value in entry.top] == pytest.approx(reference[best].tolist(), abs=1e-12)
    greedy = token_logprob(logits, int(best[0]), 1)
    assert greedy.logprob == greedy.top[0][1]
    assert token_logprob(logits, 7, 0).top == ()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.1}], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float, options: dict[str, Any]) -> None:
    with pytest.raises(IsobitError, match="1 of 3 are NaN or infinite"):
        Sampler(SamplingParams(**options)).sample(torch.tensor([0.0, bad, 1.0]))
    with pytest.raises(IsobitError, match="0 of 2 are NaN or infinite"):
        Sampler(SamplingParams(**options)).sample(torch.full((2,), -math.inf))


def test_the_logits_of_the_model_stay_as_they_are() -> None:
    logits = logits_of(2).double()
    before = logits.clone()
    options = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "temperature": 0.7, "top_p": 0.9, "seed": 1}
    sampler = Sampler(SamplingParams(**options), [1, 2, 3])  # type: ignore[arg-type]
    for _ in range(3):
        sampler.sample(logits)
        token_logprob(logits, 5, 3)
    assert torch.equal(logits, before)


def test_bfloat16_logits_are_read() -> None:
    assert Sampler(SamplingParams()).sample(torch.tensor([0.0, 2.0, 1.0], dtype=torch.bfloat16)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", math.inf),
        ("seed", 1.0),
        ("stop", ("",)),
        ("stop", (1,)),
        ("stop", ("x",) * 65),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("logprobs", -1),
        ("logprobs", 101),
        ("ignore_eos", 1),
    ],
)
def test_values_that_cannot_be_used_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{field} "):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_params_are_frozen_and_stop_may_be_one_text() -> None:
    params = SamplingParams(stop="END")  # type: ignore[arg-type]
    assert params.stop == ("END",)
    with pytest.raises(FrozenInstanceError):
        params.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected", "found"),
    [
        ("hello END world", ("END",), "hello ", "END"),
        ("aaab", ("aab",), "a", "aab"),
        ("no stop, but EN", ("END",), "no stop, but EN", None),
        ("EENEND.", ("END",), "EEN", "END"),
        ("abcde", ("bcde", "cd"), "ab", "cd"),
        ("abcde", ("cd", "bcd"), "a", "bcd"),
        ("", ("x",), "", None),
        ("plain", (), "plain", None),
    ],
)
def test_stop_strings_across_any_pieces(
    size: int, text: str, stop: tuple[str, ...], expected: str, found: str | None
) -> None:
    watch = StopWatch(stop)
    out = ""
    for begin in range(0, len(text), size):
        out += watch.push(text[begin : begin + size])
        assert expected.startswith(out)
    if watch.found is None:
        out += watch.finish()
    assert (out, watch.found) == (expected, found)
