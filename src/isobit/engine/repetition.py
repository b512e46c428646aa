"""Repetition-aware sampling, as models of speech are asked: a token that came too often lately is drawn again.

A token is drawn from the smallest set of the most probable ones whose share of the *whole* distribution reaches top_p,
of at most top_k of them. If it is among the last ``window`` tokens of the answer ``share * window`` times or more,
another one is drawn, from the whole distribution. (Without it top_p is a share of what top_k leaves.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.engine import distribution
from isobit.engine.params import SamplingParams


def drawn(
    params: Sequence[SamplingParams],
    logits: Tensor,
    uniforms: Sequence[tuple[float, float]],
    recent: Sequence[Sequence[int]],
) -> list[int]:
    """A token for each row.

    Args:
        params: with ``repetition_aware``.
        logits: float64 ``[R, V]``, one or more finite in each row, none NaN or +inf; they are changed.
        uniforms: two random numbers in ``[0, 1)`` for each row: of the draw, and of the one that follows a repetition.
        recent: the last tokens of each answer, at least as many as its window has, or all.
    """
    vocabulary, device = logits.shape[1], logits.device
    bits = distribution.fixed_bits(vocabulary)
    logits -= logits.amax(1, keepdim=True)
    logits /= torch.tensor([each.temperature for each in params], dtype=torch.float64, device=device)[:, None]
    weights = logits.exp_()
    units = distribution.fixed(weights, bits)
    first, second = (torch.tensor([pair[at] for pair in uniforms], dtype=torch.float64, device=device) for at in (0, 1))
    chosen: list[int] = distribution.draw(_nucleus(params, weights, units, bits), first).tolist()
    again: list[int] = distribution.draw(units, second).tolist()
    return [
        other if _repeats(one, each, latest) else one
        for one, other, each, latest in zip(chosen, again, params, recent, strict=True)
    ]


def _nucleus(params: Sequence[SamplingParams], weights: Tensor, units: Tensor, bits: int) -> Tensor:
    """The units that are left of the most probable tokens, of equal ones the first; 0 for all others."""
    vocabulary, device = weights.shape[1], weights.device
    shares = torch.tensor([each.top_p for each in params], dtype=torch.float64, device=device)
    counts = torch.tensor([min(each.top_k or vocabulary, vocabulary) for each in params], device=device)[:, None]
    left = units.masked_fill(distribution.outside_nucleus(weights, units, shares, bits), 0)
    least = weights.topk(int(counts.max())).values.gather(1, counts - 1)
    larger, equal = weights > least, weights == least
    few = larger | (equal & (equal.cumsum(1) <= counts - larger.sum(1, keepdim=True)))
    return left.masked_fill(~few, 0)


def _repeats(token: int, params: SamplingParams, latest: Sequence[int]) -> bool:
    rule = params.repetition_aware
    assert rule is not None
    return list(latest[-rule.window :]).count(token) >= rule.window * rule.share
