"""Codes of a few bits whose lines lie in planes: the first lines in some bits of each word, the next in others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import Reader


def lines(
    reader: Reader, part: str, begin: int, end: int, shifts: Sequence[int], bits: int, words: torch.dtype
) -> Tensor:
    """Lines ``begin`` to ``end`` of codes, int32 ``[lines, width]``; nothing else is read.

    Args:
        reader: of the module.
        part: holds them, ``[stored lines, width]``, in words or as another dtype of the same bytes.
        begin, end: which of them.
        shifts: where the codes of the first stored lines lie in a word, of the next, and so on.
        bits: of a code.
        words: uint8 or int32.
    """
    import torch

    stored = reader.info(part).shape[0]
    found = []
    for number, shift in enumerate(shifts):
        first, last = max(begin, number * stored), min(end, (number + 1) * stored)
        if first < last:
            piece = reader.take(part, slice(first - number * stored, last - number * stored)).view(words)
            found.append((piece.to(torch.int32) >> shift) & ((1 << bits) - 1))
    return torch.cat(found) if len(found) > 1 else found[0]
