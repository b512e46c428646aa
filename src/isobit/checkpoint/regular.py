"""Regular files opened for reading, whoever wrote them: what is a pipe or a device is refused before a byte is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from isobit.errors import CheckpointError

_MORE = 1 << 20  # bytes
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


def read_regular(path: Path | str, limit: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        CheckpointError: it is missing, no regular file, larger than ``limit``, or cannot be read.
    """
    descriptor = open_regular(path)
    try:
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            data = b"" if size > limit else file.read(size + 1)  # not limit + 1, for which memory would be set aside
            while len(data) > size and len(data) <= limit and (more := file.read(_MORE)):
                data += more  # it is growing, or a file of /proc, which says that it has no bytes
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None
    if max(size, len(data)) > limit:
        raise CheckpointError(f"this file is larger than {limit:,} bytes", file=path)
    return data


def is_regular(path: Path) -> bool:
    """Whether this is a regular file, or a link to one; False where none can be, and where nobody may look."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def why(error: OSError | ValueError) -> str:
    """What went wrong, in the system's words and without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _require_regular(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise CheckpointError(f"this is not a regular file but {kind}", file=path)
