"""Old ``pytorch_model*.bin`` files: where their tensors lie, and that they are there. Nothing is unpickled or loaded.

Files in torch's zip format (since 1.6) hold a pickle that names the tensors, and one uncompressed member for each
storage; older ones hold the pickle, the storages' names and then the storages. What a file claims is held against the
bytes it has before anything is allocated; tensors are read from there like those of safetensors files.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isobit.checkpoint.files import open_regular, why
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.pickles import STORAGES, Damaged, Other, Refused, Storage, Strided, read_pickle
from isobit.checkpoint.safetensors import DTYPES, LARGEST_TENSOR, LFS_POINTER, TensorInfo, require_no_pointer
from isobit.errors import CheckpointError

LARGEST_PICKLE = 64 << 20  # bytes that name the tensors: 100,000 of them need about 20 MB
MOST_MEMBERS = 500_000  # of a zip file

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what files before torch 1.6 begin with
_UNREADABLE = (zipfile.BadZipFile, struct.error, ValueError, LookupError, ArithmeticError, RuntimeError)
_LOCAL_HEADER = b"PK\3\4"

# torch's name of a dtype -> safetensors' name and bytes per element.
_DTYPES = {name: (safe, bits // 8) for safe, (bits, name) in DTYPES.items() if name is not None}
_ITEMSIZES = {name: 1 for name in STORAGES.values()} | {name: size for name, (_, size) in _DTYPES.items()}
_ITEMSIZES |= {"complex128": 16, "qint32": 4}


@dataclass(frozen=True)
class _Extent:
    """Where a storage lies in the file, in bytes."""

    begin: int
    size: int


def read_bin_header(
    path: Path, inside: str | None = None, take: Callable[[object], object] | None = None
) -> dict[str, TensorInfo]:
    """Names, dtypes, shapes and places of the tensors of a ``.bin`` file.

    Args:
        path: of the file.
        inside: a key of its dictionary that may hold the tensors' own, as files that training writes have it; what is
            beside it is left alone.
        take: makes the dictionary of tensors of what the file holds, where that is something else.

    Raises:
        CheckpointError: the file cannot be read, claims more than it holds, or holds anything but a dictionary of
            dense tensors.
    """
    try:
        with open(open_regular(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            value, extents = _read(file, size, path)
            if inside is not None and isinstance(value, dict) and isinstance(value.get(inside), dict):
                value = value[inside]
            value = value if take is None else take(value)
            return dict(_tensors(value, extents, size, path))
    except Refused as error:
        raise CheckpointError(
            f"refused: {error}. A .bin file may hold tensors only, because anything else could run code."
            " Use a safetensors version of the model",
            file=path,
        ) from None
    except Damaged as error:
        raise CheckpointError(f"cannot be read as a torch file: {error}", file=path) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None


def _read(file: IO[bytes], size: int, path: Path) -> tuple[object, dict[str, _Extent]]:
    """What the pickle holds, and where the storages are."""
    start = file.read(len(LFS_POINTER))
    file.seek(0)
    require_no_pointer(start, path)
    if start.startswith(_LOCAL_HEADER):
        return _read_zip(file)
    if start.startswith(b"\x80"):
        return _read_old(file, size)
    raise Damaged("it begins neither as a zip file nor as one of torch's older files; download it again")


# ---------------------------------------------------------------------- zip files


def _read_zip(file: IO[bytes]) -> tuple[object, dict[str, _Extent]]:
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except _UNREADABLE as error:
        raise Damaged(f"its table of contents is damaged or missing ({short(str(error))}); download it again") from None
    if len(members) > MOST_MEMBERS:
        raise Damaged(f"it has {len(members):,} members; {MOST_MEMBERS:,} are the most that are read")
    names = {member.filename: member for member in members}
    if len(names) != len(members):
        raise Damaged("two of its members have the same name")
    root = members[0].filename.partition("/")[0] if members else ""
    if f"{root}/data.pkl" not in names:
        raise Damaged(f"it has no {short(root)}/data.pkl")
    if f"{root}/constants.pkl" in names:
        raise Refused("it is a TorchScript program")
    if f"{root}/byteorder" in names and _member(file, names[f"{root}/byteorder"], 16) != b"little":
        raise Damaged("its numbers are not little-endian")
    pickled = io.BytesIO(_member(file, names[f"{root}/data.pkl"], LARGEST_PICKLE))
    front = f"{root}/data/"
    storages = {name[len(front) :]: member for name, member in names.items() if name.startswith(front)}
    return read_pickle(pickled), _Extents(file, storages)


class _Extents(dict[str, _Extent]):
    """The storages of a zip file; each one's place is looked up when it is asked for."""

    def __init__(self, file: IO[bytes], members: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__()
        self._file, self._members = file, members

    def __missing__(self, key: str) -> _Extent:
        self[key] = _extent(self._file, self._members[key])
        return self[key]


def _member(file: IO[bytes], member: zipfile.ZipInfo, limit: int) -> bytes:
    extent = _extent(file, member)
    if extent.size > limit:
        raise Damaged(f"{short(member.filename)} has {extent.size:,} bytes, more than the {limit:,} that are read")
    file.seek(extent.begin)
    return file.read(extent.size)


def _extent(file: IO[bytes], member: zipfile.ZipInfo) -> _Extent:
    """Where the bytes of a member are: the table of contents must agree with what stands in front of them."""
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
        raise Damaged(f"{short(member.filename)} is compressed or encrypted, which torch never does; save it again")
    file.seek(member.header_offset)
    header = file.read(30)
    name_size, extra_size = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    begin = member.header_offset + 30 + name_size + extra_size
    name = file.read(name_size).decode("utf-8" if member.flag_bits & 0x800 else "cp437", errors="replace")
    if len(header) < 30 or not header.startswith(_LOCAL_HEADER) or name != member.orig_filename:
        raise Damaged(f"{short(member.filename)} is not where its table of contents says")
    return _Extent(begin, member.file_size)


# ---------------------------------------------------------------------- older files


def _read_old(file: IO[bytes], size: int) -> tuple[object, dict[str, _Extent]]:
    """Five pickles (magic number, protocol, the writer's machine, the dictionary, the storages' names), then data."""
    start = io.BytesIO(file.read(min(size, LARGEST_PICKLE)))
    if read_pickle(start) != _MAGIC or read_pickle(start) != _PROTOCOL:
        raise Damaged("it is no file of torch's")
    machine = read_pickle(start)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Damaged("its numbers are not little-endian")
    value = read_pickle(start)
    keys = read_pickle(start)
    itemsizes = {tensor.storage.key: _itemsize(tensor.storage) for tensor in _strided(value)}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise Damaged("its list of storages is damaged")
    extents, position = {}, start.tell()
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if key not in itemsizes:
            raise Damaged(f"no tensor uses its storage {short(key)}")
        extents[key] = _Extent(position + 8, count * itemsizes[key])
        position += 8 + extents[key].size
        if count < 0 or position > size:
            raise Damaged(f"its storages end at byte {position:,} but it has only {size:,}; download it again")
    if position != size:
        raise Damaged(f"{size - position:,} bytes behind its last storage belong to no tensor")
    return value, extents


def _strided(value: object) -> Iterator[Strided]:
    """All tensors, those of dictionaries in it too."""
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if isinstance(one, Strided):
            yield one
        elif isinstance(one, dict) and id(one) not in seen:  # a pickle can name one dictionary many times
            seen.add(id(one))
            left += one.values()


# ---------------------------------------------------------------------- tensors


def _tensors(
    value: object, extents: dict[str, _Extent], file_size: int, path: Path
) -> Iterator[tuple[str, TensorInfo]]:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise CheckpointError(f"holds a {kind}, not a dictionary of tensors", file=path)
    for name, tensor in value.items():
        if isinstance(name, str) and isinstance(tensor, Other):
            raise CheckpointError(f"is not a plain dense tensor ({tensor.what})", file=path, tensor=name)
        if not isinstance(name, str) or not isinstance(tensor, Strided):
            kind = "tensor" if isinstance(tensor, (Strided, Other)) else type(tensor).__name__
            raise CheckpointError(f"entry {short(name)} is a {kind}, not a named tensor", file=path)
        try:
            name.encode()
            yield name, _info(name, tensor, extents, file_size, path)
        except UnicodeEncodeError:
            raise CheckpointError(f"the name {short(name)} is not text", file=path) from None
        except Damaged as error:
            raise CheckpointError(str(error), file=path, tensor=name) from None


def _info(name: str, tensor: Strided, extents: dict[str, _Extent], file_size: int, path: Path) -> TensorInfo:
    """Where a tensor lies; every byte of it is in the file, and all of them are no more than the file has."""
    if tensor.dtype not in _DTYPES:
        raise Damaged(f"dtype {short(tensor.dtype)} cannot be read by isobit")
    dtype, itemsize = _DTYPES[tensor.dtype]
    storage = tensor.storage
    try:
        extent = extents[storage.key]
    except KeyError:
        raise Damaged(f"its storage {short(storage.key)} is missing from the file; download it again") from None
    unit = _itemsize(storage)
    first = storage.root * unit
    held = storage.count * unit
    if first + held > extent.size or extent.begin + extent.size > file_size:
        raise Damaged(
            f"its storage should have {first + held:,} bytes, but the file has {extent.size:,} for it;"
            " download it again"
        )
    numel = math.prod(tensor.shape)
    if math.prod(max(size, 1) for size in tensor.shape) > LARGEST_TENSOR:
        raise Damaged(f"shape {short(tensor.shape)} is impossibly large")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if numel and (last + 1) * itemsize > held:
        raise Damaged(f"its last element is number {last:,} of a storage of {held // itemsize:,}")
    if numel * itemsize > file_size:
        raise Damaged(f"its {numel:,} elements need more bytes than the file has: it repeats a few of them")
    begin = extent.begin + first + tensor.offset * itemsize if numel else extent.begin
    in_order = not numel or _rows_in_order(tensor.shape, tensor.strides)
    return TensorInfo(
        name, dtype, tensor.shape, path, begin, begin + numel * itemsize, None if in_order else tensor.strides
    )


def _rows_in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one behind the other, row by row."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _itemsize(storage: Storage) -> int:
    return 1 if storage.dtype is None else _ITEMSIZES[storage.dtype]
