"""Truncating and drawing from many distributions at once, so that no row depends on which others are there.

Numbers are float64 ``[R, V]`` on any device. A sum of floats depends on its order, and that on how many rows there are
and on how many threads or multiprocessors share them; so no sum here is left to a library. Probabilities are summed as
integers, which have no order: a weight of at most 1 becomes a multiple of ``2**-bits``, more than 40 of them. Where a
float is needed, halves are added to halves, element by element.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FEW = (64, 1024)  # of the largest weights, before all that may matter are sorted


def fixed_bits(vocabulary: int) -> int:
    """Bits behind the point, so that ``vocabulary`` weights of 1 do not overflow 64 bits."""
    return 62 - (vocabulary - 1).bit_length()


def fixed(weights: Tensor, bits: int) -> Tensor:
    """Weights in ``[0, 1]`` as int64 multiples of ``2**-bits``, rounded to the nearest."""
    return (weights * 2.0**bits).round_().to(torch.int64)


def folded_sum(values: Tensor) -> Tensor:
    """Sums of the rows ``[R]`` in one written order: the second half onto the first, until one is left."""
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        folded = values[:, :half].clone()
        folded[:, : values.shape[1] - half] += values[:, half:]
        values = folded
    return values[:, 0]


def largest(logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Top-k: the ``counts[r]`` largest of each row, those equal to the last of them too, in the order of places.

    Args:
        logits: ``[R, V]``.
        counts: int64 ``[R]``, each between 1 and V.

    Returns:
        (logits ``[R, C]``, -inf where a row has fewer than C; their places ``[R, C]``).
    """
    least = logits.topk(int(counts.max())).values.gather(1, (counts - 1)[:, None])
    width = int((logits >= least).sum(1).max())
    places = logits.topk(width, sorted=False).indices.sort(1).values  # all that reach ``least`` are among them
    found = logits.gather(1, places)
    return found.masked_fill_(found < least, float("-inf")), places


def outside_nucleus(weights: Tensor, units: Tensor, shares: Tensor, bits: int, *, wait: bool = True) -> Tensor:
    """Top-p: which weights are not among the fewest that have a share of their row's sum.

    Those are the largest; of equal ones the first.

    Args:
        weights: ``[R, V]``, at most 1, a 1 in each row.
        units: the same as :func:`fixed` gives them.
        shares: float64 ``[R]``, above 0 and at most 1.
        bits: of ``units``.
        wait: whether the numbers may be looked at on the way, which saves work and waits for a GPU.

    Returns:
        bool ``[R, V]``.
    """
    mass = units.sum(1, keepdim=True)
    wanted = (shares[:, None] * mass).ceil_().to(torch.int64).minimum(mass)  # 1 or more: 0 < share * mass
    if wait:
        ordered, reached = _most_of(weights, units, wanted, mass, bits)
    else:
        ordered = weights.sort(1, descending=True).values
        reached = fixed(ordered, bits).cumsum(1)
    place = (reached < wanted).sum(1, keepdim=True)  # of the last one that belongs to it
    if not wait:
        place.clamp_(max=weights.shape[1] - 1)  # of a row of NaN
    least = ordered.gather(1, place)
    larger, equal = weights > least, weights == least
    room = place + 1 - larger.sum(1, keepdim=True)  # for equal ones
    if not wait or bool((equal.sum(1, keepdim=True) > room).any()):
        return ~(larger | (equal & (equal.cumsum(1) <= room)))
    return weights < least


def _most_of(weights: Tensor, units: Tensor, wanted: Tensor, mass: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The largest weights of each row, in order, as many as reach the wanted sums; and these sums."""
    width = weights.shape[1]
    for few in (few for few in _FEW if few < width):
        ordered = weights.topk(few).values
        reached = fixed(ordered, bits).cumsum(1)
        if bool((reached[:, -1:] >= wanted).all()):
            return ordered, reached
    # All below (what is above the wanted sum) / V are too light together to be needed.
    few = int((units >= (mass - wanted) // width).sum(1).max())
    ordered = weights.topk(few).values
    return ordered, fixed(ordered, bits).cumsum(1)


def draw(units: Tensor, uniforms: Tensor) -> Tensor:
    """The places ``[R]`` whose share of ``[0, 1)``, in the order of places, holds ``uniforms[r]``; none of weight 0.

    Args:
        units: int64 ``[R, V]``, not negative, a positive one in each row.
        uniforms: float64 ``[R]`` in ``[0, 1)``.
    """
    reached = units.cumsum(1)
    total = reached[:, -1:]
    target = (uniforms[:, None] * total).to(torch.int64).minimum(total - 1)
    return torch.searchsorted(reached, target, right=True)[:, 0]
