"""Ctrl-C while a step is counted: it waits until everybody's tokens are where they belong."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

# A step comes here three times. Python's own module makes enumerations of numbers around these: 7 us each time.
_signals: Any = sys.modules.get("_signal", signal)
_SIGINT = int(signal.SIGINT)


class uninterrupted:  # noqa: N801 - it is written as a block, like contextlib's
    """Puts off what SIGINT does in Python to the end of the block; for short ones that no model runs in.

    Signals are handled by the main thread alone, between any two instructions of it: elsewhere this does nothing.
    """

    __slots__ = ("_before", "_came")

    def __enter__(self) -> None:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            before = _signals.getsignal(_SIGINT)
            if callable(before):
                self._came: list[FrameType | None] = []
                self._before = before
                _signals.signal(_SIGINT, self._put_off)

    def _put_off(self, number: int, frame: FrameType | None) -> None:
        self._came.append(frame)

    def __exit__(self, *_: object) -> None:
        before = self._before
        if before is not None:
            _signals.signal(_SIGINT, before)
            if self._came:
                before(_SIGINT, self._came[0])
