"""An interpolated Kneser-Ney trigram over token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
BITS = 12  # a token id below 4096; three of them make one key
VOCAB = 1 << BITS


@dataclass(frozen=True)
class Counts:
    """Counts of n-grams by sorted key, with totals and numbers of kinds by context (the key less its last token)."""

    keys: Ids
    counts: Ids
    contexts: Ids
    totals: Ids
    kinds: Ids
    discount: float

    @staticmethod
    def of(keys: Ids, counts: Ids) -> Counts:
        contexts, first, kinds = np.unique(keys >> BITS, return_index=True, return_counts=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        # Ney, Essen and Kneser's estimate of the absolute discount; without a single n-gram seen once there is none.
        discount = once / (once + 2 * twice) if once else 0.0
        return Counts(keys, counts, contexts, np.add.reduceat(counts, first), kinds, discount)

    def interpolate(self, query: Ids, lower: Floats) -> Floats:
        """p(last token | context) of each queried key, given the shorter context's probabilities."""
        count = np.maximum(look_up(self.keys, self.counts, query) - self.discount, 0.0)
        total = look_up(self.contexts, self.totals, query >> BITS)
        kinds = look_up(self.contexts, self.kinds, query >> BITS)
        mixed = (count + self.discount * kinds * lower) / np.maximum(total, 1)
        return np.where(total > 0, mixed, lower)


def look_up(keys: Ids, values: Ids, query: Ids) -> Ids:
    """values at the query's place in the sorted keys, 0 where absent."""
    place = np.minimum(np.searchsorted(keys, query), len(keys) - 1)
    return np.where(keys[place] == query, values[place], 0)


class Trigram:
    """Interpolated Kneser-Ney: continuation counts below the highest order, uniform at the bottom."""

    def __init__(self, ids: Ids) -> None:
        keys, counts = np.unique((ids[:-2] << 2 * BITS) | (ids[1:-1] << BITS) | ids[2:], return_counts=True)
        self.third = Counts.of(keys, counts)
        keys, counts = np.unique(keys & ((1 << 2 * BITS) - 1), return_counts=True)
        self.second = Counts.of(keys, counts)
        self.first = Counts.of(*np.unique(keys & (VOCAB - 1), return_counts=True))

    def probabilities(self, keys: Ids) -> Floats:
        """p(c | a, b) of each key made of a, b and c."""
        one = self.first.interpolate(keys & (VOCAB - 1), np.full(len(keys), 1 / VOCAB))
        two = self.second.interpolate(keys & ((1 << 2 * BITS) - 1), one)
        return self.third.interpolate(keys, two)

    def nll(self, ids: Ids) -> Floats:
        """Negative log-likelihood in nats of ids[1:]; the first token's context is padded with ids[0]."""
        padded = np.concatenate((ids[:1], ids))
        keys = (padded[:-2] << 2 * BITS) | (padded[1:-1] << BITS) | padded[2:]
        return -np.log(self.probabilities(keys))
