"""Voices by name: a folder that has, for each, a recording and a text of the same name with what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from isobit.checkpoint.files import is_file, read_file
from isobit.checkpoint.folder import entries
from isobit.errors import UsageError
from isobit.media import LIMITS, Limits, Sound, sound

ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
BOUNDS = Limits(seconds=3600)  # of a file: what is too long is said in the words of voices
_NAME = re.compile(r"[\w.-]{1,64}")
_LARGEST_TEXT, _MOST = 1 << 16, 1000


def recording(path: Path) -> Sound:
    """The sound of a file.

    Raises:
        CheckpointError, UsageError: it cannot be read.
    """
    return sound(read_file(path, LIMITS.bytes), BOUNDS, name=f"the voice {path.name}")


def said_in(path: Path) -> str:
    """The text of a file.

    Raises:
        CheckpointError, UsageError: it cannot be read as text.
    """
    try:
        return read_file(path, _LARGEST_TEXT).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def text_beside(path: Path) -> Path:
    """Where what a recording says is looked for."""
    return path.with_suffix(".txt")


def voices_in(folder: Path) -> Mapping[str, Path]:
    """Name to recording, sorted.

    Raises:
        UsageError: there is none, a name cannot be one, or a recording has no text.
        CheckpointError: the folder cannot be listed.
    """
    found: dict[str, Path] = {}
    for path in entries(folder):
        if path.suffix.lower() not in ENDINGS or not is_file(path):
            continue
        if not _NAME.fullmatch(path.stem):
            raise UsageError(f"{path.name!r} cannot name a voice: use up to 64 letters, digits, _, . and -")
        if path.stem in found:
            raise UsageError(f"there are two recordings of the voice {path.stem!r} in {folder}")
        if not is_file(text_beside(path)):
            raise UsageError(f"the voice {path.name} needs {text_beside(path).name} beside it, with what it says")
        found[path.stem] = path
    if not found:
        raise UsageError(f"{folder} has no voices: recordings ({', '.join(ENDINGS)}), each with a .txt of what it says")
    if len(found) > _MOST:
        raise UsageError(f"{folder} has {len(found)} voices; {_MOST} are the most")
    return found
