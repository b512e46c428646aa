"""The sequences of a batch as the CPU kernels take them (``isobit_sequences`` of cpp/isobit_cpu.h)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.sequences import Sequences

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class Struct(ctypes.Structure):
    """isobit_sequences of isobit_cpu.h."""

    _fields_ = (
        ("count", _SIZE),
        ("tokens", _SIZE),
        ("starts", _POINTER),
        ("lengths", _POINTER),
        ("table", _POINTER),
        ("table_stride", _SIZE),
        ("slots", _POINTER),
        ("block", _SIZE),
        ("blocks", _SIZE),
    )


def struct(sequences: Sequences, tokens: int, blocks: int) -> Struct:
    """The sequences of ``tokens`` new tokens whose cache has ``blocks`` blocks; valid while their tensors are there.

    What the tensors say is looked at by the library, before it writes anything.

    Raises:
        FormatError: a tensor has another shape or dtype than :class:`Sequences` says, is not contiguous, or is not in
            this machine's memory.
    """
    starts, lengths, table, slots = sequences.starts, sequences.lengths, sequences.table, sequences.slots
    count = lengths.numel()
    stride = table.numel() // count if count else 0
    for what, part, dtype, shape in (
        ("starts of sequences", starts, torch.int32, (count + 1,)),
        ("lengths of sequences", lengths, torch.int32, (count,)),
        ("table of blocks", table, torch.int32, (count, stride)),
        ("slots of tokens", slots, torch.int64, (tokens,)),
    ):
        if part.dtype is not dtype or part.shape != shape or not part.is_contiguous() or not part.is_cpu:
            raise FormatError(f"{what}: {_described(dtype, shape)}, contiguous on the CPU, not {_found(part)}")
    pointers = starts.data_ptr(), lengths.data_ptr(), table.data_ptr()
    return Struct(count, tokens, *pointers, stride, slots.data_ptr(), sequences.block, blocks)


def _described(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _found(part: Tensor) -> str:
    apart = "" if part.is_contiguous() else " not contiguous"
    return f"{_described(part.dtype, tuple(part.shape))}{apart} on {part.device.type}"
