"""Ctrl-C and SIGTERM: one line and the status that shells expect, at any moment, also while modules are loaded."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
WORDS = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}

_IMPORTING = "<frozen importlib._bootstrap>"  # the file of the frames that load modules


class Terminated(BaseException):
    """SIGTERM came. No Exception, as KeyboardInterrupt is none: nothing is to go on after it but tidying up."""


def take() -> None:
    """From now on signals end this process in order; those that whoever started it had ignored stay ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_signal)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_signal)


def finish() -> None:
    """The work is done, or given up: a signal from now on ends the process at once, and says nothing twice."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, lambda number, frame: os._exit(128 + number))


def _on_signal(number: int, frame: FrameType | None) -> None:
    # An exception in the middle of an import can be caught, or come out as another one, by the module that is being
    # loaded. Nothing is lost by leaving there: whatever isobit writes survives being killed at any moment.
    if _importing(frame):
        line = f"isobit: {WORDS[128 + number]}\n"
        os.write(2, ("\n" + line if sys.stderr is not None and sys.stderr.isatty() else line).encode())
        os._exit(128 + number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
