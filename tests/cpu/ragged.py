"""Batches of sequences of different lengths, over caches in one piece and in shuffled blocks, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.kernels.sequences import Sequences


def ragged(fresh: Sequence[int], past: Sequence[int], block: int, spare: int = 0, seed: int | None = None) -> Sequences:
    """Sequences with ``fresh`` new tokens behind ``past`` ones.

    Args:
        fresh, past: tokens of each sequence.
        block: tokens of a block.
        spare: blocks of the cache that belong to nobody.
        seed: of the order of the blocks; None for one sequence behind the other.
    """
    lengths = [new + old for new, old in zip(fresh, past, strict=True)]
    count = [-(-length // block) for length in lengths]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    total = sum(count) + spare
    order = torch.arange(total) if generator is None else torch.randperm(total, generator=generator)
    table, at, slots = torch.full((len(fresh), max(count)), -1, dtype=torch.int32), 0, []
    for row, blocks in enumerate(count):
        table[row, :blocks] = order[at : at + blocks]
        at += blocks
        positions = torch.arange(past[row], lengths[row])
        slots.append(table[row].long()[positions // block] * block + positions % block)
    starts = torch.tensor([0, *torch.tensor(fresh).cumsum(0)], dtype=torch.int32)
    return Sequences(
        starts, torch.tensor(lengths, dtype=torch.int32), table, torch.cat(slots), block, max(fresh), max(lengths)
    )


def blocks_of(sequences: Sequences, spare: int = 0) -> int:
    """Blocks of the cache that :func:`ragged` spread the sequences over."""
    return int((sequences.table >= 0).sum()) + spare


def put(cache: Tensor, sequences: Sequences, sequence: int, old: Tensor) -> None:
    """Writes ``[kv_heads, past, dim]`` of one sequence into the cache ``[blocks, kv_heads, block, dim]``."""
    for at in range(0, old.shape[1], sequences.block):
        part = old[:, at : at + sequences.block]
        cache[int(sequences.table[sequence, at // sequences.block]), :, : part.shape[1]] = part


def got(cache: Tensor, sequences: Sequences, sequence: int) -> Tensor:
    """What the cache holds of one sequence, ``[kv_heads, length, dim]``."""
    length = int(sequences.lengths[sequence])
    blocks = sequences.table[sequence, : -(-length // sequences.block)].long()
    return cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length]
