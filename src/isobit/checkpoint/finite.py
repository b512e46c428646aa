"""Numbers that are none, NaN and infinity, looked for in files: among scales and weights, in bounded bytes. No torch.

Loading looks at every number that it reads, and refuses these. What describes or plans a model reads no weights, and
looks here at as many bytes as it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isobit.checkpoint.files import open_regular
from isobit.checkpoint.gguf.header import Entry
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import CheckpointError

# Dtype -> bytes of a number, and the bits that all of its codes of NaN and infinity have in common, and no others.
_BITS: dict[str, tuple[int, int]] = {
    "F64": (8, 0x7FF0 << 48),
    "F32": (4, 0x7F80 << 16),
    "BF16": (2, 0x7F80),
    "F16": (2, 0x7C00),
    "F8_E5M2": (1, 0x7C),
    "F8_E4M3": (1, 0x7F),
    "F8_E8M0": (1, 0xFF),
}
_POWERS = "F8_E8M0"  # as which scales are read that are stored as bytes
_AT_ONCE = 8 << 20  # bytes
_LISTED = 3  # names
LOOKED_AT = 256 << 20  # bytes that describing and planning a model may read


@dataclass(frozen=True)
class Place:
    """Where numbers lie.

    Attributes:
        name: of the tensor.
        file: the file it is in.
        begin, size: its bytes.
        dtype: of the numbers.
        block: bytes from one to the next.
        offsets: where they lie in a block.
    """

    name: str
    file: Path
    begin: int
    size: int
    dtype: str
    block: int
    offsets: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        names: tensors that hold NaN or infinite numbers.
        looked, left: bytes that were looked at, and that were not, as there were more than were allowed.
    """

    names: tuple[str, ...] = ()
    looked: int = 0
    left: int = 0

    @property
    def tensors(self) -> str:
        """The tensors by name, the first of them where there are many."""
        rest = len(self.names) - _LISTED
        return ", ".join(self.names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")

    def said(self, what: str) -> tuple[str, ...]:
        """What a person should know of it, where there is anything; ``what`` was looked at, e.g. ``scales``."""
        found = f"NaN or infinite {what} in {self.tensors}: isobit does not load this"
        part = (
            f"NaN was looked for in the first {self.looked >> 20:,} MiB of {what}, and not in {self.left >> 20:,} MiB:"
            " loading looks at all of them"
        )
        return (*((found,) if self.names else ()), *((part,) if self.left else ()))


def of_numbers(info: TensorInfo) -> Place | None:
    """A tensor of numbers in a file whose header says where they lie; None for one of other dtypes."""
    dtype = _POWERS if info.dtype == "U8" and info.name.endswith(".weight_scale") else info.dtype
    if dtype not in _BITS:
        return None
    size = _BITS[dtype][0]
    return Place(info.name, info.file, info.begin, info.nbytes // size * size, dtype, size)


def of_blocks(entry: Entry) -> Place | None:
    """A tensor of a GGUF file: its numbers, or the float16 ones that stand in its blocks; None where there are none."""
    row = entry.type
    if row.plain in _BITS:
        return Place(entry.name, entry.file, entry.begin, entry.nbytes, row.plain, row.nbytes)
    if not row.halves:
        return None
    return Place(entry.name, entry.file, entry.begin, entry.nbytes, "F16", row.nbytes, row.halves)


def look(places: Iterable[Place | None], most: int) -> Look:
    """Looks for NaN and infinity.

    Args:
        places: where to; None is passed over.
        most: bytes of files to read at most. What is behind them is not looked at.

    Raises:
        CheckpointError: a file cannot be read.
    """
    names: list[str] = []
    looked = left = 0
    for place in places:
        if place is None:
            continue
        size = min(place.size, max(0, most - looked)) // place.block * place.block
        looked, left = looked + size, left + place.size - size
        if size and any(_strange(place, data) for data in _read(place, size)):
            names.append(place.name)
    return Look(tuple(dict.fromkeys(names)), looked, left)


def _read(place: Place, size: int) -> Iterator[bytes]:
    """The first bytes of a place, whole blocks at a time."""
    step = max(1, _AT_ONCE // place.block) * place.block
    try:
        with open(open_regular(place.file), "rb", buffering=0) as file:
            file.seek(place.begin)
            while size > 0:
                data = file.read(min(step, size))
                whole = len(data) // place.block * place.block
                if not whole:
                    raise CheckpointError("the file was cut off while it was read", file=place.file, tensor=place.name)
                file.seek(whole - len(data), 1)
                size -= whole
                yield data[:whole]
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", file=place.file, tensor=place.name) from None


def _strange(place: Place, data: bytes) -> bool:
    import numpy as np

    size, bits = _BITS[place.dtype]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, place.block)
    for offset in place.offsets:
        codes = np.ascontiguousarray(blocks[:, offset : offset + size]).view(f"<u{size}")
        if bool(((codes & codes.dtype.type(bits)) == bits).any()):
            return True
    return False
