"""Small files read whole, from folders that nobody vouches for: regular files only, of bounded size, and never a wait.

A pipe waits for its writer, a device may never end, a folder is no file, a name may be too long for any disk: each is
refused by name before a byte is read. A GGUF file stands for a folder: ``model.gguf/config.json`` is made of what it
says (:mod:`isobit.checkpoint.gguf.members`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from isobit.checkpoint.gguf import members
from isobit.checkpoint.regular import open_regular as open_regular
from isobit.checkpoint.regular import why as why
from isobit.errors import CheckpointError

_MORE = 1 << 20  # bytes


def read_file(path: Path | str, limit: int) -> bytes:
    """All bytes of a regular file, or of one behind symbolic links.

    Args:
        path: the file.
        limit: bytes it may have.

    Raises:
        CheckpointError: it is missing, no regular file, larger than ``limit``, or cannot be read.
    """
    if members.contains(Path(path)):
        made = members.read(Path(path))
        if len(made) > limit:
            raise CheckpointError(f"this file would be larger than {limit:,} bytes", file=path)
        return made
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


def is_file(path: Path) -> bool:
    """Whether this is a regular file, or a link to one; False where none can be, and where nobody may look."""
    return stat.S_ISREG(_mode(path)) or members.contains(path)


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return len(members.read(path)) if members.contains(path) else path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None


def is_folder(path: Path) -> bool:
    """Whether this is a folder, or a link to one; False as for :func:`is_file`."""
    return stat.S_ISDIR(_mode(path))


def is_there(path: Path) -> bool:
    """Whether anything is there: a file, a folder, a link to nothing, something that nobody may look into."""
    try:
        os.lstat(path)
    except (FileNotFoundError, ValueError):
        return False
    except NotADirectoryError:
        return members.contains(path)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
