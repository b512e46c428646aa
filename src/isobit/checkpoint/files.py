"""Small files read whole, from folders that nobody vouches for: regular files only, of bounded size, and never a wait.

A pipe waits for its writer, a device may never end, a folder is no file, a name may be too long for any disk: each is
refused by name before a byte is read.
"""

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


def read_file(path: Path | str, limit: int) -> bytes:
    """All bytes of a regular file, or of one behind symbolic links.

    Args:
        path: the file.
        limit: bytes it may have.

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


def is_file(path: Path) -> bool:
    """Whether this is a regular file, or a link to one; False where none can be, and where nobody may look."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether this is a folder, or a link to one; False as for :func:`is_file`."""
    return stat.S_ISDIR(_mode(path))


def is_there(path: Path) -> bool:
    """Whether anything is there: a file, a folder, a link to nothing, something that nobody may look into."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def why(error: OSError | ValueError) -> str:
    """What went wrong, in the system's words and without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _require_regular(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise CheckpointError(f"this is not a regular file but {kind}", file=path)


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
