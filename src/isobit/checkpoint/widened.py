"""A quantized checkpoint read as the numbers it stands for: what `isobit quantize --from-quantized` begins with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isobit.checkpoint.layouts import plain, table
from isobit.checkpoint.layouts.parts import COMMON
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sections import SECTIONS
from isobit.errors import DamagedWeights

_TRIED = 32  # rows


def stored_bytes(ck: Checkpoint) -> dict[str, int]:
    """Bytes in their file, scales included, of the weights that :func:`widened` made float32; nothing of others."""
    return ck.store.stored if isinstance(ck.store, _Widened) else {}


def widened(ck: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """The checkpoint with every quantized weight as float32, and nothing of its quantization left.

    Args:
        ck: the checkpoint.
        shapes: of every tensor of the unquantized model.

    Raises:
        CheckpointError: a weight is not what its configuration says: the first rows of each are read.
    """
    twin = copy.copy(ck)
    for derived in ("quantization", "notes", "dtype"):
        twin.__dict__.pop(derived, None)
    twin.config = _without_sections(ck.config)
    store = _Widened(ck, shapes)
    store.try_each()
    twin.store = store
    return twin


def _without_sections(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key not in SECTIONS}
    inner = found.get("text_config")
    return found | ({"text_config": _without_sections(inner)} if isinstance(inner, dict) else {})


class _Widened:
    """The tensors of a checkpoint, quantized weights as float32 ``[N, K]``."""

    def __init__(self, ck: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._ck = ck
        self.stored: dict[str, int] = {}  # bytes of quantized weights in their file, scales included
        self._heights: dict[str, int] = {}  # of quantized weights: rows that cannot be told apart
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in ck.tensors.items():
            module, part = table.split(name)
            infos = table.infos_of(ck.tensors, module)
            row = table.layout_of(infos)
            weight = f"{module}.weight"
            if row is None or part in COMMON[-1:] or weight not in shapes or row is plain.LAYOUT:
                self.tensors[name] = info
            elif part == row.codes:
                n, k = shapes[weight]
                self.tensors[weight] = TensorInfo(weight, "F32", (n, k), info.file, 0, 4 * n * k)
                self.stored[weight] = sum(one.nbytes for one in row.owned(infos))
                self._heights[weight] = self._height(module)

    def _height(self, module: str) -> int:
        quantization = self._ck.quantization
        group = None if quantization is None else quantization.group_for(module)
        return group.weights.block[0] if group is not None and group.weights and group.weights.block else 1

    def try_each(self) -> None:
        """Reads a few rows of every quantized weight: what cannot be read is refused before anything is written."""
        for name, height in self._heights.items():
            self.read(name, slice(0, min(max(height, _TRIED), self.tensors[name].shape[0])))

    @property
    def files(self) -> tuple[Path, ...]:
        """See :class:`~isobit.checkpoint.store.Store`."""
        return self._ck.files

    def renamed(self, names: Mapping[str, str]) -> _Widened:
        """See :class:`~isobit.checkpoint.store.Store`; nothing asks for it: the tensors have a model's names."""
        raise NotImplementedError

    def info(self, name: str) -> TensorInfo:
        """See :class:`~isobit.checkpoint.store.Store`."""
        return self.tensors.get(name) or self._ck.info(name)

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None, *, mmap: bool = False) -> Tensor:
        """See :class:`~isobit.checkpoint.store.Store`; of blocks with one scale whole ones are read, and cut."""
        height = self._heights.get(name)
        if height is None:
            return self._ck.read(name, rows, columns, mmap=mmap)
        module, whole = name.removesuffix(".weight"), self.tensors[name].shape
        begin, end = (0, whole[0]) if rows is None else (rows.start or 0, whole[0] if rows.stop is None else rows.stop)
        first = begin // height * height
        found = read_linear(self._ck, module, slice(first, min(-(-end // height) * height, whole[0]))).numbers()
        if found.shape[1] != whole[1]:
            raise DamagedWeights(f"is {found.shape[1]} wide, not {whole[1]}", file=self._ck.path, tensor=name)
        return found[begin - first : end - first, slice(None) if columns is None else columns].contiguous()
