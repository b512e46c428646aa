"""Sampling against independent numpy versions of each step, against transformers, and by frequencies."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from isobit.engine.sampling import Sampler, SamplingParams, StopWatch, draw, probabilities, token_logprob
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


def test_draw_never_takes_an_impossible_token() -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    assert [draw(probs, u) for u in (0.0, 0.2499, 0.25, 0.9, math.nextafter(1.0, 0.0), 1.0)] == [1, 1, 3, 3, 3, 3]


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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(IsobitError, match="1 of 3 are NaN or infinite"):
        Sampler(SamplingParams(temperature=1.0)).sample(torch.tensor([0.0, bad, 1.0]))


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
