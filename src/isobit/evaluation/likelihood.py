"""How well a model predicts a text: windows, the negative log-likelihood of every token, perplexity, bits per byte.

The stride rule. A text of n tokens is cut into windows of ``ctx`` tokens; window k begins at token k * stride. A window
scores the tokens that no window before it has seen, except its own first token, which has nothing before it.
With ``stride == ctx`` (the default, as GPTQ measures perplexity) windows do not overlap and the first token of each
is not scored. With ``stride < ctx`` each window after the first gives its last ``stride`` tokens at least
``ctx - stride`` tokens of context, and only the very first token of the text is not scored. Either way no token is
scored twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from isobit.errors import ModelError, UsageError
from isobit.evaluation.statistics import LARGEST_LOG, POSITIVE, Estimate, Floats, WindowBootstrap, exp
from isobit.models.batch import Batch

DEFAULT_CTX = 512
DEFAULT_TOKENS = 32_768

# What one forward pass may hold: logits of this many bytes, from at most this many tokens.
_LOGIT_BYTES = 256 * 2**20
_BATCH_TOKENS = 2048
# float64 log-probabilities are made for this many values at a time.
_CHUNK_VALUES = 4 * 2**20


class LanguageModel(Protocol):
    """What evaluation needs of a model; :class:`isobit.models.decoder.Decoder` has it."""

    place: Any

    def forward(self, batch: Batch) -> Tensor:
        """Logits float32 [R, V] of the tokens of a batch that it asks for."""
        ...


@dataclass(frozen=True)
class Window:
    """A run of tokens that the model reads at once.

    Attributes:
        ids: the tokens, at most ``ctx`` of them.
        first_scored: the tokens from this index on are scored; at least 1.
    """

    ids: tuple[int, ...]
    first_scored: int

    @property
    def num_scored(self) -> int:
        return len(self.ids) - self.first_scored


@dataclass(frozen=True)
class Likelihood:
    """How well a model predicts a text.

    Attributes:
        tokens: scored tokens.
        windows: windows they came from.
        perplexity: exp of the mean negative log-likelihood per token.
        bits_per_byte: mean negative log-likelihood in bits per byte of the text; comparable between tokenizers.
    """

    tokens: int
    windows: int
    perplexity: Estimate
    bits_per_byte: Estimate


def windows(ids: Sequence[int], ctx: int, stride: int | None = None) -> list[Window]:
    """Cut tokens into windows by the stride rule above.

    Args:
        ids: the tokens of the text.
        ctx: the longest window, in tokens.
        stride: how far apart windows begin, 1 to ``ctx``; ``ctx`` if None, which makes windows that do not overlap.

    Raises:
        UsageError: ``ctx`` or ``stride`` is out of range, or the text has fewer than two tokens.
    """
    stride = ctx if stride is None else stride
    if ctx < 2:
        raise UsageError(f"a context of {ctx} tokens scores nothing; use at least 2")
    if not 1 <= stride <= ctx:
        raise UsageError(f"stride {stride} is not between 1 and the context of {ctx} tokens")
    if len(ids) < 2:
        raise UsageError(
            f"the text has {len(ids)} tokens; at least 2 are needed to score one, and thousands for a result"
        )
    found = []
    seen = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + ctx, len(ids))
        first = max(seen - begin, 1)
        if end - begin > first:
            found.append(Window(tuple(ids[begin:end]), first))
        seen = end
        if end == len(ids):
            break
    return found


def spread(all_windows: Sequence[Window], tokens: int | None) -> list[Window]:
    """As many windows as ``tokens`` scored tokens need, evenly spaced over the text; all of them if None.

    Only full windows are chosen when some are left out, so that a short last window does not stand for a long one.
    """
    if tokens is None or sum(window.num_scored for window in all_windows) <= tokens:
        return list(all_windows)
    longest = max(len(window.ids) for window in all_windows)
    full = [window for window in all_windows if len(window.ids) == longest]
    wanted = min(len(full), max(1, round(tokens / max(window.num_scored for window in full))))
    return [full[(2 * i + 1) * len(full) // (2 * wanted)] for i in range(wanted)]


def batches(chosen: Sequence[Window], vocab: int, limit: int = _BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices of windows that go through the model together: neighbours, bounded in memory."""
    most = min(limit, _LOGIT_BYTES // (4 * vocab))  # tokens
    batch: list[int] = []
    tokens = 0
    for index, window in enumerate(chosen):
        if batch and tokens + len(window.ids) > most:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += len(window.ids)
    if batch:
        yield batch


def batch_logits(model: LanguageModel, batch: Sequence[Window]) -> Tensor:
    """Logits that predict the scored tokens of windows, window after window: float32 [tokens, V].

    They are where the model is: what is computed of whole vocabularies is computed there.
    """
    # The logits at position t predict token t + 1.
    wanted = [range(window.first_scored - 1, len(window.ids) - 1) for window in batch]
    with torch.inference_mode():
        ids = [window.ids for window in batch]
        return model.forward(Batch.of(ids, wanted=wanted, device=model.place.tensors))


def scored_ids(batch: Sequence[Window]) -> Tensor:
    """The scored tokens of a batch, in the order of :func:`batch_logits`: int64 [scored tokens]."""
    return torch.tensor([token for window in batch for token in window.ids[window.first_scored :]], dtype=torch.int64)


def row_chunks(num_rows: int, vocab: int) -> Iterator[slice]:
    """Slices of rows whose float64 log-probabilities stay small."""
    step = max(1, _CHUNK_VALUES // vocab)
    return (slice(begin, min(begin + step, num_rows)) for begin in range(0, num_rows, step))


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax in float64: [rows, V]."""
    return torch.log_softmax(logits.double(), dim=-1)


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log p(target)`` of each row, float64 [rows], in nats."""
    parts = [
        -log_probabilities(logits[rows]).gather(1, targets[rows].unsqueeze(1)).squeeze(1)
        for rows in row_chunks(logits.shape[0], logits.shape[1])
    ]
    return torch.cat(parts)


def window_of_tokens(chosen: Iterable[Window]) -> np.ndarray:
    """The window that each scored token belongs to, int64 [scored tokens]."""
    counts = [window.num_scored for window in chosen]
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def require_finite(values: Tensor, what: str, model: str) -> None:
    """Refuse a model whose outputs are not numbers, instead of averaging them.

    Raises:
        ModelError: a value is NaN or infinite.
    """
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ModelError(
            f"{model}: {what} is NaN or infinite for {bad} of {values.numel()} tokens; the model's weights or scales "
            "are damaged, or its activations overflow this scheme"
        )


def token_logprobs(model: LanguageModel, chosen: Sequence[Window], vocab: int, name: str = "model") -> Floats:
    """Log-probability of every scored token, float64 [scored tokens], in nats.

    Args:
        model: the model.
        chosen: the windows to read.
        vocab: the model's vocabulary, which bounds the batch.
        name: what to call the model in an error.
    """
    parts = []
    for indices in batches(chosen, vocab):
        batch = [chosen[i] for i in indices]
        logits = batch_logits(model, batch)
        nll = negative_log_likelihood(logits, scored_ids(batch).to(logits.device)).cpu()
        require_finite(nll, "the likelihood", name)
        parts.append(-nll.numpy())
    return np.concatenate(parts)


def likelihood(
    model: LanguageModel,
    chosen: Sequence[Window],
    vocab: int,
    *,
    bytes_per_token: float,
    seed: int = 0,
    name: str = "model",
) -> Likelihood:
    """Perplexity and bits per byte of a model on windows of text.

    Args:
        model: the model.
        chosen: the windows.
        vocab: the model's vocabulary.
        bytes_per_token: UTF-8 bytes of the text per token of it.
        seed: of the bootstrap.
        name: what to call the model in an error.
    """
    nll = -token_logprobs(model, chosen, vocab, name)
    mean = WindowBootstrap(window_of_tokens(chosen), seed=seed).mean(nll, POSITIVE)
    return summarize(mean, tokens=nll.size, num_windows=len(chosen), bytes_per_token=bytes_per_token, name=name)


def summarize(
    mean_nll: Estimate, *, tokens: int, num_windows: int, bytes_per_token: float, name: str = "model"
) -> Likelihood:
    """A likelihood from its mean in nats per token.

    Raises:
        ModelError: it is so low that its perplexity is beyond what a float64 holds.
    """
    if mean_nll.value > LARGEST_LOG:
        raise ModelError(
            f"{name}: the likelihood is too low for a perplexity: {mean_nll.value:.1f} nats per token; its weights or "
            "scales are damaged"
        )
    return Likelihood(
        tokens=tokens,
        windows=num_windows,
        perplexity=mean_nll.map(exp),
        bits_per_byte=mean_nll.map(lambda nats: nats / math.log(2) / bytes_per_token),
    )
