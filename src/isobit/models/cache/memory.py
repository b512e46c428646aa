"""The memory of a key-value cache: blocks of every layer, and the sequences that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.errors import CapacityError
from isobit.models.batch import Batch, New, Wanted, lay_out
from isobit.models.cache.protocol import CachedSequence
from isobit.models.config import ModelConfig

_MOST_BYTES = 1 << 62


class Memory:
    """Blocks of keys and values.

    Attributes:
        blocks: how many there are.
        block: tokens of one.
        key: what it was made for; see :func:`cache_key`.
        stride: numbers from a layer's keys to those of the next; None where layers differ.
    """

    def __init__(
        self, config: ModelConfig, blocks: int, block: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.blocks, self.block, self.key = blocks, block, cache_key(config, dtype)
        shapes = [(blocks, one.attention.kv_heads, block, one.attention.dim) for one in config.layers]
        sizes = [one.attention.kv_heads * one.attention.dim * blocks * block for one in config.layers]
        self.stride = sizes[0] if len(set(shapes)) == 1 else None
        size = 2 * sum(sizes) * dtype.itemsize
        try:
            if size >= _MOST_BYTES:
                raise RuntimeError("more than can be addressed")
            whole = [torch.empty(sum(sizes), dtype=dtype, device=device) for _ in range(2)]
        except RuntimeError:
            raise CapacityError(
                f"the key-value cache of {blocks} x {block} tokens needs {size / 2**30:.1f} GiB, which cannot be had;"
                " use a shorter context or a smaller batch"
            ) from None
        parts = [
            [part.view(shape) for part, shape in zip(torch.split(one, sizes), shapes, strict=True)] for one in whole
        ]
        self._layers = [*zip(*parts, strict=True)]
        self._device = device

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[blocks, kv_heads, block, dim]`` each."""
        return self._layers[layer]

    def batch(
        self, new: Sequence[New], members: Sequence[CachedSequence], *, wanted: Wanted | Sequence[range] = "all"
    ) -> Batch:
        """New tokens of sequences of this cache.

        Raises:
            CapacityError: there is no room for them.
            UsageError: there are none.
        """
        for tokens, member in zip(new, members, strict=True):
            member.require(len(tokens))
        past, blocks = [one.length for one in members], [one.blocks for one in members]
        return lay_out(new, past, blocks, self.block, wanted=wanted, device=self._device)


def cache_key(config: ModelConfig, dtype: torch.dtype) -> tuple[object, ...]:
    """What a cache must have been made for, to serve a model: heads of each layer, and the dtype."""
    return (dtype, *((layer.attention.kv_heads, layer.attention.dim) for layer in config.layers))
