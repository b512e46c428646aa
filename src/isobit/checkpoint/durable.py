"""Writing that is on the disk when it says so: files, folders and the lock on a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from isobit.checkpoint.files import is_folder
from isobit.errors import UsageError


def pwrite(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Writes all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def write_file(path: Path, content: bytes) -> None:
    """Writes a file and its data to the disk; its name is durable once the folder is synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """Free space on the disk of ``path``, which need not exist."""
    return shutil.disk_usage(existing_folder(path)).free


def existing_folder(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return next((folder for folder in (path, *path.absolute().parents) if is_folder(folder)), Path("/"))


def lock_folder(folder: Path, name: str, what: str) -> int:
    """Takes the lock file ``name`` in ``folder``, making both; the kernel frees it when the descriptor or we are gone.

    Raises:
        UsageError: another process holds it; says that it is writing to ``what``.
    """
    path = folder / name
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(f"another process is writing to {what}: wait for it, or end it") from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just finished and removed the file: look again
