"""Memory that the kernels of a model write to between their own launches: one arena, shared by all of its linears.

Launches of a stream run one after another, so all of them can use the same bytes. CUDA graphs keep addresses: an arena
is never freed nor replaced while its workspace lives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ALIGNED = 256  # bytes, as allocators of GPU memory do


class Workspace:
    """The arena of one model on one device.

    Every linear says, when it is bound, what it will need at most (:meth:`reserve`), so that the first launch finds
    room for all of them. A linear that is bound later and needs more gets a second arena, beside the first.

    Args:
        device: where it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._needed, self._counters_needed = 0, 0
        self._arenas: list[Tensor] = []
        self._counters: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(held.numel() * held.element_size() for held in (*self._arenas, *self._counters))

    def reserve(self, nbytes: int, counters: int = 0) -> None:
        """Says that ``nbytes`` and ``counters`` will be asked for at once."""
        self._needed = max(self._needed, nbytes)
        self._counters_needed = max(self._counters_needed, counters)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Room for a tensor, which holds until the next call."""
        nbytes = math.prod(shape) * dtype.itemsize
        self.reserve(nbytes)
        if not self._arenas or self._arenas[-1].numel() < nbytes:
            size = -(-self._needed // _ALIGNED) * _ALIGNED
            self._arenas.append(torch.empty(size, dtype=torch.uint8, device=self.device))
        return self._arenas[-1][:nbytes].view(dtype).view(shape)

    def counters(self, count: int) -> Tensor:
        """int32 ``[count]`` or more, zeros, which whoever counts leaves as zeros."""
        self.reserve(0, count)
        if not self._counters or self._counters[-1].numel() < count:
            self._counters.append(torch.zeros(self._counters_needed, dtype=torch.int32, device=self.device))
        return self._counters[-1]
