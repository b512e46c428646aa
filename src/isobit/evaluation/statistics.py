"""Estimates with 95 % confidence intervals, by a bootstrap over windows of text. Pure numpy.

The tokens of one window of text are correlated: a hard passage is hard for many tokens in a row. An interval that
treats tokens as independent draws is too narrow. Here whole windows are drawn with replacement (a block bootstrap,
Efron and Tibshirani 1993, chapter 8.6), and the interval spans the 2.5th to the 97.5th percentile of the statistic
over the resamples. The draw depends on the seed and on the number of windows alone, so a rerun gives the same digits,
and two models measured on the same windows are resampled alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
CONFIDENCE = 0.95

# A quantile of one resample is read off a running sum over all tokens; this bounds the memory of a batch of resamples.
_QUANTILE_CELLS = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A measured value and its 95 % confidence interval; no interval when there was only one window to resample."""

    value: float
    low: float | None
    high: float | None

    def map(self, function: Callable[[float], float]) -> Estimate:
        """The same estimate on another scale; ``function`` must increase."""
        return Estimate(
            function(self.value),
            None if self.low is None else function(self.low),
            None if self.high is None else function(self.high),
        )


class WindowBootstrap:
    """Resamples of whole windows, drawn once and shared by every statistic of one evaluation.

    Args:
        window_of_token: the window that each scored token belongs to, shape [tokens], counted from 0 without gaps.
        seed: seed of the draw.
        resamples: how many times to resample.
    """

    def __init__(self, window_of_token: Ints, *, seed: int = 0, resamples: int = RESAMPLES) -> None:
        if window_of_token.size == 0:
            raise ValueError("there is no scored token to resample")
        self.window_of_token = window_of_token
        self.num_windows = int(window_of_token.max()) + 1
        self._tokens_per_window = np.bincount(window_of_token, minlength=self.num_windows).astype(np.float64)
        rng = np.random.default_rng(seed)
        chances = np.full(self.num_windows, 1.0 / self.num_windows)
        # How often each window was drawn: [resamples, windows].
        self._draws = rng.multinomial(self.num_windows, chances, size=resamples).astype(np.float64)

    def mean(self, per_token: Floats) -> Estimate:
        """The mean over tokens, with its interval."""
        return self._with_interval(float(per_token.mean()), self._resampled_means(per_token))

    def quantile(self, per_token: Floats, q: float) -> Estimate:
        """The smallest value that at least a share ``q`` of the tokens does not exceed, with its interval."""
        order = np.argsort(per_token, kind="stable")
        values, windows = per_token[order], self.window_of_token[order]
        rows = max(1, _QUANTILE_CELLS // values.size)
        samples = []
        for begin in range(0, self._draws.shape[0], rows):
            running = np.cumsum(self._draws[begin : begin + rows][:, windows], axis=1)  # [rows, tokens]
            reached = running >= q * running[:, -1:]
            samples.append(values[np.argmax(reached, axis=1)])
        return self._with_interval(float(np.quantile(per_token, q, method="inverted_cdf")), np.concatenate(samples))

    def _resampled_means(self, per_token: Floats) -> Floats:
        sums = np.bincount(self.window_of_token, weights=per_token, minlength=self.num_windows)
        means: Floats = (self._draws @ sums) / (self._draws @ self._tokens_per_window)
        return means

    def _with_interval(self, value: float, samples: Floats) -> Estimate:
        if self.num_windows < 2:
            return Estimate(value, None, None)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(samples, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))
