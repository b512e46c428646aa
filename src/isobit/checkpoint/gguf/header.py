"""The header of one GGUF file: metadata and where tensors lie, every number in it held against the file first.

A file is: magic, version, how many tensors and how many pieces of metadata; the metadata; a name, sizes, type and
offset for each tensor; padding; the tensors' bytes (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). What
a count promises must fit into what is left of the file before anything is made for it, so that memory stays in
proportion to the file's header, and no header is read that is larger than any model needs.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from isobit.checkpoint.gguf.types import GONE, TYPES, BlockType
from isobit.checkpoint.regular import open_regular, why
from isobit.checkpoint.shown import short
from isobit.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

LARGEST_HEADER = 256 << 20  # bytes of metadata and tensor entries: vocabularies of a quarter of a million have 12 MB
MOST_TENSORS = 1 << 20
MOST_KEYS = 1 << 16
MOST_ELEMENTS = 1 << 24  # of one array
LARGEST_TENSOR = 2**48  # numbers, as in safetensors files
LARGEST_ALIGNMENT = 1 << 20
_LONGEST_NAME = 1024  # bytes of a key or a tensor's name
_MOST_AXES = 4
_CHUNK = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Number of a type of metadata -> how struct reads it.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_ITEM = {code: struct.calcsize(f"<{code}") for code in {*_SCALARS.values()}}

Value = bool | int | float | str | Sequence[int] | Sequence[float] | tuple[str, ...] | tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies.

    Attributes:
        name: as the file has it.
        type: how its numbers are stored.
        shape: sizes, rows first (the file has them the other way round).
        file: the file it is in.
        begin: offset of its first byte in the file.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    file: Path
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) // self.type.weights * self.type.nbytes


@dataclass(frozen=True)
class Header:
    """What stands in front of the data of one file.

    Attributes:
        path: the file.
        version: of the format.
        metadata: by key; arrays of numbers as arrays, those of texts as tuples.
        tensors: by name, in the order of the data.
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Entry]


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as GGUF files do; False for what cannot be read."""
    try:
        with open(open_regular(path), "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (CheckpointError, OSError):
        return False


def read_header(path: Path) -> Header:
    """Reads and checks the header of a file.

    Raises:
        CheckpointError: the file is missing, cut off, or its header is wrong in any way; names file and tensor.
    """
    try:
        with open(open_regular(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _read(_Cursor(file, size, path))
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None


class _Cursor:
    """Reads a header from its beginning; no more than the file has, and no more than a header may have."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file, self.size, self.path = file, size, path
        self._limit = min(size, LARGEST_HEADER)
        self._chunk = b""
        self._at = 0  # in the chunk
        self._begin = 0  # of the chunk in the file

    @property
    def position(self) -> int:
        return self._begin + self._at

    @property
    def left(self) -> int:
        """Bytes that the header may still have."""
        return self._limit - self.position

    def fail(self, message: str, tensor: str | None = None) -> NoReturn:
        raise CheckpointError(message, file=self.path, tensor=tensor)

    def require(self, count: int, least: int, what: str) -> None:
        """That ``count`` things of at least so many bytes can follow."""
        if count * least <= self.left:
            return
        if self._limit < self.size:
            self.fail(f"{what}: its header is larger than the {LARGEST_HEADER:,} bytes that are read")
        self.fail(f"{what}, but the file ends {self.left:,} bytes later: it is cut off or damaged; download it again")

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        if self._at + count > len(self._chunk):
            self.require(count, 1, what)
            rest = self._chunk[self._at :]
            self._begin, self._at = self.position, 0
            self._chunk = rest + self._file.read(max(count - len(rest), _CHUNK))
            if len(self._chunk) < count:
                self.fail("the file was cut off while it was read")
        begin, self._at = self._at, self._at + count
        return self._chunk[begin : self._at]

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack(f"<{code}", self.take(_ITEM[code], what))[0])

    def text(self, what: str, longest: int | None = None) -> str:
        """A text with its length in front."""
        length = self.number("Q", what)
        if longest is not None and length > longest:
            self.fail(f"{what} has {length:,} bytes; {longest:,} are the most")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8 text: {short(data)}")


