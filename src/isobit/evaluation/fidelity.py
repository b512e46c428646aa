"""What a quantized model lost: its next-token distributions against those of its source, on the same windows.

Both models read the same tokens. For every scored token, with p the source's distribution and q the other's:

* KL divergence ``sum_v p(v) * (log p(v) - log q(v))`` in nats, float64 (Kullback and Leibler 1951): 0 where they agree.
* top-1 agreement: whether the most probable token is the same.
* the negative log-likelihood of the token that follows in the text, under each model.

Only one batch of windows is held at a time. A model that equals its source gives a KL of exactly 0. Intervals are
those of :mod:`isobit.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from isobit.evaluation.likelihood import (
    LanguageModel,
    Likelihood,
    Window,
    batch_logits,
    batches,
    log_probabilities,
    require_finite,
    row_chunks,
    scored_ids,
    summarize,
    window_of_tokens,
)
from isobit.evaluation.statistics import POSITIVE, Estimate, Floats, WindowBootstrap, exp

Progress = Callable[[int, int], None]
"""Called with (windows done, windows in all)."""


class Kept(Protocol):
    """Logits of a source that were computed before; :class:`isobit.evaluation.kept.KeptLogits` has them."""

    def get(self, batch: Sequence[Window]) -> Tensor | None: ...

    def put(self, batch: Sequence[Window], logits: Tensor) -> None: ...


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


@dataclass
class _PerToken:
    """What one model did at each token, collected batch by batch."""

    name: str
    nll: list[Floats] = field(default_factory=list)
    kl: list[Floats] = field(default_factory=list)
    same: list[Floats] = field(default_factory=list)


def compare(
    source: LanguageModel,
    other: LanguageModel,
    chosen: Sequence[Window],
    vocab: int,
    *,
    bytes_per_token: float,
    seed: int = 0,
    name: str = "model",
    progress: Progress | None = None,
) -> Fidelity:
    """One model against its source; see :func:`compare_all`."""
    _, found = compare_all(
        source, {name: other}, chosen, vocab, bytes_per_token=bytes_per_token, seed=seed, progress=progress
    )
    return found[name]


def compare_all(
    source: LanguageModel,
    others: Mapping[str, LanguageModel],
    chosen: Sequence[Window],
    vocab: int,
    *,
    bytes_per_token: float,
    seed: int = 0,
    name: str = "source",
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Likelihood, dict[str, Fidelity]]:
    """Several models against one source, which reads each window once for all of them.

    Args:
        source: the model they were made from.
        others: name -> model.
        chosen: the windows to read.
        vocab: size of the vocabulary that all of them share.
        bytes_per_token: UTF-8 bytes of the text per token of it.
        seed: of the bootstrap.
        name: what to call the source in an error.
        progress: called after each batch.
        kept: where the source's logits are found again, and kept.

    Returns:
        The source's own likelihood, and a fidelity for each of the others.

    Raises:
        ModelError: a model's outputs are NaN or infinite.
    """
    source_nll: list[Floats] = []
    collected = {key: _PerToken(key) for key in others}
    for indices in batches(chosen, vocab):
        batch = [chosen[i] for i in indices]
        reference = _reference(source, batch, kept)
        targets = scored_ids(batch).to(reference.device)
        parts = [log_probabilities(reference[rows]) for rows in row_chunks(*reference.shape)]
        nll = _nll(parts, targets)
        require_finite(nll, "the likelihood", name)
        source_nll.append(nll.cpu().numpy())
        for key, other in others.items():
            _add(collected[key], parts, batch_logits(other, batch), targets, key)
        if progress is not None:
            progress(indices[-1] + 1, len(chosen))
    bootstrap = WindowBootstrap(window_of_tokens(chosen), seed=seed)
    nll_source = np.concatenate(source_nll)
    mean = bootstrap.mean(nll_source, POSITIVE)
    own = summarize(mean, tokens=nll_source.size, num_windows=len(chosen), bytes_per_token=bytes_per_token, name=name)
    return own, {key: _fidelity(bootstrap, own, nll_source, rows, bytes_per_token) for key, rows in collected.items()}


def _reference(source: LanguageModel, batch: Sequence[Window], kept: Kept | None) -> Tensor:
    """The source's logits of a batch, where the source is."""
    if kept is None:
        return batch_logits(source, batch)
    found = kept.get(batch)
    if found is None:
        found = batch_logits(source, batch)
        kept.put(batch, found)
    return found.to(source.place.tensors)


def _nll(log_p: Sequence[Tensor], targets: Tensor) -> Tensor:
    picked, begin = [], 0
    for part in log_p:
        rows = targets[begin : begin + part.shape[0]].unsqueeze(1)
        picked.append(-part.gather(1, rows).squeeze(1))
        begin += part.shape[0]
    return torch.cat(picked)


def _add(rows: _PerToken, log_p: Sequence[Tensor], logits: Tensor, targets: Tensor, name: str) -> None:
    """Compare one batch: ``log_p`` is the source's, float64 [rows, V] in chunks; ``logits`` are the other's."""
    log_q = [log_probabilities(logits[part]) for part in row_chunks(*logits.shape)]
    nll = _nll(log_q, targets)
    # Rounding can leave a sum of nearly equal terms a hair below the 0 that is the least KL divergence.
    kl = torch.cat([divergence(p, q) for p, q in zip(log_p, log_q, strict=True)])
    same = torch.cat([p.argmax(dim=1) == q.argmax(dim=1) for p, q in zip(log_p, log_q, strict=True)])
    require_finite(nll, "the likelihood", name)
    require_finite(kl, "the KL divergence", name)
    rows.nll.append(nll.cpu().numpy())
    rows.kl.append(kl.cpu().numpy())
    rows.same.append(same.double().cpu().numpy())


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row in nats, float64 [rows], from log-probabilities [rows, V]; never below 0."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).clamp_min(0.0)


def _fidelity(
    bootstrap: WindowBootstrap, own: Likelihood, source_nll: Floats, rows: _PerToken, bytes_per_token: float
) -> Fidelity:
    nll, kl = np.concatenate(rows.nll), np.concatenate(rows.kl)
    theirs = summarize(
        bootstrap.mean(nll, POSITIVE),
        tokens=own.tokens,
        num_windows=own.windows,
        bytes_per_token=bytes_per_token,
        name=rows.name,
    )
    # Two models without any difference are the same on every text: an agreement of 1, and no doubt about it.
    agreement = bootstrap.share(np.concatenate(rows.same)) if kl.any() else bootstrap.mean(np.concatenate(rows.same))
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
