"""A model in GGUF: one file, or the parts of one that was split, as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from isobit.checkpoint.gguf.header import Entry, Header, Value, read_header
from isobit.checkpoint.shown import short
from isobit.errors import CheckpointError

SPLIT = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
_MOST_PARTS = 1000


@dataclass(frozen=True)
class Gguf:
    """A model in GGUF.

    Attributes:
        path: the file, or the first part of one that was split.
        files: all parts.
        metadata: of the first part.
        tensors: of all parts, by the names they have there.
    """

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Entry]


def opened(path: Path) -> Gguf:
    """Reads and checks the headers of a file and of its other parts.

    Raises:
        CheckpointError: a file is damaged, a part is missing or belongs to something else; names file and tensor.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return _opened(path, 0, 0)
    return _opened(path, status.st_size, status.st_mtime_ns)


def first_part(path: Path) -> Path:
    """The first part of the file that this is a part of; itself where it was not split."""
    named = SPLIT.fullmatch(path.name)
    return path if named is None else path.with_name(f"{named['stem']}-00001-of-{named['parts']}.gguf")


@lru_cache(maxsize=2)  # every small file of a model asks for it
def _opened(path: Path, size: int, time: int) -> Gguf:
    first = read_header(path)
    count, number = _whole(first, "split.count", 1), _whole(first, "split.no", 0)
    if count > 1 and number:
        raise CheckpointError(f"is part {number + 1} of {count}: name the first one", file=path)
    headers = [first, *(_part(path, index, count) for index in range(1, count))]
    tensors: dict[str, Entry] = {}
    for header in headers:
        for name, entry in header.tensors.items():
            if name in tensors:
                message = f"is given twice, here and in {tensors[name].file.name}"
                raise CheckpointError(message, file=header.path, tensor=name)
            tensors[name] = entry
    promised = _whole(first, "split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise CheckpointError(f"says that its parts hold {promised} tensors; they hold {len(tensors)}", file=path)
    return Gguf(path, tuple(header.path for header in headers), first.metadata, tensors)


def _whole(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 20:
        raise CheckpointError(f"{key} is {short(value)}, which no file has", file=header.path)
    return value


def _part(path: Path, index: int, count: int) -> Header:
    named = SPLIT.fullmatch(path.name)
    if named is None or int(named["parts"]) != count or count > _MOST_PARTS:
        raise CheckpointError(
            f"is the first of {count} parts, whose names end in -00001-of-{count:05}.gguf and so on: give it its name"
            " back",
            file=path,
        )
    file = path.with_name(f"{named['stem']}-{index + 1:05}-of-{count:05}.gguf")
    if not file.is_file():
        raise CheckpointError(f"{file.name}, part {index + 1} of {count}, is missing: download it again", file=path)
    header = read_header(file)
    if (_whole(header, "split.count", 0), _whole(header, "split.no", 0)) != (count, index):
        raise CheckpointError(f"does not say that it is part {index + 1} of {count}", file=file)
    return header
