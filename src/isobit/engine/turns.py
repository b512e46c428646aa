"""The host's memory of steps on their way to a GPU and back: pinned, used in turns, with events that say how far it is.

It is made once: pinning memory and making events for every step takes the host longer than what they are for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

GIVEN = 4 * 8 + 2 * 4 + 8  # bytes of a row that the host writes, and that a step leaves
CHOSEN = 8 + 4
_TURNS = 3  # one step is on the device, one is on its way there, and what a third one left is still read


class Page:
    """The numbers of a step, one for each row, where the host writes them.

    Args:
        rows: a multiple of 4, so that every part begins at a multiple of 16 bytes.
        pinned: whether a GPU reads them there, while the host goes on.

    Attributes:
        memory: all of them, uint8 ``[rows * GIVEN]``.
        positions, slots, sources, tokens: int64 ``[rows]``, and lengths: int32 ``[rows]``: its parts.
        cells: int64 ``[rows]``, and blocks: int32 ``[rows]``: places in the table of blocks, and what is there now; as
            many of them as have changed.
    """

    def __init__(self, rows: int, *, pinned: bool = False) -> None:
        self.pinned = pinned
        self.memory = torch.zeros(rows * GIVEN, dtype=torch.uint8, pin_memory=pinned)
        numbers = self.memory.numpy()
        wide, narrow, tokens = np.split(numbers, [rows * 32, rows * 40])
        self.cells, self.positions, self.slots, self.sources = wide.view(np.int64).reshape(4, rows)
        self.blocks, self.lengths = narrow.view(np.int32).reshape(2, rows)
        self.tokens, self._numbers = tokens.view(np.int64), numbers
        self.slots[:] = -1
        self._padding = numbers.copy()

    def clear(self) -> None:
        """Padding alone: sequences of no tokens, which store nothing."""
        self._numbers[:] = self._padding

    def copy(self, other: Page) -> None:
        """All of another page of as many rows."""
        self._numbers[:] = other._numbers


class Turn:
    """One step's memory.

    Args:
        rows: of its numbers.
        device: where it is computed.

    Attributes:
        page: what the host gives.
        tokens: int64 ``[rows]``, and highest: float32 ``[rows]``: what came back, once :meth:`wait` has.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._device, on_gpu = device, device.type == "cuda"
        self.page = Page(rows, pinned=on_gpu)
        self._result = torch.zeros(rows * CHOSEN, dtype=torch.uint8, pin_memory=on_gpu)
        tokens, highest = np.split(self._result.numpy(), [rows * 8])
        self.tokens, self.highest = tokens.view(np.int64), highest.view(np.float32)
        self._begin: Any = _mark() if on_gpu else None
        self._end: Any = _mark() if on_gpu else None
        self._open = self._used = False

    def open(self) -> None:
        """A step begins, on the stream at hand."""
        if self._begin is None:
            return
        if self._open:  # it was given up on the way: nobody knows how far the device is with it
            torch.cuda.synchronize(self._device)
        elif self._used:
            self._end.synchronize()
        self._open = self._used = True
        self._begin.record()

    def close(self, result: Tensor) -> None:
        """All of it is started; what it leaves in ``result``, uint8 ``[rows * CHOSEN]``, comes back when it is done."""
        self._result.copy_(result, non_blocking=True)
        if self._end is not None:
            self._end.record()
        self._open = False

    def wait(self) -> None:
        """Until what it left is here."""
        if self._end is not None:
            self._end.synchronize()

    def seconds(self) -> float:
        """That it took on the device; nothing on a CPU, which is never behind."""
        return 0.0 if self._begin is None else float(self._begin.elapsed_time(self._end)) / 1e3


class Turns:
    """Turns of steps, of which no more than one is under way when another is opened."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._turns = [Turn(rows, device) for _ in range(_TURNS)]
        self._next = 0

    def open(self) -> Turn:
        """The next one, opened."""
        turn = self._turns[self._next]
        self._next = (self._next + 1) % _TURNS
        turn.open()
        return turn


def _mark() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
