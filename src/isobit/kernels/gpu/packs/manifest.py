"""What a kernel pack is on disk: a folder with ``manifest.json`` and one ``.cubin`` per kernel. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isobit.errors import CheckpointError
from isobit.kernels.gpu.compile.request import Request

MANIFEST = "manifest.json"
VERSION = 2
_MOST_BYTES = 64 << 20  # of a manifest; a larger one is not ours


@dataclass(frozen=True)
class TiledCopy:
    """How TMA copies blocks of a matrix, as a descriptor says it.

    Attributes:
        dtype: of the elements, as Triton calls it.
        box: rows and columns of one copy; a block is as many as it takes.
        swizzle: how it lies in shared memory, as the driver counts that (``CUtensorMapSwizzle``).
    """

    dtype: str
    box: tuple[int, int]
    swizzle: int


@dataclass(frozen=True)
class PackedKernel:
    """One kernel of a pack.

    Attributes:
        request: what was compiled.
        key: ``request.key``: changes with the kernel's sources and with Triton.
        file: the machine code, a file in the pack's folder.
        sha256: of that file.
        symbol: name of the kernel in the machine code.
        threads: threads of a block.
        shared: bytes of dynamic shared memory of a block.
        overlaps: whether it may start before its predecessor on the stream has ended.
        parameters: bytes of every parameter of the machine code, in order: the kernel's run-time arguments, and then
            addresses of scratch memory, which none of our kernels uses. A descriptor is five: itself, rows and
            columns, and the strides of both.
        copies: of each descriptor, in the order of the arguments.
    """

    request: Request
    key: str
    file: str
    sha256: str
    symbol: str
    threads: int
    shared: int
    overlaps: bool
    parameters: tuple[int, ...]
    copies: tuple[TiledCopy, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A pack without its machine code.

    Attributes:
        isobit, triton: versions that made it.
        target: name of the target it runs on.
        model: what it was made for, for people.
        dtype: dtype of the activations.
        kernels: all of them.
    """

    isobit: str
    triton: str
    target: str
    model: str
    dtype: str
    kernels: tuple[PackedKernel, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return {"format": "isobit kernel pack", "version": VERSION, **asdict(self)}


def digest(data: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks a pack's description; the machine code is not looked at.

    Raises:
        CheckpointError: the folder is no pack, or one of another version of the format.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError("is too large to be the manifest of a kernel pack", file=path)
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"is no kernel pack: it has no {MANIFEST}", file=folder) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", file=path) from error
    if not isinstance(fields, dict) or fields.pop("format", None) != "isobit kernel pack":
        raise CheckpointError("is not the manifest of a kernel pack", file=path)
    if (version := fields.pop("version", None)) != VERSION:
        raise CheckpointError(f"has version {version}; this isobit reads version {VERSION}: make it again", file=path)
    try:
        return Manifest(**{**fields, "kernels": tuple(_kernel(row) for row in fields["kernels"])})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is damaged: {error}; make the pack again", file=path) from error


def _kernel(fields: Mapping[str, Any]) -> PackedKernel:
    request = dict(fields["request"])
    request["backend"] = tuple(_sequence(request["backend"]))
    request["aligned"] = tuple(_sequence(request["aligned"]))
    name = fields["file"]
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"the file name {name!r} leads out of the pack")
    parameters = tuple(int(size) for size in _sequence(fields["parameters"]))
    copies = tuple(TiledCopy(**{**one, "box": tuple(_sequence(one["box"]))}) for one in _sequence(fields["copies"]))
    return PackedKernel(**{**fields, "request": Request(**request), "parameters": parameters, "copies": copies})


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value
