"""Where the tensors of a GGUF file lie, as the headers of other files say it: under a model's own names. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """

    heads: int = 0
    offset: float = 0.0


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
        count = 1
        for size in part.shape:
            count *= size
        begin = entry.begin + part.skip
        end = begin + count // row.weights * row.nbytes
        infos[part.name] = TensorInfo(part.name, row.plain or row.name, part.shape, entry.file, begin, end)
        if part.heads or part.offset:
            orders[part.name] = Order(part.heads, part.offset)
    return gguf.files, infos, orders
