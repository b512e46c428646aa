"""Standard input, output and error of the process, whatever state it was started with.

Python leaves a name of ``sys`` at None for a stream that is closed, dies on letters that an encoding does not have, and
reports output that could not be written at its very end, in words of its own. Here a closed stream is opened on
/dev/null (so that no file takes its number), letters become escapes, and a failed write is an error of isobit's.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

from isobit.errors import IsobitError

_LOST = "redirect it to a file or to /dev/null"


class OutputError(IsobitError):
    """Standard output cannot be written."""


class ReaderGone(BaseException):
    """Whoever read our output has stopped, as `| head` does; no Exception, for nothing is to go on without."""


class _Raw(io.FileIO):
    """A stream's file. After a failed write it takes and drops whatever comes: it has been reported by then."""

    def __init__(self, number: int, *, quiet: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self._quiet = quiet
        self._broken = False

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        while not self._broken:
            try:
                # None: a pipe that does not block, as its reader or a terminal may have set it, is full.
                if (written := super().write(data)) is not None:
                    return written
                select.select([], [self.fileno()], [])
            except OSError as error:
                self._broken = True
                if self._quiet:
                    break
                if isinstance(error, BrokenPipeError):
                    raise ReaderGone from None
                raise OutputError(f"standard output cannot be written: {error.strerror}; {_LOST}") from None
        return size


def prepare() -> str | None:
    """Put the standard streams in order.

    Returns:
        What is wrong with standard output, if it is closed: nothing can be said then, and no work is worth starting.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for number in closed:
        opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = _stream(1, sys.stdout, quiet=False)
    sys.stderr = _stream(2, sys.stderr, quiet=True)  # a progress line that nobody reads must not end the work
    return f"standard output is closed, so that no answer could be given: {_LOST}" if 1 in closed else None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _stream(number: int, old: TextIO | None, *, quiet: bool) -> TextIO:
    """A stream in place of the one that Python made, in the same encoding; what that cannot hold becomes escapes."""
    at_once = getattr(old, "write_through", False)  # python -u
    lines = getattr(old, "line_buffering", False)
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(number, quiet=quiet)),
        encoding="utf-8" if old is None else old.encoding,
        errors="backslashreplace",
        line_buffering=lines,
        write_through=at_once,
    )
