"""torch files that torch would not write: pickles put together by hand, in a zip file or in the older format."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


class Stored:
    """Stands for a storage that is saved under ``key``: ``count`` elements of a class of torch's."""

    def __init__(self, key: str, count: int, kind: Any = torch.FloatStorage, view: Any = None) -> None:
        self.key, self.count, self.kind, self.view = key, count, kind, view


class Call:
    """Is pickled as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def tensor(storage: Any, shape: Any, strides: Any, offset: Any = 0) -> Call:
    """What a saved tensor is."""
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, old: bool, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self._old = old

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Stored):
            return None
        saved = ("storage", value.kind, value.key, "cpu", value.count)
        return (*saved, value.view) if self._old else saved


def pickled(value: object, old: bool = False, protocol: int = 2) -> bytes:
    """The pickle of ``value``, with its storages by name."""
    file = io.BytesIO()
    _Pickler(file, old, protocol).dump(value)
    return file.getvalue()


def write_zip(path: Path, content: bytes | object, storages: dict[str, bytes], **more: Any) -> Path:
    """A zip file as torch writes it, of a value or of a pickle."""
    data = content if isinstance(content, bytes) else pickled(content, protocol=more.pop("protocol", 2))
    with zipfile.ZipFile(path, "w", more.pop("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, member in more.items():
            archive.writestr(f"archive/{name}", member)
        for key, stored in storages.items():
            archive.writestr(f"archive/data/{key}", stored)
    return path


def write_old(path: Path, content: bytes | object, storages: dict[str, tuple[int, bytes]], machine: Any = None) -> Path:
    """A file of the format before torch 1.6; each storage has the count that it claims, and its bytes."""
    data = content if isinstance(content, bytes) else pickled(content, old=True)
    little = {"protocol_version": 1001, "little_endian": True} if machine is None else machine
    parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, little)]
    parts += [data, pickle.dumps(list(storages), protocol=2)]
    parts += [struct.pack("<q", count) + stored for count, stored in storages.values()]
    path.write_bytes(b"".join(parts))
    return path
