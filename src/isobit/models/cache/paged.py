"""A cache in blocks that many sequences share."""

from __future__ import annotations

import torch

from isobit.formats.caches import AUTO, BLOCK, CacheFormat
from isobit.models.batch import Batch
from isobit.models.cache.memory import Memory
from isobit.models.config import ModelConfig


class PagedCache(Memory):
    """Keys and values in blocks of 64 tokens. Who holds which, and how long sequences are, is their owner's to know.

    It can grow: what it holds moves, so that addresses of before are no longer its own.

    Attributes:
        moves: how often that happened.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        stored: CacheFormat = AUTO,
    ) -> None:
        super().__init__(config, blocks, BLOCK, dtype, device, stored)
        self._config, self._dtype, self._stored = config, dtype, stored
        self.moves = 0

    def stored(self, batch: Batch) -> None:
        """Nothing: lengths are not kept here."""

    def grow(self, blocks: int) -> None:
        """Room for so many blocks, if there are fewer; those that are there stay as they are.

        Raises:
            CapacityError: there is not so much memory.
        """
        if blocks <= self.blocks:
            return
        larger = Memory(self._config, blocks, BLOCK, self._dtype, self._device, self._stored)
        for new, held in zip(larger._layers, self._layers, strict=True):
            for to, of in zip(new.tensors, held.tensors, strict=True):
                to[: self.blocks].copy_(of)
        self._layers, self.stride, self.blocks = larger._layers, larger.stride, larger.blocks
        self.moves += 1
