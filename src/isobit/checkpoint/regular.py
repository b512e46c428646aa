"""Regular files opened for reading, whoever wrote them: what is a pipe or a device is refused before a byte is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from isobit.errors import CheckpointError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path | str) -> int:
    """A descriptor to read a regular file with; it is the caller's to close.

    Raises:
        CheckpointError: it is missing, no regular file, or cannot be opened.
    """
    try:
        _require_regular(os.stat(path).st_mode, path)  # before it is opened, which makes some devices act
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe put there meanwhile: no wait
        try:
            _require_regular(os.fstat(descriptor).st_mode, path)
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None
    return descriptor


def why(error: OSError | ValueError) -> str:
    """What went wrong, in the system's words and without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _require_regular(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise CheckpointError(f"this is not a regular file but {kind}", file=path)
