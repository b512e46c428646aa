"""A cache in blocks that sequences take and give back."""

from __future__ import annotations

import torch

from isobit.models.cache.memory import Memory
from isobit.models.cache.protocol import CachedSequence
from isobit.models.config import ModelConfig

BLOCK = 64  # tokens: a multiple of what the attention of the CPU kernels (KEYS in layer.h) reads at once


class PagedCache(Memory):
    """Keys and values in blocks of 64 tokens; which sequence has which is kept here.

    Where all blocks are taken it grows: what it holds moves, so that addresses of before are no longer its own.

    Attributes:
        moves: how often that happened.
    """

    def __init__(
        self, config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        super().__init__(config, blocks_of(tokens), BLOCK, dtype, device)
        self._config, self._dtype = config, dtype
        self._free = [*range(self.blocks)]
        self.moves = 0

    def take(self, room: int) -> CachedSequence:
        """A new sequence of up to ``room`` tokens.

        Raises:
            CapacityError: there is not so much memory.
        """
        wanted = blocks_of(room)
        if wanted > len(self._free):
            self._grow(wanted - len(self._free))
        sequence = CachedSequence(tuple(self._free[:wanted]), room)
        del self._free[:wanted]
        self._held[sequence.blocks[0]] = sequence
        return sequence

    def give_back(self, sequence: CachedSequence) -> None:
        """Ends a sequence: others may have its blocks."""
        if self._held.pop(sequence.blocks[0], None) is sequence:
            self._free += sequence.blocks

    def _grow(self, more: int) -> None:
        old, count = self._layers, self.blocks
        larger = Memory(self._config, max(2 * count, count + more), BLOCK, self._dtype, self._device)
        for new, held in zip(larger._layers, old, strict=True):
            for to, of in zip(new, held, strict=True):
                to[:count].copy_(of)
        self._layers, self.stride, self.blocks = larger._layers, larger.stride, larger.blocks
        self._free += range(count, self.blocks)
        self.moves += 1


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens take."""
    return max(1, -(-tokens // BLOCK))
