"""Small files read whole, from folders that nobody vouches for: regular files only, of bounded size, and never a wait.

A pipe waits for its writer, a device may never end, a folder is no file, a name may be too long for any disk: each is
refused by name before a byte is read. A GGUF file stands for a folder: ``model.gguf/config.json`` is made of what it
says (:mod:`isobit.checkpoint.gguf.members`), and so is that of a folder of MLC's (:mod:`isobit.checkpoint.mlc.config`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from isobit.checkpoint.gguf import members
from isobit.checkpoint.mlc import config as mlc
from isobit.checkpoint.regular import open_regular as open_regular
from isobit.checkpoint.regular import read_regular
from isobit.checkpoint.regular import why as why
from isobit.errors import CheckpointError


def read_file(path: Path | str, limit: int) -> bytes:
    """All bytes of a regular file, or of one behind symbolic links.

    Args:
        path: the file.
        limit: bytes it may have.

    Raises:
        CheckpointError: it is missing, no regular file, larger than ``limit``, or cannot be read.
    """
    if _is_made(Path(path)):
        made = _made(Path(path))
        if len(made) > limit:
            raise CheckpointError(f"this file would be larger than {limit:,} bytes", file=path)
        return made
    return read_regular(path, limit)


def is_file(path: Path) -> bool:
    """Whether this is a regular file, or a link to one; False where none can be, and where nobody may look."""
    return stat.S_ISREG(_mode(path)) or _is_made(path)


def size_of(path: Path) -> int:
    """Bytes of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return len(_made(path)) if _is_made(path) else path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None


def is_folder(path: Path) -> bool:
    """Whether this is a folder, or a link to one; False as for :func:`is_file`."""
    return stat.S_ISDIR(_mode(path))


def is_there(path: Path) -> bool:
    """Whether anything is there: a file, a folder, a link to nothing, something that nobody may look into."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _is_made(path)
    except ValueError:
        return False
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _is_made(path: Path) -> bool:
    """Whether another file stands for this one: a GGUF file, or the configuration of MLC."""
    return members.contains(path) or mlc.contains(path)


def _made(path: Path) -> bytes:
    return members.read(path) if members.contains(path) else mlc.read(path)


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
