"""From the logits of one position to a token, or to the most probable ones: temperature, truncation, one draw.

Numbers are numpy's, float64 ``[V]``, and one thread works on them: a vocabulary is too small for a parallel sort or sum
to be worth waking threads, and beside a busy program waiting for them took longer than the model. Nothing is sorted but
what a cheap bound leaves over, and no bound changes which tokens they are: those that sorting everything would give.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_ROWS = 64  # values of which a bound for the k-th largest takes the maximum
_FEW = 1024  # weights that are sorted without further ado
_MARGIN = 1e-9  # of the whole sum: more than rounding can amount to in a sum of a million numbers


def weights(
    logits: Floats, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Ids | None, Floats]:
    """The tokens that may be drawn and their probabilities relative to that of the most probable one.

    Args:
        logits: ``[V]``, none NaN or +inf, one or more finite.
        temperature: above 0.
        top_k, top_p, min_p: as in :class:`isobit.engine.sampling.SamplingParams`, applied in this order.

    Returns:
        (ids in ascending order, weights of at most 1); ids None for all tokens of the vocabulary.
    """
    ids: Ids | None = None
    if 0 < top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, top_k))
        logits = logits[ids]
    with np.errstate(over="ignore", under="ignore"):  # a temperature near 0 leaves weights of 1 and 0
        found: Floats = logits - logits.max()
        found /= temperature
        np.exp(found, out=found)
    if top_p < 1:
        ids, found = _take(ids, found, nucleus(found, top_p))
    if min_p > 0:
        ids, found = _take(ids, found, np.flatnonzero(found >= min_p))
    return ids, found


def _take(ids: Ids | None, values: Floats, places: Ids) -> tuple[Ids, Floats]:
    return places if ids is None else ids[places], values[places]


def draw(weights: Floats, uniform: float) -> int:
    """The index whose share of [0, 1), in the order of indices, holds ``uniform``; never one of weight 0."""
    cumulative = cumulated(weights)
    index = int(cumulative.searchsorted(uniform * cumulative[-1], side="right"))
    if index >= len(weights) or weights[index] == 0:  # uniform rounded up to the very end
        index = int(np.flatnonzero(weights)[-1])
    return index


def nucleus(weights: Floats, share: float) -> Ids:
    """Places, ascending, of the fewest weights that have ``share`` of their sum: the largest; of equal ones the first.

    That is, the first ones of a stable descending sort up to the one with which their sum, one after the other, reaches
    the share. Sums in other orders are within n * 2**-53 of it, so what they decide with a margin it decides, too;
    without the margin everything is sorted.
    """
    mass = float(weights.sum())
    wanted = share * mass
    least, count = _boundary(weights, wanted, _MARGIN * mass) or _boundary_of_all(weights, wanted)
    inside = weights > least
    inside[np.flatnonzero(weights == least)[: count - int(np.count_nonzero(inside))]] = True
    return np.flatnonzero(inside)


def _boundary_of_all(weights: Floats, wanted: float) -> tuple[float, int]:
    """(the least weight of the largest ones that reach the wanted sum, how many they are), by sorting."""
    ordered = -np.sort(-weights)
    count = min(len(ordered), 1 + int(cumulated(ordered).searchsorted(wanted, side="left")))
    return float(ordered[count - 1]), count


def _boundary(weights: Floats, wanted: float, margin: float) -> tuple[float, int] | None:
    """The same by splitting what may hold the boundary; None if a sum is within ``margin`` of the wanted one."""
    above, count = 0.0, 0  # the sum and the number of weights that are larger than all of ``rest``
    rest = weights
    while len(rest) > _FEW:
        # All below (what is above the wanted sum) / (their number) are too light together to be needed.
        light = (above + float(rest.sum()) - wanted) / len(rest)
        pivot = max(light, float(np.median(rest[:: len(rest) // 63])))
        heavier = rest > pivot
        upper = rest[heavier]
        reached = above + float(upper.sum())
        if abs(reached - wanted) < margin:
            return None
        if reached < wanted:
            above, count, upper = reached, count + len(upper), rest[~heavier]
        if len(upper) == len(rest):  # equal ones
            break
        rest = upper
    ordered = -np.sort(-rest)
    cumulative = above + cumulated(ordered)
    place = int(cumulative.searchsorted(wanted, side="left"))
    near = cumulative[max(0, place - 1) : place + 1]
    if place == len(ordered) or np.abs(near - wanted).min() < margin:
        return None
    return float(ordered[place]), count + place + 1


def kth_largest(values: Floats, k: int) -> np.float64:
    """The k-th largest value, ``1 <= k <= len(values)``."""
    columns = len(values) // _ROWS
    if k <= columns // 4:
        # Each column's maximum is a value of its own: k of them reach their k-th largest, so the k-th of all does.
        tops = values[: _ROWS * columns].reshape(_ROWS, columns).max(axis=0)
        values = values[values >= np.partition(tops, columns - k)[columns - k]]
    found: np.float64 = np.partition(values, len(values) - k)[len(values) - k]
    return found


def largest(values: Floats, count: int) -> Ids:
    """Places of the ``count`` largest values, largest first, of equal ones the first; all if there are fewer."""
    if count == 0:
        return np.empty(0, np.int64)
    places = np.flatnonzero(values >= kth_largest(values, min(count, len(values))))
    return places[np.argsort(-values[places], kind="stable")[:count]]


def cumulated(values: Floats) -> Floats:
    """Sums of the first 1, 2, ... values, one after the other; PyTorch's loop takes a quarter of numpy's time."""
    found: Floats = torch.cumsum(torch.from_numpy(values), dim=0).numpy()
    return found
