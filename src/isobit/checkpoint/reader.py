"""A checkpoint folder opened for reading: configuration, tensors by name, and the files that go with them.

Opening reads headers only and checks all of them. Tensors are then read one at a time, from any number of threads.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobit.checkpoint import ctconfig, ctreview, folder, methods
from isobit.checkpoint.ctconfig import Quantization
from isobit.checkpoint.files import is_folder, is_there, open_regular, read_file, why
from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.legacy import read_bin_header
from isobit.checkpoint.occupant import require_finished
from isobit.checkpoint.safetensors import TensorInfo, read_header
from isobit.errors import CheckpointError
from isobit.shortage import explain

_LARGEST_CONFIG = 16 << 20  # bytes
_LARGEST_READ = 1 << 30  # bytes in one system call: Linux stops at 2 GiB
_MAIN_DTYPES = ("BF16", "F16", "F32", "F64")


class Checkpoint:
    """An opened checkpoint; make one with :meth:`open`.

    Attributes:
        path: the folder.
        config: the parsed ``config.json``.
        tensors: every tensor by name, ordered by file and position in it: the order to stream them in.
        files: the weight files.
        stored: modules that were renamed -> what they are called in the files.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], weights: folder.WeightFiles, tensors: dict[str, TensorInfo]
    ) -> None:
        self.path = path
        self.config = config
        self.files = weights.files
        self.tensors = tensors
        self.stored: Mapping[str, str] = {}
        self._maps: dict[Path, Tensor] = {}
        # A checkpoint much smaller than memory may stay in the page cache: the next run will be glad of it.
        self._drop_cache = self.nbytes > _physical_memory() // 4

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Opens a folder and checks every header in it; no tensor data is read.

        Raises:
            CheckpointError: anything is missing, surplus, damaged or given twice; names file and tensor.
        """
        path = Path(path)
        if not is_folder(path):
            raise CheckpointError("is not a folder" if is_there(path) else "there is no such folder", file=path)
        require_finished(path)
        config_path = path / "config.json"
        if not is_there(config_path):
            raise CheckpointError("config.json is missing: this is not a model folder", file=path)
        config = read_json(config_path, _LARGEST_CONFIG)
        weights = folder.weight_files(path)
        return cls(path, config, weights, _headers(weights))

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same checkpoint with some tensors under other names.

        Args:
            names: name now -> name to be; no two may come to have the same one.
        """
        twin = copy.copy(self)
        twin.tensors = {
            new: replace(info, name=new) for old, info in self.tensors.items() for new in (names.get(old, old),)
        }
        modules = {new.rpartition(".")[0]: old.rpartition(".")[0] for old, new in names.items()}
        twin.stored = {**self.stored, **{new: self.stored.get(old, old) for new, old in modules.items()}}
        for derived in ("quantization", "notes"):  # of names, which have changed
            twin.__dict__.pop(derived, None)
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype that most of the unquantized bytes have.

        Raises:
            CheckpointError: the checkpoint has no tensor of such a dtype.
        """
        sizes: Counter[str] = Counter()
        for info in self.tensors.values():
            if info.dtype in _MAIN_DTYPES:
                sizes[info.dtype] += info.nbytes
        if not sizes:
            raise CheckpointError(f"no tensor has one of the dtypes {', '.join(_MAIN_DTYPES)}", file=self.path)
        wanted = min(sizes, key=lambda name: (-sizes[name], _MAIN_DTYPES.index(name)))
        return next(info.torch_dtype for info in self.tensors.values() if info.dtype == wanted)

    @cached_property
    def companions(self) -> list[Path]:
        """Files to carry over to a quantized copy: tokenizer, chat template, generation settings, licences."""
        return folder.companions(self.path)

    @cached_property
    def strays(self) -> list[Path]:
        """Files that would be carried over if they were not links that lead out of the folder."""
        return folder.strays(self.path)

    @cached_property
    def quantization(self) -> Quantization | None:
        """What ``config.json`` says about quantization, or None.

        Raises:
            CheckpointError: the quantization config is malformed.
            Unsupported: it, other files or its tensors tell of a method that isobit does not read.
        """
        dtypes = {name: info.dtype for name, info in self.tensors.items()}
        with self._in_config():
            return ctreview.read(self.config, self._matrices(), folder=self.path, tensors=dtypes, stored=self.stored)

    def require_readable(self) -> None:
        """Refuses what isobit does not read, whatever its tensors are called; raises as :attr:`quantization` does."""
        with self._in_config():
            methods.refuse_unread(self.config, self.path, self.tensors)
            ctconfig.parse(self.config)

    @contextmanager
    def _in_config(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(str(error), file=self.path / "config.json") from None

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What people should know who use this checkpoint: what of it isobit, or another engine, does otherwise.

        Every command that meets a checkpoint shows them.

        Raises:
            CheckpointError, Unsupported: as for :attr:`quantization`.
        """
        return self.quantization.notes if self.quantization is not None else ()

    def _matrices(self) -> list[str]:
        """Names of the modules with a weight of two dimensions."""
        split = ((name.rpartition("."), info) for name, info in self.tensors.items())
        return [
            module for (module, _, part), info in split
            if module and part in ("weight", "weight_packed") and len(info.shape) == 2
        ]  # fmt: skip

    def info(self, name: str) -> TensorInfo:
        """Header entry of a tensor.

        Raises:
            CheckpointError: there is none of this name.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError("is missing from this checkpoint", file=self.path, tensor=name) from None

    def read(self, name: str, *, mmap: bool = False) -> Tensor:
        """Reads a tensor.

        Args:
            name: tensor name.
            mmap: map the file into memory instead of copying: nothing is read before it is used, and pages count as
                resident once they are; for serving. The tensor must not be written to. Data that is not aligned to its
                dtype, or does not lie in the order of its rows, is copied all the same.

        Raises:
            CheckpointError: no such tensor, a dtype torch lacks, or the file changed since it was opened.
        """
        info = self.info(name)
        if info.strides is not None:
            return self._gathered(info, info.begin, info.shape, info.strides)
        dtype = info.torch_dtype
        if mmap and info.nbytes and info.begin % dtype.itemsize == 0:
            return self._mapped(info).view(dtype).reshape(info.shape)
        return self._pread(info, info.begin, info.nbytes).view(dtype).reshape(info.shape)

    def read_rows(self, name: str, lo: int, hi: int) -> Tensor:
        """Reads rows ``lo`` to ``hi - 1`` (of the first axis) of a tensor, and no other bytes.

        Raises:
            CheckpointError: as for :meth:`read`, or the rows are not there.
        """
        info = self.info(name)
        rows = info.shape[0] if info.shape else 0
        if not 0 <= lo <= hi <= rows:
            raise CheckpointError(f"has {rows} rows; {lo} to {hi} were asked for", file=info.file, tensor=name)
        if info.strides is not None:
            begin = info.begin + lo * info.strides[0] * info.torch_dtype.itemsize
            return self._gathered(info, begin, (hi - lo, *info.shape[1:]), info.strides)
        row_bytes = info.nbytes // rows if rows else 0
        data = self._pread(info, info.begin + lo * row_bytes, (hi - lo) * row_bytes)
        return data.view(info.torch_dtype).reshape(hi - lo, *info.shape[1:])

    def fingerprint(self) -> str:
        """Hex digest of what identifies this checkpoint: config.json, every header entry, each file's size and time.

        Two runs over a checkpoint nobody touched in between get the same one. Tensor data is not read.
        """
        digest = hashlib.sha256(read_file(self.path / "config.json", _LARGEST_CONFIG))
        for file in self.files:
            status = file.stat()
            digest.update(f"\n{file.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        for info in self.tensors.values():
            digest.update(f"\n{info.name}\0{info.dtype}\0{info.shape}\0{info.file.name}\0{info.begin}".encode())
        return digest.hexdigest()

    def _mapped(self, info: TensorInfo) -> Tensor:
        """The bytes of a tensor as a view of the mapped file (private: writing copies a page, the file stays)."""
        whole = self._maps.get(info.file)
        if whole is None:
            try:
                size = info.file.stat().st_size
                whole = torch.from_file(str(info.file), shared=False, size=size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                if explain(error) is not None:
                    raise  # memory does not suffice: nothing is wrong with the file
                raise CheckpointError(f"cannot be mapped: {error}", file=info.file, tensor=info.name) from None
            whole = self._maps.setdefault(info.file, whole)
        if info.end > whole.numel():
            raise CheckpointError("the file was cut off after it was opened", file=info.file, tensor=info.name)
        return whole[info.begin : info.end]

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
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        descriptor = open_regular(info.file)
        try:
            done = 0
            while done < size:
                count = os.preadv(descriptor, [view[done : done + _LARGEST_READ]], offset + done)
                if count == 0:
                    raise CheckpointError("the file was cut off while it was read", file=info.file, tensor=info.name)
                done += count
            if self._drop_cache and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {why(error)}", file=info.file, tensor=info.name) from None
        finally:
            os.close(descriptor)
        return buffer


def _headers(weights: folder.WeightFiles) -> dict[str, TensorInfo]:
    """All tensors of all files, checked against each other and against the index."""
    tensors: dict[str, TensorInfo] = {}
    for file in weights.files:
        found = read_header(file)[0] if weights.kind == "safetensors" else read_bin_header(file)
        for name, info in found.items():
            if name in tensors:
                raise CheckpointError(f"is given twice, here and in {tensors[name].file.name}", file=file, tensor=name)
            tensors[name] = info
    if weights.weight_map is not None:
        _check_index(weights, tensors)
    return tensors


def _check_index(weights: folder.WeightFiles, tensors: dict[str, TensorInfo]) -> None:
    assert weights.weight_map is not None and weights.index is not None
    for name, file in weights.weight_map.items():
        if name not in tensors or tensors[name].file != file:
            raise CheckpointError(f"is not in {file.name}, where the index says it is", file=weights.index, tensor=name)
    surplus = next((info for name, info in tensors.items() if name not in weights.weight_map), None)
    if surplus is not None:
        raise CheckpointError(f"is not in the index {weights.index.name}", file=surplus.file, tensor=surplus.name)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
