"""Which frames see which while speech comes in blocks.

A frame sees all of its block and what comes before it; near the end of its block it sees half as far (of large blocks
two thirds as far) into the next one as its block is long. Blocks are given in tokens and counted in frames at the rates
of an older model (12.5 tokens and 22050/256 frames a second), as the published model was trained: a block of 25 tokens
hides frames beyond the 172nd, though its tokens make 50.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALL = 172  # frames


def frames_of(tokens: int) -> int:
    """Frames of a block of so many tokens, one or more."""
    return max(1, int(tokens / 12.5 * 22050 / 256))


def reaches(pattern: Sequence[int], frames: int) -> list[int]:
    """For each frame how many, from the first on, it sees.

    Args:
        pattern: sizes of the blocks in tokens; those behind the last are like it.
        frames: in all.
    """
    sizes = [frames_of(tokens) for tokens in pattern]
    found: list[int] = []
    begin, block = 0, 0
    while len(found) < frames:
        size = sizes[min(block, len(sizes) - 1)]
        ahead = int(size / 2) if size <= _SMALL else int(size / 1.5)
        for place in range(size):
            left = size - 1 - place  # frames of its block behind it
            found.append(min(frames, begin + size + max(0, ahead - left)))
        begin, block = begin + size, block + 1
    return found[:frames]


def visible(pattern: Sequence[int], frames: int) -> Tensor:
    """bool ``[frames, frames]``: row i sees column j."""
    ends = torch.tensor(reaches(pattern, frames))
    return torch.arange(frames)[None, :] < ends[:, None]
