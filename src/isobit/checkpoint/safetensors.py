"""Safetensors headers: read, checked byte by byte against the file, never trusted. No tensor data is read here.

A file is: an unsigned 64-bit little-endian length, a JSON header of that length, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors, "Format"). Everything a hostile or damaged file could lie about is checked
before a byte of data is touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.files import open_regular, why
from isobit.checkpoint.jsonfile import parse_json, short
from isobit.errors import CheckpointError

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
LARGEST_TENSOR = 2**48  # elements along one axis, and in all: more than any disk holds
_MOST_AXES = 64  # what torch and numpy can hold
INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
WIDE = ("F64", "C64")  # not quantized either, and not computed with
PLAIN_DTYPES = ("BF16", "F16", "F32")  # that weights, norms and biases which are not quantized are read from
LFS_POINTER = b"version https://git-lfs"  # what a file that was not fetched begins with

# Safetensors dtype -> (bits per element, torch dtype name). None: torch, or isobit, has no such dtype.
DTYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F32": (32, "float32"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: tensor name.
        dtype: safetensors dtype name, e.g. ``BF16``.
        shape: sizes; ``()`` for a scalar.
        file: the file it is in.
        begin: offset of its first byte in the file.
        end: offset behind its last byte in the file, if its elements lie in the order of its rows.
        strides: None if they do; otherwise (in ``.bin`` files) elements from one to the next along each axis.
        data: what it holds, of a small one that the file says in another way, and that lies nowhere in it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int
    strides: tuple[int, ...] | None = None
    data: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.begin

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of the data.

        Raises:
            CheckpointError: there is none that isobit can read.
        """
        import torch

        name = DTYPES.get(self.dtype, (0, None))[1]  # GGUF has types of its own
        if name is None or not hasattr(torch, name):
            raise CheckpointError(
                f"dtype {self.dtype} cannot be read by isobit; it reads {', '.join(readable_dtypes())}",
                file=self.file,
                tensor=self.name,
            )
        dtype: torch.dtype = getattr(torch, name)
        return dtype


def readable_dtypes() -> list[str]:
    """Names of the safetensors dtypes that can be read as tensors."""
    return [name for name, (_, torch_name) in DTYPES.items() if torch_name is not None]


def dtype_name(torch_dtype: torch.dtype) -> str | None:
    """The safetensors name of a torch dtype, or None if there is none."""
    wanted = str(torch_dtype).removeprefix("torch.")
    return next((name for name, (_, torch_name) in DTYPES.items() if torch_name == wanted), None)


def read_header(path: Path | str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Reads and checks the header of a safetensors file.

    Returns:
        The tensors by name, with absolute offsets, in the order of the file's data; and the file's metadata.

    Raises:
        CheckpointError: the file is missing, truncated, or its header is wrong in any way; names file and tensor.
    """
    path = Path(path)
    header, data_begin, file_size = _header_bytes(path)
    if not header.lstrip(b" \t\r\n").startswith(b"{"):
        raise CheckpointError(
            "the header is not a JSON object: this is no safetensors file, or it is damaged", file=path
        )
    entries = parse_json(header, path, "the header")
    metadata = _metadata(entries.pop("__metadata__", None), path)
    infos = [_tensor(name, entry, path, data_begin, file_size) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.begin, info.end))
    _check_layout(infos, path, data_begin, file_size)
    return {info.name: info for info in infos}, metadata


def _header_bytes(path: Path) -> tuple[bytes, int, int]:
    """(header, offset of the data, file size)."""
    try:
        with open(open_regular(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            require_no_pointer(file.read(len(LFS_POINTER)), path)
            file.seek(0)
            if size < 8:
                raise CheckpointError(f"the file has {size} bytes: too short for a safetensors header", file=path)
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise CheckpointError(
                    f"the header claims {length} bytes, more than the {LARGEST_HEADER} the format allows:"
                    " this is no safetensors file, or it is damaged",
                    file=path,
                )
            if 8 + length > size:
                raise CheckpointError(
                    f"the header claims {length} bytes but the file has only {size}:"
                    " the file is truncated or damaged; download it again",
                    file=path,
                )
            return file.read(length), 8 + length, size
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=path) from None


def require_no_pointer(start: bytes, path: Path) -> None:
    """The file that begins with ``start`` must not be the text that Git LFS leaves in its place.

    Raises:
        CheckpointError: it is.
    """
    if start == LFS_POINTER:
        raise CheckpointError(
            "is only a pointer of Git LFS to the real file: run `git lfs pull` in the folder", file=path
        )


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError("__metadata__ in the header must map strings to strings", file=path)
    return value


def _tensor(name: str, entry: Any, path: Path, data_begin: int, file_size: int) -> TensorInfo:
    def wrong(message: str) -> CheckpointError:
        return CheckpointError(message, file=path, tensor=name)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise wrong("its header entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong(f"unknown dtype {short(dtype)}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise wrong(f"shape {short(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise wrong(f"data_offsets {short(offsets)} are not two byte offsets")
    begin, end = offsets
    if begin > end:
        raise wrong(f"its data ends at byte {end}, before it begins at byte {begin}")
    if data_begin + end > file_size:
        raise wrong(
            f"its data ends at byte {data_begin + end} but the file has only {file_size} bytes:"
            " the file is truncated; download it again"
        )
    if len(shape) > _MOST_AXES:
        raise wrong(f"shape {short(shape)} has {len(shape)} axes; {_MOST_AXES} are the most that can be read")
    if any(size > LARGEST_TENSOR for size in shape):  # before they are multiplied
        raise wrong(f"shape {short(shape)} is impossibly large")
    numel = math.prod(shape)
    if math.prod(max(size, 1) for size in shape) > LARGEST_TENSOR:  # strides must be numbers, too
        raise wrong(f"shape {short(shape)} is impossibly large")
    bits = numel * DTYPES[dtype][0]
    if bits % 8 or bits // 8 != end - begin:
        raise wrong(f"shape {short(shape)} of {dtype} needs {-(-bits // 8)} bytes but its data has {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), path, data_begin + begin, data_begin + end)


def _check_layout(infos: list[TensorInfo], path: Path, data_begin: int, file_size: int) -> None:
    """The data must follow the header without holes or overlaps, and fill the file."""
    position, previous = data_begin, "the header"
    for info in infos:
        if info.begin < position:
            raise CheckpointError(f"its data overlaps that of {previous}", file=path, tensor=info.name)
        if info.begin > position:
            raise CheckpointError(
                f"there are {info.begin - position} unexplained bytes between {previous} and its data",
                file=path,
                tensor=info.name,
            )
        position, previous = info.end, f"tensor {short(info.name)}"
    if position != file_size:
        raise CheckpointError(f"{file_size - position} bytes behind {previous} belong to no tensor", file=path)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def unreadable(dtype: str) -> str:
    """What is said of a weight, bias or norm of a dtype that is neither plain nor one of codes."""
    advice = "; save the model in float32 or bfloat16" if dtype in WIDE else ""
    readable = f"{', '.join(PLAIN_DTYPES)} or codes of a quantized weight"
    return f"is of dtype {dtype}, which cannot be read: weights are {readable}{advice}"
