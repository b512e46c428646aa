"""A folder where what was measured is kept, so that an interrupted evaluation goes on and nothing is computed twice.

A result is found again by a key of everything that it depends on: every byte of the checkpoints, the text, the
settings, what ran the model, and isobit itself, its sources included. Files appear whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import types
import typing
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from isobit.checkpoint.durable import lock_folder, sync_folder, write_file
from isobit.checkpoint.files import is_file
from isobit.checkpoint.room import cannot_write
from isobit.errors import UsageError
from isobit.version import __version__

_LOCK = ".lock"
_CHUNK = 1 << 22  # bytes read at once
_T = TypeVar("_T")


class Work:
    """A folder of results.

    Args:
        folder: made if it isn't there.

    Raises:
        UsageError: it cannot be written, is something else, or another process works in it.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: this is no folder; name one where results can be kept")
        if folder.is_dir() and not (folder / _LOCK).exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: the folder has other files in it; name an empty or a new one")
        self.folder = folder
        try:
            self._lock = lock_folder(folder, _LOCK, str(folder))
        except OSError as error:
            raise cannot_write(folder, error) from error

    def close(self) -> None:
        """Others may work in it again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def find(self, kind: str, depends: Mapping[str, Any], type_: type[_T]) -> _T | None:
        """What was kept of something, or None; what cannot be read is measured again.

        Args:
            kind: of result: a folder of its own.
            depends: everything that the result depends on.
            type_: what it is: a frozen dataclass of JSON's types, tuples, and such dataclasses.
        """
        path = self._path(kind, depends)
        if not is_file(path):
            return None
        try:
            found: _T = revive(type_, json.loads(path.read_bytes())["result"])
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, kind: str, depends: Mapping[str, Any], result: Any) -> None:
        """Keep a result.

        Raises:
            CapacityError, UsageError: it cannot be written.
        """
        data = {"depends": dict(depends), "result": dataclasses.asdict(result)}
        path = self._path(kind, depends)
        write_whole(path, json.dumps(data, indent=1).encode())

    def _path(self, kind: str, depends: Mapping[str, Any]) -> Path:
        return self.folder / kind / f"{digest(depends)}.json"


def write_whole(path: Path, content: bytes) -> None:
    """A file that appears whole or not at all, and stays.

    Raises:
        CapacityError, UsageError: it cannot be written.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_file(made, content)
        made.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        made.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def digest(depends: Mapping[str, Any]) -> str:
    """A name for everything that something depends on."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:32]


def text_digest(*parts: str) -> str:
    """A name for texts, each by itself."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def own_digest() -> str:
    """isobit's version, a hash of its sources and kernels, and the versions of what computes with it."""
    import torch

    root = Path(__file__).resolve().parents[1]
    sources = sorted(
        path for path in root.rglob("*") if path.suffix in (".py", ".so", ".json") and "bundled" not in path.parts
    )
    of_files = hashlib.sha256()
    for path in sources:
        of_files.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{__version__} {of_files.hexdigest()[:16]} torch {torch.__version__} Python {platform.python_version()}"


def checkpoint_digest(folder: Path) -> str:
    """A name for what a checkpoint folder holds: every file of it, by name and content. Reads all of it."""
    files = sorted(path for path in folder.rglob("*") if is_file(path))
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        sums = list(pool.map(file_digest, files))
    return digest({str(path.relative_to(folder)): one for path, one in zip(files, sums, strict=True)})


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    about = path.stat()
    return _digest_of(path, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_of(path: Path, *about: int) -> str:
    """A file's hash; one that looks as it did before is not read again by the same process."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def revive(type_: Any, data: Any) -> Any:
    """A frozen dataclass out of what ``dataclasses.asdict`` and JSON have made of it.

    Raises:
        TypeError, KeyError, ValueError: it is no such thing.
    """
    origin = typing.get_origin(type_)
    if origin in (types.UnionType, typing.Union):
        return _revive_one_of(typing.get_args(type_), data)
    if origin is tuple:
        inner = typing.get_args(type_)
        many = len(inner) == 2 and inner[1] is Ellipsis
        each = [inner[0]] * len(data) if many else inner
        return tuple(revive(one, part) for one, part in zip(each, data, strict=True))
    if dataclasses.is_dataclass(type_):
        hints = typing.get_type_hints(type_, localns=_names())
        names = {field.name for field in dataclasses.fields(type_)}
        if not isinstance(data, dict) or set(data) != names:
            raise TypeError(f"no {type_}")
        return type_(**{name: revive(hints[name], data[name]) for name in names})  # type: ignore[operator]
    if type_ is float and isinstance(data, int):
        return float(data)
    if not isinstance(data, type_):
        raise TypeError(f"{data!r:.80} is no {type_}")
    return data


def _revive_one_of(types_: tuple[Any, ...], data: Any) -> Any:
    if data is None and type(None) in types_:
        return None
    for one in types_:
        if one is not type(None):
            try:
                return revive(one, data)
            except (TypeError, KeyError, ValueError):
                continue
    raise TypeError(f"{data!r:.80} is none of {types_}")


def _names() -> dict[str, Any]:
    """Classes that results name and import for type checkers alone."""
    from isobit.evaluation.fidelity import Fidelity
    from isobit.evaluation.likelihood import Likelihood

    return {"Fidelity": Fidelity, "Likelihood": Likelihood}
