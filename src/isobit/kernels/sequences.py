"""Which new tokens of a flat batch belong to which sequence, and where a cache keeps what attention reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MANY = 8  # new tokens with which a sequence is one of few to no kernel


@dataclass(frozen=True)
class Sequences:
    """The sequences of a batch. All tensors are on the device that computes.

    A layer's cache is ``keys, values [blocks, kv_heads, block, dim]``. A contiguous cache is one block per sequence.

    Attributes:
        starts: int32 ``[B + 1]``: the new tokens of sequence b are ``starts[b]`` to ``starts[b + 1] - 1`` of the batch.
        lengths: int32 ``[B]``: tokens of each sequence, the new ones included, which are its last.
        table: int32 ``[B, P]``: the blocks that hold a sequence: position p is in block ``table[b, p // block]`` at
            place ``p % block``.
        slots: int64 ``[T]``: ``number of the block * block + place`` of each new token; -1 where it is not stored,
            as the padding of a recorded graph.
        block: tokens of a block.
        most_new, most: bounds of new tokens and of lengths over the sequences, known to the host.
        least_new: new tokens that each sequence has at least if it has any, the padding of a recorded graph too.
    """

    starts: Tensor
    lengths: Tensor
    table: Tensor
    slots: Tensor
    block: int
    most_new: int
    most: int
    least_new: int = 1
