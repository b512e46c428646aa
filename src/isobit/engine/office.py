"""Pieces of answers from the thread that takes steps to an event loop, which is woken once for many of them."""

from __future__ import annotations

import asyncio
from collections import deque

from isobit.engine.answer import Piece

Box = asyncio.Queue[tuple[int, Piece]]


class Office:
    """Brings pieces to readers on one event loop.

    Args:
        loop: it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[tuple[Box, tuple[int, Piece]]] = deque()
        self._called = False

    def post(self, box: Box, piece: tuple[int, Piece]) -> None:
        """From any thread: it is in the box soon.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self.loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._posted.append((box, piece))
        if not self._called:  # else the loop comes by, and behind its setting this to False it looks at all there is
            self._called = True
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False
        while self._posted:
            box, piece = self._posted.popleft()
            box.put_nowait(piece)
