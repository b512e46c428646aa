"""Whole numbers of small tensors, straight from files: sizes and texts that say how weights are stored. No torch."""

from __future__ import annotations

import struct

from isobit.checkpoint.files import open_regular
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import CheckpointError

_FORMATS = {"I64": "q", "U64": "Q", "I32": "i", "U32": "I", "I16": "h", "U16": "H", "I8": "b", "U8": "B"}
_LARGEST = 1 << 12  # bytes


def whole_numbers(info: TensorInfo) -> tuple[int, ...] | None:
    """The numbers of a tensor in the order of its rows; None where it is large, or not of whole numbers at all."""
    if info.dtype not in _FORMATS or not 0 < info.nbytes <= _LARGEST or info.strides is not None:
        return None
    try:
        data = info.data
        if data is None:
            with open(open_regular(info.file), "rb") as file:
                file.seek(info.begin)
                data = file.read(info.nbytes)
        return struct.unpack(f"<{info.numel}{_FORMATS[info.dtype]}", data)
    except (CheckpointError, OSError, struct.error):
        return None
