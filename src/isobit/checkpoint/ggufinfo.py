"""Where the tensors of a GGUF file lie, as the headers of other files say it: under a model's own names. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from isobit.checkpoint.gguf.header import Entry
from isobit.checkpoint.gguf.members import tensors
from isobit.checkpoint.gguf.model import opened
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import CheckpointError


@dataclass(frozen=True)
class Order:
    """What is different about the numbers of a tensor.

    Attributes:
        heads: of how many heads the rows are to be put into Hugging Face's order; 0 where they are.
        offset: what is to be taken off every number.
        halves: the two tensors that this one is made of: of keys ``[heads, latent, k]``, and of values
            ``[heads, v, latent]``.
    """

    heads: int = 0
    offset: float = 0.0
    halves: tuple[TensorInfo, TensorInfo] | None = None


def gguf_tensors(path: Path) -> tuple[tuple[Path, ...], dict[str, TensorInfo], Mapping[str, Order]]:
    """The files of a model, its tensors by Hugging Face's names in the order of their data, and what is odd about some.

    The dtype of a quantized tensor is its type in GGUF (``Q4_K``), its shape that of the weight.

    Raises:
        CheckpointError: a file is damaged, or two tensors have the same name.
        Unsupported: isobit does not read the family.
    """
    gguf = opened(path)
    infos: dict[str, TensorInfo] = {}
    orders: dict[str, Order] = {}
    for part in tensors(gguf):
        entry, row = part.entry, part.entry.type
        if part.name in infos:
            raise CheckpointError("is given twice under names of old and new files", file=entry.file, tensor=entry.name)
        halves = None if part.beside is None else (_info(entry, entry.name), _info(part.beside, part.beside.name))
        if halves is None:
            infos[part.name] = _info(entry, part.name, part.shape, part.skip)
        else:  # made when it is read; what is said of where it lies is how much is read
            dtype = row.plain if row.plain and halves[0].dtype == halves[1].dtype else "F32"
            size = sum(half.nbytes for half in halves)
            infos[part.name] = TensorInfo(part.name, dtype, part.shape, entry.file, entry.begin, entry.begin + size)
        if part.heads or part.offset or halves:
            orders[part.name] = Order(part.heads, part.offset, halves)
    return gguf.files, infos, orders


def _info(entry: Entry, name: str, shape: tuple[int, ...] | None = None, skip: int = 0) -> TensorInfo:
    row, shape = entry.type, entry.shape if shape is None else shape
    begin = entry.begin + skip
    end = begin + math.prod(shape) // row.weights * row.nbytes
    return TensorInfo(name, row.plain or row.name, shape, entry.file, begin, end)
