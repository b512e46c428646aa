"""Sampling written once more, for one row, with numpy: every step over the whole vocabulary, every order by sorting."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch

from isobit.engine.params import SamplingParams, TokenLogprob


def plain_weights(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities relative to the most probable token's, 0 for those that are left out."""
    ordered = np.sort(logits)[::-1]
    kept = logits >= ordered[min(params.top_k or len(logits), len(logits)) - 1]
    with np.errstate(over="ignore", under="ignore"):
        found = np.where(kept, np.exp((logits - ordered[0]) / params.temperature), 0.0)
    if params.top_p < 1:
        order = np.argsort(-np.where(kept, found, -1.0), kind="stable")
        before = np.concatenate([[0.0], np.cumsum(found[order])[:-1]])
        found[order[1:][before[1:] >= params.top_p * found[kept].sum()]] = 0.0
    found[found < params.min_p] = 0.0
    return found


def plain_draw(weights: np.ndarray, uniform: float) -> int:
    """The index whose share of [0, 1), in the order of indices, holds ``uniform``."""
    cumulative = np.cumsum(weights)
    index = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    return index if index < len(weights) and weights[index] else int(np.flatnonzero(weights)[-1])


class PlainSampler:
    """Chooses the tokens of one answer."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int] = ()) -> None:
        self.params, self._seen, self._output = params, set(prompt), Counter[int]()
        self._random = random.Random(params.seed)

    def sample(self, logits: torch.Tensor) -> int:
        numbers, params = logits.double().numpy().copy(), self.params
        for id, value in params.logit_bias:
            numbers[id] += value
        for id in self._seen:
            factor = params.repetition_penalty
            numbers[id] = numbers[id] / factor if numbers[id] > 0 else numbers[id] * factor
        for id, count in self._output.items():
            numbers[id] -= params.presence_penalty + params.frequency_penalty * count
        if params.temperature == 0:
            chosen = int(numbers.argmax())
        else:
            chosen = plain_draw(plain_weights(numbers, params), self._random.random())
        self._seen.add(chosen)
        self._output[chosen] += 1
        return chosen


def plain_logprob(logits: torch.Tensor, id: int, top: int) -> TokenLogprob:
    """Log-probabilities of a token and of the most probable ones."""
    numbers = logits.double().numpy()
    numbers = numbers - numbers.max()
    numbers -= math.log(math.fsum(np.exp(numbers)))
    best = np.argsort(-numbers, kind="stable")[:top].tolist()
    listed = tuple((one, float(numbers[one])) for one in best)
    return TokenLogprob(id, float(numbers[id]), listed, id == int(np.argmax(numbers)))
