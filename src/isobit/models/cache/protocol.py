"""What a model asks of a key-value cache, whoever manages it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from isobit.errors import CapacityError
from isobit.kernels.cached import Cached
from isobit.models.batch import Batch


@dataclass
class CachedSequence:
    """A sequence that a cache holds.

    Attributes:
        blocks: the blocks that are its own.
        room: tokens that it may have.
        length: tokens that it has.
    """

    blocks: tuple[int, ...]
    room: int
    length: int = 0

    def require(self, new: int) -> None:
        """That there is room for so many more tokens.

        Raises:
            CapacityError: there is not.
        """
        if self.length + new > self.room:
            raise CapacityError(f"the key-value cache has room for {self.room} tokens, not for {self.length + new}")


class Cache(Protocol):
    """Keys and values of sequences, in blocks of tokens."""

    block: int
    key: tuple[object, ...]
    stride: int | None
    longest: int | None

    def memory(self, layer: int) -> Cached:
        """What is held of a layer."""

    def stored(self, batch: Batch) -> None:
        """Counts the tokens of a batch, which every layer has stored."""
