"""Checksums of what an output holds: kept in its journal, and held against the disk before an unfinished run goes on.

A disk or a copy that changes a bit in a shard that is half done would otherwise hand it on, in a checkpoint that looks
whole. The checksum runs at the speed of memory, so that quantizing does not wait for it: 1024 words of 64 bits are
multiplied by as many odd numbers and added, modulo 2**64, and the sums, and what is left at the end, go through CRC-32.
Any change within one word is found, and all but one in four thousand million of other changes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from isobit.checkpoint.shards import PlannedShard

_WORDS = 1024  # of 64 bits, in one sum
_ROW = 8 * _WORDS  # bytes
_CHUNK = 2048 * _ROW  # bytes read at once

Part = list[int]  # [bytes of the tensor in front of it, bytes, checksum]
Parts = dict[str, list[Part]]  # tensor -> what was written of it, in the order of writing


def checksum(data: Tensor, before: int = 0) -> int:
    """The checksum of the bytes of a contiguous tensor.

    Args:
        data: any dtype.
        before: the checksum of what is in front of it, if that is a multiple of 8192 bytes.
    """
    data = data.reshape(-1).view(torch.uint8)
    whole = data.numel() // _ROW * _ROW
    if whole:
        rows = torch.frombuffer(memoryview(data[:whole].numpy()), dtype=torch.int64)  # type: ignore[arg-type]
        before = zlib.crc32(torch.mv(rows.view(-1, _WORDS), _weights()).numpy(), before)  # type: ignore[arg-type]
    return zlib.crc32(data[whole:].numpy(), before)  # type: ignore[arg-type]


@cache
def _weights() -> Tensor:
    """Odd numbers without pattern (the generator splitmix64), int64 ``[1024]``."""
    mask = 2**64 - 1
    found = []
    for index in range(1, _WORDS + 1):
        word = index * 0x9E3779B97F4A7C15 & mask
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
        word = (word ^ word >> 31) | 1
        found.append(word - 2**64 if word >> 63 else word)
    return torch.tensor(found, dtype=torch.int64)


class WrittenSums:
    """The checksums of tensors that are being written, part by part."""

    def __init__(self) -> None:
        self._parts: Parts = {}

    def add(self, name: str, offset: int, data: Tensor) -> None:
        """``data`` was written as the bytes of tensor ``name`` from ``offset`` on."""
        part = [offset, data.numel() * data.element_size(), checksum(data)]
        self._parts.setdefault(name, []).append(part)

    def take(self) -> Parts:
        """What was added since the last call."""
        parts, self._parts = self._parts, {}
        return parts


@dataclass(frozen=True)
class Claim:
    """Bytes that the journal says are in a shard.

    Attributes:
        module: whose they are.
        begin: offset in the file.
        size: bytes.
        sum: their checksum.
    """

    module: str
    begin: int
    size: int
    sum: int


def claims(shard: PlannedShard, module: str, parts: Parts) -> list[Claim]:
    """What a journal's entry for ``module`` says about a shard."""
    return [
        Claim(module, shard.offsets[name] + offset, size, known)
        for name, written in parts.items()
        for offset, size, known in written
    ]


def damaged_modules(file: Path, said: Sequence[Claim]) -> set[str]:
    """The modules whose bytes in ``file`` are not what was said."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            sums = pool.map(lambda claim: _sum_of(descriptor, claim.begin, claim.size), said)
            return {claim.module for claim, found in zip(said, sums, strict=True) if found != claim.sum}
    finally:
        os.close(descriptor)


def _sum_of(descriptor: int, begin: int, size: int) -> int:
    found = 0
    buffer = torch.empty(min(size, _CHUNK), dtype=torch.uint8)
    for position in range(begin, begin + size, _CHUNK):
        wanted = min(begin + size - position, _CHUNK)
        view, done = memoryview(buffer.numpy())[:wanted], 0  # type: ignore[arg-type]
        while done < wanted:
            count = os.preadv(descriptor, [view[done:]], position + done)
            if count == 0:
                return -1  # cut off: no checksum is negative
            done += count
        found = checksum(buffer[:wanted], found)
    return found
