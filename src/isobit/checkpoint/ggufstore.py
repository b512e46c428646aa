"""The tensors of a GGUF file under a model's own names: blocks of quantized ones as bytes, rows in a model's order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from isobit.checkpoint.gguf import blocks
from isobit.checkpoint.gguf.types import BY_NAME, QUANTIZED
from isobit.checkpoint.ggufinfo import Order, gguf_tensors
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.store import FileStore, span
from isobit.errors import DamagedWeights, FormatError

_PLAIN = Order()


class GgufStore(FileStore):
    """The tensors of a GGUF file and of its other parts.

    A quantized tensor ``[N, K]`` is read as its bytes, uint8 ``[N, bytes of a row]``; columns are bytes of it then.
    """

    def __init__(
        self, path: Path, files: Iterable[Path], tensors: Mapping[str, TensorInfo], orders: Mapping[str, Order]
    ) -> None:
        super().__init__(path, files, tensors)
        self._orders = orders
        self._bytes = FileStore(path, self.files, {name: _as_bytes(info) for name, info in tensors.items()})

    def renamed(self, names: Mapping[str, str]) -> GgufStore:
        """See :meth:`Store.renamed`."""
        tensors = {
            new: replace(info, name=new) for old, info in self.tensors.items() for new in (names.get(old, old),)
        }  # fmt: skip
        orders = {names.get(old, old): order for old, order in self._orders.items()}
        return GgufStore(self.path, self.files, tensors, orders)

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None, *, mmap: bool = False) -> Tensor:
        """See :meth:`Store.read`; what is in another order than a model's is copied."""
        order = self._orders.get(name, _PLAIN)
        if order.halves is not None:
            return self._joined(name, order.halves, rows, columns)
        if order.heads:
            found = self._in_order(name, order.heads, rows, columns)
        else:
            found = self._bytes.read(name, rows, columns, mmap=mmap)
        return (found.float() - order.offset).to(found.dtype) if order.offset else found

    def _joined(
        self, name: str, halves: tuple[TensorInfo, TensorInfo], rows: slice | None, columns: slice | None
    ) -> Tensor:
        """Of each head the rows of keys, which the file has transposed, and those of values."""
        info = self.info(name)
        first, last = span(info, 0, rows)
        left, right = span(info, 1, columns)
        keys, values = (self._numbers(half) for half in halves)
        whole = torch.cat([keys.transpose(1, 2), values], 1).reshape(info.shape)
        return whole[first:last, left:right].contiguous()

    def _numbers(self, info: TensorInfo) -> Tensor:
        """The numbers of a tensor of several matrices; of one that is quantized in float32."""
        bytes_of_it = FileStore(self.path, self.files, {info.name: _as_bytes(info)})
        found = bytes_of_it.read(info.name)
        if info.dtype not in QUANTIZED:
            return found
        try:
            wide = blocks.widened(info.dtype, found.flatten(0, 1), info.shape[-1])
        except FormatError as error:
            raise DamagedWeights(str(error), file=info.file, tensor=info.name) from None
        if not torch.isfinite(wide).all():
            message = "holds NaN or infinite scales: it was quantized from numbers that were too large"
            raise DamagedWeights(message, file=info.file, tensor=info.name)
        return wide.reshape(info.shape)

    def _in_order(self, name: str, heads: int, rows: slice | None, columns: slice | None) -> Tensor:
        """Rows whose rotation pairs the halves of a head, of a tensor where it pairs neighbours."""
        count = self.info(name).shape[0]
        width = count // heads
        begin, end = (0, count) if rows is None else (rows.start or 0, count if rows.stop is None else rows.stop)
        if (
            count % heads
            or width % 2
            or not 0 <= begin < end <= count
            or (rows is not None and rows.step not in (None, 1))
        ):
            return self._bytes.read(
                name, rows, columns
            )  # which says what is wrong with the rows; a shape is checked later
        first, last = begin // width * width, -(-end // width) * width
        found = self._bytes.read(name, slice(first, last), columns)
        halves = found.reshape(-1, width // 2, 2, *found.shape[1:]).transpose(1, 2).reshape(found.shape)
        return halves[begin - first : end - first].contiguous()


def gguf_store(path: Path) -> GgufStore:
    """The tensors of a file; its headers are read and checked, no data is.

    Raises:
        CheckpointError, Unsupported: as :func:`~isobit.checkpoint.ggufinfo.gguf_tensors`.
    """
    files, tensors, orders = gguf_tensors(path)
    return GgufStore(path, files, tensors, orders)


def _as_bytes(info: TensorInfo) -> TensorInfo:
    if info.dtype not in QUANTIZED:
        return info
    row = BY_NAME[info.dtype]
    return replace(info, dtype="U8", shape=(*info.shape[:-1], info.shape[-1] // row.weights * row.nbytes))
