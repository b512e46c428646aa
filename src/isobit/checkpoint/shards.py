"""Where every byte of an output will lie, decided before any is written. No torch, no I/O.

Inside a shard tensors are ordered by element size, largest first (as the safetensors library orders them), so that each
one is aligned to its elements; tensors of one module stay in one shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isobit.checkpoint.safetensors import DTYPES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written.

    Attributes:
        name: tensor name.
        dtype: safetensors dtype name, e.g. ``BF16``.
        shape: sizes; ``()`` for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPES[self.dtype][0] // 8

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        count = self.itemsize
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class PlannedShard:
    """A weight file that will be written.

    Attributes:
        name: file name.
        header: the file's first bytes: length and JSON header, padded to a multiple of 8.
        offsets: tensor name -> offset of its first byte in the file.
        tensors: the tensors by name.
    """

    name: str
    header: bytes
    offsets: dict[str, int]
    tensors: dict[str, PlannedTensor]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + self.data_bytes


def plan_shards(modules: Iterable[Sequence[PlannedTensor]], max_bytes: int) -> tuple[PlannedShard, ...]:
    """Distributes modules over shards, in order.

    Args:
        modules: the tensors of each module; those of one module stay together.
        max_bytes: data bytes per shard; a module larger than that gets a shard of its own.

    Raises:
        ValueError: a name is given twice.
    """
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for module in modules:
        module_bytes = sum(tensor.nbytes for tensor in module)
        if shards[-1] and size + module_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].extend(module)
        size += module_bytes
    names = [tensor.name for shard in shards for tensor in shard]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"tensor {twice!r} is planned twice")
    return tuple(_shard(shard_name(i, len(shards)), tensors) for i, tensors in enumerate(shards))


def shard_name(i: int, count: int) -> str:
    """File name of shard ``i`` of ``count``, as transformers names them."""
    return SINGLE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def index_json(shards: Sequence[PlannedShard]) -> bytes | None:
    """``model.safetensors.index.json``; None for a single shard, which needs none."""
    if len(shards) == 1:
        return None
    weight_map = {name: shard.name for shard in shards for name in shard.tensors}
    total = sum(shard.data_bytes for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def _shard(name: str, tensors: list[PlannedTensor]) -> PlannedShard:
    ordered = sorted(tensors, key=lambda tensor: -tensor.itemsize)  # stable: source order within one size
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    starts = {}
    for tensor in ordered:
        end = begin + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        starts[tensor.name] = begin
        begin = end
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    header = len(body).to_bytes(8, "little") + body
    offsets = {key: len(header) + start for key, start in starts.items()}
    return PlannedShard(name, header, offsets, {tensor.name: tensor for tensor in ordered})
