"""A cache of sequences that each lie in one piece: one block for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isobit.formats.caches import AUTO, CacheFormat
from isobit.models.batch import Batch, New, Overlays, Positions, Wanted
from isobit.models.cache.memory import Memory
from isobit.models.cache.protocol import CachedSequence
from isobit.models.config import ModelConfig


class ContiguousCache(Memory):
    """Keys and values of some sequences of up to ``max_len`` tokens each.

    Attributes:
        sequences: them.
        max_len: tokens there is room for in each.
    """

    def __init__(
        self,
        config: ModelConfig,
        count: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        stored: CacheFormat = AUTO,
    ) -> None:
        super().__init__(config, count, max_len, dtype, device, stored)
        self.max_len = self.longest = max_len
        self.sequences = tuple(CachedSequence((number,), max_len) for number in range(count))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(one.length for one in self.sequences)

    def stored(self, batch: Batch) -> None:
        """Counts the tokens of a batch, which every layer has stored."""
        for span in batch.spans:
            self.sequences[span.blocks[0]].length = span.length

    def next(
        self,
        new: Sequence[New],
        *,
        wanted: Wanted | Sequence[range] = "all",
        positions: Positions = None,
        overlays: Overlays = None,
    ) -> Batch:
        """New tokens of every sequence; see :meth:`Memory.batch`."""
        return self.batch(new, self.sequences, wanted=wanted, positions=positions, overlays=overlays)
