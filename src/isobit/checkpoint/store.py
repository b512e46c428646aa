"""Where the tensors of a checkpoint come from: names, header entries, and their data, all of it or rows and columns.

A :class:`Store` is what the layouts read from. :class:`FileStore` is the one for files whose headers say where each
tensor's elements lie: safetensors, and torch's old ``.bin``. Headers are read and checked when it is made; data is read
one tensor at a time, from any number of threads, and never more of it than was asked for, but for narrow columns: what
lies between those is read along, a few megabytes at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from isobit.checkpoint import mlcinfo
from isobit.checkpoint.files import open_regular, why
from isobit.checkpoint.folder import WeightFiles
from isobit.checkpoint.hqqfile import read_qmodel
from isobit.checkpoint.legacy import read_bin_header
from isobit.checkpoint.safetensors import TensorInfo, read_header
from isobit.errors import CheckpointError
from isobit.shortage import explain

_LARGEST_READ = 1 << 30  # bytes in one system call: Linux stops at 2 GiB
# Columns of a row are read by themselves where more than this lies between them and those of the next row; a system
# call costs about as much as copying so much from the page cache.
_WORTH_SKIPPING = 1 << 15  # bytes
_AT_ONCE = 4 << 20  # bytes of whole rows that narrow columns are picked from

# A kind of weight file -> what reads its header: the tensors of one file by name.
HEADERS = {"safetensors": lambda file: read_header(file)[0], "bin": read_bin_header, "hqq": read_qmodel}


class Store(Protocol):
    """Tensors by name, wherever they lie."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, ordered by file and position in it: the order to stream them in."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them."""
        ...

    def renamed(self, names: Mapping[str, str]) -> Store:
        """The same store with some tensors under other names: name now -> name to be."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Header entry of a tensor.

        Raises:
            CheckpointError: there is none of this name.
        """
        ...

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None, *, mmap: bool = False) -> Tensor:
        """Reads a tensor, or a part of it.

        Args:
            name: tensor name.
            rows: which part of the first axis: begin and end, without steps; None for all of it.
            columns: the same of the second axis.
            mmap: map the file into memory instead of copying, where that can be done: nothing is read before it is
                used, and pages count as resident once they are; for serving. The tensor must not be written to.

        Returns:
            the tensor in its own dtype, contiguous.

        Raises:
            CheckpointError: no such tensor, rows or columns, a dtype torch lacks, or the file changed since it was
                opened.
        """
        ...


class FileStore:
    """The tensors of some files.

    Attributes:
        path: the folder.
        files: the files.
        tensors: see :class:`Store`.
    """

    def __init__(self, path: Path, files: Iterable[Path], tensors: Mapping[str, TensorInfo]) -> None:
        self.path, self.files = path, tuple(files)
        self.tensors = dict(tensors)
        self._maps: dict[Path, Tensor] = {}
        self._whole: dict[str, TensorInfo] = {}  # listed as parts of themselves
        # A checkpoint much smaller than memory may stay in the page cache: the next run will be glad of it.
        self._drop_cache = sum(info.nbytes for info in self.tensors.values()) > _physical_memory() // 4

    def renamed(self, names: Mapping[str, str]) -> FileStore:
        """See :meth:`Store.renamed`."""
        twin = FileStore(self.path, self.files, {
            new: replace(info, name=new) for old, info in self.tensors.items() for new in (names.get(old, old),)
        })  # fmt: skip
        twin._maps, twin._drop_cache, twin._whole = self._maps, self._drop_cache, self._whole
        return twin

    def viewed(self, parts: Mapping[str, Iterable[TensorInfo]]) -> FileStore:
        """The same store with some tensors listed as parts of them, in their place: name -> the parts.

        The whole ones are still read under their names.
        """
        twin = FileStore(self.path, self.files, {
            part.name: part for name, info in self.tensors.items() for part in parts.get(name, (info,))
        })  # fmt: skip
        twin._maps, twin._drop_cache = self._maps, self._drop_cache
        twin._whole = self._whole | {name: self.tensors[name] for name in parts}
        return twin

    def info(self, name: str) -> TensorInfo:
        """See :meth:`Store.info`."""
        try:
            return self.tensors.get(name) or self._whole[name]
        except KeyError:
            raise CheckpointError("is missing from this checkpoint", file=self.path, tensor=name) from None

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None, *, mmap: bool = False) -> Tensor:
        """See :meth:`Store.read`.

        Columns are copied, never mapped, and so is what is not aligned to its dtype or does not lie in order of rows.
        """
        info = self.info(name)
        first, last = span(info, 0, rows)
        left, right = span(info, 1, columns)
        if columns is not None and len(info.shape) < 2:
            raise CheckpointError(f"has 0 columns; {left} to {right} were asked for", file=info.file, tensor=name)
        dtype, size = info.torch_dtype, info.torch_dtype.itemsize
        shape = (*(last - first, right - left)[: len(info.shape)], *info.shape[2:])
        if info.data is not None:
            whole = torch.frombuffer(bytearray(info.data), dtype=dtype).reshape(info.shape)
            return whole[first:last, left:right].clone() if len(info.shape) > 1 else whole[first:last].clone()
        if info.strides is not None:
            skipped = sum(begin * stride for begin, stride in zip((first, left), info.strides, strict=False))
            return self._gathered(info, info.begin + skipped * size, shape, info.strides)
        row = math.prod(info.shape[1:]) * size  # bytes
        if columns is not None and right - left != info.shape[1]:
            inner = math.prod(info.shape[2:]) * size
            part = self._columns(info, range(first, last), row, left * inner, right * inner)
            return part.flatten().view(dtype).reshape(shape)
        begin, count = info.begin + first * row, (last - first) * row if info.shape else size
        if mmap and count and begin % size == 0:
            return self._mapped(info, begin, count).view(dtype).reshape(shape)
        return self._pread(info, begin, count).view(dtype).reshape(shape)

    def _columns(self, info: TensorInfo, rows: range, row: int, left: int, right: int) -> Tensor:
        """Bytes ``left`` to ``right`` of rows of ``row`` bytes each."""
        width = right - left
        found = torch.empty((len(rows), width), dtype=torch.uint8)
        if row - width > _WORTH_SKIPPING:
            self._fill(info, ((info.begin + at * row + left, part) for at, part in zip(rows, found, strict=True)))
            return found
        step = max(1, _AT_ONCE // max(row, 1))
        for at in range(0, len(rows), step):
            part = found[at : at + step]
            whole = self._pread(info, info.begin + rows[at] * row, len(part) * row)
            part.copy_(whole.view(len(part), row)[:, left:right])
        return found

    def _mapped(self, info: TensorInfo, begin: int, size: int) -> Tensor:
        """Bytes of a tensor as a view of the mapped file (private: writing copies a page, the file stays)."""
        whole = self._maps.get(info.file)
        if whole is None:
            try:
                length = info.file.stat().st_size
                whole = torch.from_file(str(info.file), shared=False, size=length, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                if explain(error) is not None:
                    raise  # memory does not suffice: nothing is wrong with the file
                raise CheckpointError(f"cannot be mapped: {error}", file=info.file, tensor=info.name) from None
            whole = self._maps.setdefault(info.file, whole)
        if begin + size > whole.numel():
            raise CheckpointError("the file was cut off after it was opened", file=info.file, tensor=info.name)
        return whole[begin : begin + size]

    def _gathered(self, info: TensorInfo, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        """Elements that do not lie in the order of rows, the first at byte ``begin``, put into that order."""
        if 0 in shape:
            return torch.empty(shape, dtype=info.torch_dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        data = self._pread(info, begin, span * info.torch_dtype.itemsize).view(info.torch_dtype)
        return data.as_strided(shape, strides).clone(memory_format=torch.contiguous_format)

    def _pread(self, info: TensorInfo, offset: int, size: int) -> Tensor:
        """``size`` bytes from ``offset``, uint8, in memory of their own."""
        buffer = torch.empty(size, dtype=torch.uint8)
        self._fill(info, [(offset, buffer)])
        return buffer

    def _fill(self, info: TensorInfo, pieces: Iterable[tuple[int, Tensor]]) -> None:
        """Fills each piece, contiguous uint8, with the bytes of the file from its offset on."""
        descriptor = open_regular(info.file)
        try:
            for offset, piece in pieces:
                view = memoryview(piece.numpy())  # type: ignore[arg-type]
                done, size = 0, piece.numel()
                while done < size:
                    count = os.preadv(descriptor, [view[done : done + _LARGEST_READ]], offset + done)
                    if count == 0:
                        message = "the file was cut off while it was read"
                        raise CheckpointError(message, file=info.file, tensor=info.name)
                    done += count
                if self._drop_cache and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {why(error)}", file=info.file, tensor=info.name) from None
        finally:
            os.close(descriptor)


def opened(folder: Path, weights: WeightFiles) -> Store:
    """The weights of a folder or a GGUF file; every header is read and checked, no data is.

    Raises:
        CheckpointError: a file is damaged, a tensor is given twice, or an index tells otherwise.
    """
    if weights.kind == "mlc" and weights.index is not None:
        return FileStore(folder, weights.files, mlcinfo.tensors(weights.index))
    return FileStore(folder, weights.files, _headers(weights))


def span(info: TensorInfo, axis: int, part: slice | None) -> tuple[int, int]:
    """Begin and end of a part of an axis; all of it for None, also where there is no such axis."""
    what = ("rows", "columns")[axis]
    size = info.shape[axis] if axis < len(info.shape) else 0
    if part is None:
        return 0, size
    begin, end = part.start if part.start is not None else 0, part.stop if part.stop is not None else size
    if part.step not in (None, 1) or not 0 <= begin <= end <= size:
        step = "" if part.step in (None, 1) else f" in steps of {part.step}"
        raise CheckpointError(
            f"has {size} {what}; {begin} to {end}{step} were asked for", file=info.file, tensor=info.name
        )
    return begin, end


def _headers(weights: WeightFiles) -> dict[str, TensorInfo]:
    """All tensors of all files, checked against each other and against the index."""
    tensors: dict[str, TensorInfo] = {}
    for file in weights.files:
        for name, info in HEADERS[weights.kind](file).items():
            if name in tensors:
                raise CheckpointError(f"is given twice, here and in {tensors[name].file.name}", file=file, tensor=name)
            tensors[name] = info
    if weights.weight_map is not None:
        _check_index(weights, tensors)
    return tensors


def _check_index(weights: WeightFiles, tensors: dict[str, TensorInfo]) -> None:
    assert weights.weight_map is not None and weights.index is not None
    for name, file in weights.weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(f"is not in {file.name}, where the index says it is", file=weights.index, tensor=name)
    surplus = next((info for name, info in tensors.items() if name not in weights.weight_map), None)
    if surplus is not None:
        raise CheckpointError(f"is not in the index {weights.index.name}", file=surplus.file, tensor=surplus.name)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
