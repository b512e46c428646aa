"""A checkpoint folder opened for reading: configuration, tensors by name, and the files that go with them.

Opening reads headers only and checks all of them; where the tensors are then read from is in ``store``.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isobit.checkpoint import ctreview, folder, methods
from isobit.checkpoint.files import is_folder, is_there, read_file
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.ggufstore import gguf_store
from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.layouts import table
from isobit.checkpoint.occupant import require_finished
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sidefiles import adopted
from isobit.checkpoint.store import FileStore, Store, opened
from isobit.errors import CheckpointError

_LARGEST_CONFIG = 16 << 20  # bytes
_MAIN_DTYPES = ("BF16", "F16", "F32", "F64")


class Checkpoint:
    """An opened checkpoint; make one with :meth:`open`.

    Attributes:
        path: the folder.
        config: the parsed ``config.json``.
        store: where its tensors are read from.
        stored: modules that were renamed -> what they are called in the files.
        apart: tensors that the configuration of quantization is not held against: each says itself what it is.
        shapes: of the tensors of the unquantized model, where it is known which one that is.
    """

    def __init__(self, path: Path, config: dict[str, Any], store: Store) -> None:
        self.path = path
        self.config = config
        self.store = store
        self.stored: Mapping[str, str] = {}
        self.apart: frozenset[str] = frozenset()
        self.shapes: Mapping[str, tuple[int, ...]] = {}

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Opens a folder or a GGUF file and checks every header in it; no tensor data is read.

        Raises:
            CheckpointError: anything is missing, surplus, damaged or given twice; names file and tensor.
        """
        path = folder.model_path(Path(path))
        if not is_folder(path) and not is_gguf(path):
            raise CheckpointError("is not a folder" if is_there(path) else "there is no such folder", file=path)
        require_finished(path)
        config_path = path / "config.json"
        if not is_there(config_path):
            raise CheckpointError("config.json is missing: this is not a model folder", file=path)
        config = adopted(read_json(config_path, _LARGEST_CONFIG), path)
        weights = folder.weight_files(path)
        store = gguf_store(path) if weights.kind == "gguf" else opened(path, weights)
        return cls(path, methods.with_implied(config, {n: info.dtype for n, info in store.tensors.items()}), store)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, ordered by file and position in it: the order to stream them in."""
        return self.store.tensors

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return self.store.files

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same checkpoint with some tensors under other names.

        Args:
            names: name now -> name to be; no two may come to have the same one.
        """
        twin = copy.copy(self)
        twin.store = self.store.renamed(names)
        modules = {new.rpartition(".")[0]: old.rpartition(".")[0] for old, new in names.items()}
        twin.stored = {**self.stored, **{new: self.stored.get(old, old) for new, old in modules.items()}}
        for derived in ("quantization", "notes"):  # of names, which have changed
            twin.__dict__.pop(derived, None)
        return twin

    def without_review(self, names: Iterable[str]) -> Checkpoint:
        """The same checkpoint, where some more tensors say themselves what they are; see :attr:`apart`."""
        twin = copy.copy(self)
        twin.apart = self.apart.union(names)
        for derived in ("quantization", "notes"):
            twin.__dict__.pop(derived, None)
        return twin

    def viewed(self, parts: Mapping[str, Iterable[TensorInfo]]) -> Checkpoint:
        """The same checkpoint with some tensors replaced by parts of them; see ``FileStore.viewed``."""
        assert isinstance(self.store, FileStore)
        twin = copy.copy(self)
        twin.store = self.store.viewed(parts)
        for derived in ("quantization", "notes"):
            twin.__dict__.pop(derived, None)
        return twin

    def of_model(self, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
        """The same checkpoint as that of a model with tensors of such shapes: weights of others are refused."""
        twin = copy.copy(self)
        twin.shapes = shapes
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
        dtypes = {name: info.dtype for name, info in self.tensors.items() if name not in self.apart}
        with self._in_config():
            return ctreview.read(self.config, self._matrices(), folder=self.path, tensors=dtypes, stored=self.stored)

    def require_readable(self) -> None:
        """Refuses what isobit does not read, whatever its tensors are called; raises as :attr:`quantization` does."""
        with self._in_config():
            methods.refuse_unread(self.config, self.path, self.tensors)
            methods.parse(self.config)

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
        """Names of the modules with a weight of two dimensions; norms that have one for each head are none."""
        reviewed = ((name, info) for name, info in self.tensors.items() if name not in self.apart)
        split = ((*table.split(name), info) for name, info in reviewed)
        found = (module for module, part, info in split if part in table.CODE_PARTS and len(info.shape) == 2)
        return [module for module in found if module and not module.endswith("norm")]

    def info(self, name: str) -> TensorInfo:
        """Header entry of a tensor; see :meth:`isobit.checkpoint.store.Store.info`."""
        return self.store.info(name)

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None, *, mmap: bool = False) -> Tensor:
        """Reads a tensor, or some of its rows and columns; see :meth:`isobit.checkpoint.store.Store.read`."""
        return self.store.read(name, rows, columns, mmap=mmap)

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
