"""An append-only file of JSON lines that survives being killed at any moment.

A line counts once its newline is in the file. A torn last line is what a kill leaves behind: it is cut off. The first
line describes the job, so that lines of different jobs never mix. Each begins with its CRC-32, so that a flipped bit in
what it says is noticed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isobit.checkpoint.durable import pwrite
from isobit.checkpoint.files import is_there, read_file
from isobit.errors import CheckpointError

_LARGEST = 1 << 30  # bytes


class Journal:
    """The journal of one output; make one with :meth:`create` or :meth:`open`.

    Attributes:
        job: the first line.
        entries: all other lines.
    """

    def __init__(self, path: Path, job: dict[str, Any], entries: list[dict[str, Any]], size: int) -> None:
        self.job = job
        self.entries = entries
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, size)  # cuts off a torn last line
        self._size = size

    @classmethod
    def create(cls, path: Path, job: dict[str, Any]) -> Journal:
        """A new journal; on return its first line is durable, its name is after the folder is synced."""
        path.write_bytes(b"")
        journal = cls(path, job, [], 0)
        journal._write([job])
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal | None:
        """The journal in this file; None if there is none or a kill left it without its first line.

        Raises:
            CheckpointError: a line other than the last is damaged.
        """
        if not is_there(path):
            return None
        data = read_file(path, _LARGEST)
        size = data.rfind(b"\n") + 1
        lines = [_parse(line, path) for line in data[:size].split(b"\n")[:-1]]
        return cls(path, lines[0], lines[1:], size) if lines else None

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Adds lines; they are durable on return."""
        new = list(entries)
        self._write(new)
        self.entries.extend(new)

    def has(self, key: str) -> bool:
        """Whether some line has this key."""
        return any(key in entry for entry in self.entries)

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        os.close(self._descriptor)

    def _write(self, entries: list[dict[str, Any]]) -> None:
        data = b"".join(_line(entry) for entry in entries)
        pwrite(self._descriptor, data, self._size)
        os.fsync(self._descriptor)
        self._size += len(data)


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def entry_of(line: bytes) -> dict[str, Any] | None:
    """What a line without its end says; None if it is damaged."""
    text = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    value = entry_of(line)
    if value is None:
        raise CheckpointError(
            "this journal of an unfinished run is damaged, or of another version of isobit:"
            " start over without resuming (--no-resume)",
            file=path,
        )
    return value
