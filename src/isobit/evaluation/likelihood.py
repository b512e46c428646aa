"""How well a model predicts a text: the negative log-likelihood of every token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobit.errors import ModelError
from isobit.evaluation.reading import read
from isobit.evaluation.statistics import LARGEST_LOG, POSITIVE, Estimate, Floats, WindowBootstrap, exp
from isobit.evaluation.windows import Window, window_of_tokens


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


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax in float64: [rows, V]."""
    return torch.log_softmax(logits.double(), dim=-1)


def negative_log_likelihood(log_p: Tensor, tokens: Tensor) -> Tensor:
    """``-log p(token)`` of each row ``[rows, V]``, float64 ``[rows]``, in nats."""
    return -log_p.gather(1, tokens.unsqueeze(1)).squeeze(1)


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


def token_logprobs(model: Any, chosen: Sequence[Window], name: str = "model") -> Floats:
    """Log-probability of every scored token, float64 [scored tokens], in nats.

    Args:
        model: a :class:`isobit.models.decoder.Decoder`.
        chosen: the windows to read.
        name: what to call the model in an error.

    Raises:
        ModelError: one is NaN or infinite.
    """
    found = np.empty(sum(window.num_scored for window in chosen))
    for part in read([model], chosen):
        nll = negative_log_likelihood(log_probabilities(part.logits[0]), part.tokens).cpu()
        require_finite(nll, "the likelihood", name)
        found[part.places] = -nll.numpy()
    return found


def likelihood(
    model: Any, chosen: Sequence[Window], *, bytes_per_token: float, seed: int = 0, name: str = "model"
) -> Likelihood:
    """Perplexity and bits per byte of a model on windows of text.

    Args:
        model: a :class:`isobit.models.decoder.Decoder`.
        chosen: the windows.
        bytes_per_token: UTF-8 bytes of the text per token of it.
        seed: of the bootstrap.
        name: what to call the model in an error.
    """
    nll = -token_logprobs(model, chosen, name)
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