def _read(cursor: _Cursor) -> Header:
    start = cursor.take(min(cursor.size, 4), "the magic number")
    if start != MAGIC:
        cursor.fail(f"does not begin with {MAGIC.decode()} but with {short(start)}: this is no GGUF file")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        why_not = (
            "its numbers are big-endian" if swapped in VERSIONS else f"isobit reads {VERSIONS[0]} and {VERSIONS[1]}"
        )
        cursor.fail(f"is GGUF of version {version}: {why_not}; convert the model again")
    tensors, keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        cursor.fail(f"claims {tensors:,} tensors and {keys:,} keys; {MOST_TENSORS:,} and {MOST_KEYS:,} are the most")
    cursor.require(keys, 13, f"claims {keys:,} keys")
    metadata: dict[str, Value] = {}
    for _ in range(keys):
        key = cursor.text("the name of a key", _LONGEST_NAME)
        if key in metadata:
            cursor.fail(f"the key {short(key)} is given twice")
        metadata[key] = _value(cursor, key)
    alignment = _alignment(cursor, metadata)
    cursor.require(tensors, 24, f"claims {tensors:,} tensors")
    entries = [_entry(cursor) for _ in range(tensors)]
    data = -(-cursor.position // alignment) * alignment
    found = _placed(cursor, entries, data, alignment)
    return Header(cursor.path, version, metadata, found)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or not 1 <= alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):  # type: ignore[operator]
        cursor.fail(f"general.alignment is {short(alignment)}, which is no power of two up to {LARGEST_ALIGNMENT:,}")
    return int(alignment)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- metadata


def _value(cursor: _Cursor, key: str) -> Value:
    what = f"the value of {short(key)}"
    kind = cursor.number("I", what)
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _SCALARS:
        cursor.fail(f"{what} is of type {kind}, which the format does not have")
    code = _SCALARS[kind]
    found: int | float = struct.unpack(f"<{code}", cursor.take(_ITEM[code], what))[0]
    return _flag(cursor, int(found), what) if kind == _BOOL else found


def _array(cursor: _Cursor, what: str) -> Value:
    kind, count = cursor.number("I", what), cursor.number("Q", what)
    if count > MOST_ELEMENTS:
        cursor.fail(f"{what} is a list of {count:,}; {MOST_ELEMENTS:,} are the most")
    if kind == _STRING:
        cursor.require(count, 8, f"{what} is a list of {count:,}")
        return tuple(cursor.text(what) for _ in range(count))
    if kind not in _SCALARS:
        cursor.fail(f"{what} is a list of {'lists' if kind == _ARRAY else f'type {kind}'}, which isobit does not read")
    code = _SCALARS[kind]
    cursor.require(count, _ITEM[code], f"{what} is a list of {count:,}")
    data = cursor.take(count * _ITEM[code], what)
    if kind == _BOOL:
        return tuple(_flag(cursor, byte, what) for byte in data)
    found: array[int] | array[float] = array(code, data)
    return found


def _flag(cursor: _Cursor, value: int, what: str) -> bool:
    if value not in (0, 1):
        cursor.fail(f"{what} is {value}, neither true (1) nor false (0)")
    return bool(value)


# ---------------------------------------------------------------------- tensors


def _entry(cursor: _Cursor) -> tuple[str, BlockType, tuple[int, ...], int]:
    """Name, type, shape and offset within the data of one tensor."""
    name = cursor.text("the name of a tensor", _LONGEST_NAME)
    axes = cursor.number("I", "the axes of a tensor")
    if not 1 <= axes <= _MOST_AXES:
        cursor.fail(f"has {axes} axes; 1 to {_MOST_AXES} are possible", name)
    sizes = struct.unpack(f"<{axes}Q", cursor.take(8 * axes, "the sizes of a tensor"))
    number, offset = cursor.number("I", "the type of a tensor"), cursor.number("Q", "the place of a tensor")
    if any(not 1 <= size <= LARGEST_TENSOR for size in sizes) or math.prod(sizes) > LARGEST_TENSOR:
        cursor.fail(f"has sizes {short(list(sizes))}, which no tensor has", name)
    row = TYPES.get(number)
    if row is None:
        gone = GONE.get(number)
        cursor.fail(
            f"is of type {number}{f' ({gone}), which files no longer have' if gone else ', which isobit does not know'}"
            "; convert the model again with a recent llama.cpp",
            name,
        )
    if sizes[0] % row.weights:
        cursor.fail(f"has rows of {sizes[0]:,} numbers, but {row.name} stores {row.weights} together", name)
    return name, row, tuple(reversed(sizes)), offset


def _placed(
    cursor: _Cursor, entries: list[tuple[str, BlockType, tuple[int, ...], int]], data: int, alignment: int
) -> dict[str, Entry]:
    """The tensors in the order of their data: inside the file, aligned, and each byte of one at most."""
    found: dict[str, Entry] = {}
    for name, row, shape, offset in entries:
        if name in found:
            cursor.fail("is given twice", name)
        if offset % alignment:
            cursor.fail(f"begins at byte {offset:,} of the data, which is no multiple of {alignment}", name)
        entry = found[name] = Entry(name, row, shape, cursor.path, data + offset)
        if entry.begin + entry.nbytes > cursor.size:
            cursor.fail(
                f"its data ends at byte {entry.begin + entry.nbytes:,} but the file has only {cursor.size:,}:"
                " it is cut off; download it again",
                name,
            )
    ordered: list[Entry] = sorted(found.values(), key=lambda entry: entry.begin)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if other.begin < one.begin + one.nbytes:
            cursor.fail(f"its data overlaps that of tensor {short(one.name)}", other.name)
    return {entry.name: entry for entry in ordered}
