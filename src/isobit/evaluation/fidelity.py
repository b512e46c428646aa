"""What a quantized model lost: its next-token distributions against those of its source, on the same windows.

Both models read the same tokens. For every scored token, with p the source's distribution and q the other's:

* KL divergence ``sum_v p(v) * (log p(v) - log q(v))`` in nats, float64 (Kullback and Leibler 1951): 0 where they agree.
* top-1 agreement: whether the most probable token is the same.
* the negative log-likelihood of the token that follows in the text, under each model.

Only what one step of the engine reads is held at a time. A model that equals its source gives a KL of exactly 0.
Intervals are those of :mod:`isobit.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from isobit.evaluation.likelihood import (
    Likelihood,
    log_probabilities,
    negative_log_likelihood,
    require_finite,
    summarize,
)
from isobit.evaluation.reading import Kept, Read, read
from isobit.evaluation.statistics import POSITIVE, Estimate, Floats, WindowBootstrap, exp
from isobit.evaluation.windows import Window, window_of_tokens

Progress = Callable[[int, int], None]
"""Called with (windows done, windows in all)."""


@dataclass(frozen=True)
class Fidelity:
    """A model against its source. KL is in nats per token, agreement a share between 0 and 1.

    Attributes:
        tokens: scored tokens.
        windows: windows they came from; the intervals resample these, and there are none below ``LEAST_WINDOWS``.
        kl_mean: mean KL(source || model).
        kl_p99: 99th percentile of the KL over tokens: how far off the model is when it is far off.
        top1: share of tokens where both models find the same token most probable.
        perplexity: of this model.
        source_perplexity: of the source.
        perplexity_ratio: this model's perplexity divided by the source's, the interval from paired resamples.
        bits_per_byte: of this model.
    """

    tokens: int
    windows: int
    kl_mean: Estimate
    kl_p99: Estimate
    top1: Estimate
    perplexity: Estimate
    source_perplexity: Estimate
    perplexity_ratio: Estimate
    bits_per_byte: Estimate


class _PerToken:
    """What one model did at each token."""

    def __init__(self, name: str, tokens: int) -> None:
        self.name = name
        self.nll, self.kl, self.same = (np.empty(tokens) for _ in range(3))


def compare(
    source: Any,
    other: Any,
    chosen: Sequence[Window],
    *,
    bytes_per_token: float,
    seed: int = 0,
    name: str = "model",
    progress: Progress | None = None,
) -> Fidelity:
    """One model against its source; see :func:`compare_all`."""
    _, found = compare_all(source, {name: other}, chosen, bytes_per_token=bytes_per_token, seed=seed, progress=progress)
    return found[name]


def compare_all(
    source: Any,
    others: Mapping[str, Any],
    chosen: Sequence[Window],
    *,
    bytes_per_token: float,
    seed: int = 0,
    name: str = "source",
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Likelihood, dict[str, Fidelity]]:
    """Several models against one source, which reads each window once for all of them.

    Args:
        source: the model they were made from, a :class:`isobit.models.decoder.Decoder` as the others are.
        others: name -> model; all have the same vocabulary.
        chosen: the windows to read.
        bytes_per_token: UTF-8 bytes of the text per token of it.
        seed: of the bootstrap.
        name: what to call the source in an error.
        progress: called when windows are done.
        kept: where the source's logits are found again, and kept.

    Returns:
        The source's own likelihood, and a fidelity for each of the others.

    Raises:
        ModelError: a model's outputs are NaN or infinite.
    """
    window_of, total = window_of_tokens(chosen), sum(window.num_scored for window in chosen)
    nll_source, collected = np.empty(total), {key: _PerToken(key, total) for key in others}
    left = np.bincount(window_of, minlength=len(chosen))  # tokens of each window that are still to be scored
    for part in read([source, *others.values()], chosen, kept):
        log_p = log_probabilities(part.logits[0])
        nll = negative_log_likelihood(log_p, part.tokens)
        require_finite(nll, "the likelihood", name)
        nll_source[part.places] = nll.cpu().numpy()
        for rows, logits in zip(collected.values(), part.logits[1:], strict=True):
            _add(rows, log_p, log_probabilities(logits), part)
        done = int((left == 0).sum())
        np.subtract.at(left, window_of[part.places], 1)
        if progress is not None and int((left == 0).sum()) > done:
            progress(int((left == 0).sum()), len(chosen))
    bootstrap = WindowBootstrap(window_of, seed=seed)
    mean = bootstrap.mean(nll_source, POSITIVE)
    own = summarize(mean, tokens=nll_source.size, num_windows=len(chosen), bytes_per_token=bytes_per_token, name=name)
    return own, {key: _fidelity(bootstrap, own, nll_source, rows, bytes_per_token) for key, rows in collected.items()}


def _add(rows: _PerToken, log_p: Tensor, log_q: Tensor, part: Read) -> None:
    """Compare some tokens: ``log_p`` is the source's and ``log_q`` the other's, float64 [rows, V]."""
    nll = negative_log_likelihood(log_q, part.tokens)
    # Rounding can leave a sum of nearly equal terms a hair below the 0 that is the least KL divergence.
    kl = divergence(log_p, log_q)
    require_finite(nll, "the likelihood", rows.name)
    require_finite(kl, "the KL divergence", rows.name)
    rows.nll[part.places] = nll.cpu().numpy()
    rows.kl[part.places] = kl.cpu().numpy()
    rows.same[part.places] = (log_p.argmax(dim=1) == log_q.argmax(dim=1)).double().cpu().numpy()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row in nats, float64 [rows], from log-probabilities [rows, V]; never below 0."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp_min(0.0)


def _fidelity(
    bootstrap: WindowBootstrap, own: Likelihood, source_nll: Floats, rows: _PerToken, bytes_per_token: float
) -> Fidelity:
    nll, kl = rows.nll, rows.kl
    theirs = summarize(
        bootstrap.mean(nll, POSITIVE),
        tokens=own.tokens,
        num_windows=own.windows,
        bytes_per_token=bytes_per_token,
        name=rows.name,
    )
    # Two models without any difference are the same on every text: an agreement of 1, and no doubt about it.
    agreement = bootstrap.share(rows.same) if kl.any() else bootstrap.mean(rows.same)
    return Fidelity(
        tokens=own.tokens,
        windows=own.windows,
        kl_mean=bootstrap.mean(kl, POSITIVE),
        kl_p99=bootstrap.quantile(kl, 0.99),
        top1=agreement,
        perplexity=theirs.perplexity,
        source_perplexity=own.perplexity,
        perplexity_ratio=bootstrap.mean(nll - source_nll).map(exp),
        bits_per_byte=theirs.bits_per_byte,
    )
