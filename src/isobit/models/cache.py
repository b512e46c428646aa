"""The key-value cache: one preallocated pair of tensors, in which each layer has its part."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isobit.errors import CapacityError, UsageError
from isobit.models.config import ModelConfig


class KVCache:
    """Keys and values of ``batch`` sequences of equal length, up to ``max_len`` tokens.

    Attributes:
        length: tokens held, the same for every layer and sequence.
        max_len: tokens there is room for.
    """

    def __init__(
        self, config: ModelConfig, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.length = 0
        self.max_len = max_len
        heads = _heads(config)
        shape = (config.num_layers, batch, heads[0], max_len, heads[1])
        self._shape, self._dtype = shape, dtype
        try:
            self._keys, self._values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        except RuntimeError:
            size = 2 * math.prod(shape) * dtype.itemsize
            raise CapacityError(
                f"the key-value cache of {batch} x {max_len} tokens needs {size / 2**30:.1f} GiB, which cannot be had;"
                " use a shorter context or a smaller batch"
            ) from None

    def require(self, config: ModelConfig, batch: int, dtype: torch.dtype) -> None:
        """That this is a cache for so many sequences of such a model.

        Raises:
            UsageError: it was made for others.
        """
        heads = _heads(config)
        shape = (config.num_layers, batch, heads[0], self.max_len, heads[1])
        if self._shape != shape or self._dtype != dtype:
            made = "x".join(map(str, self._shape))
            raise UsageError(
                f"this key-value cache ({made}, {self._dtype}) was not made for {batch} sequences of this model"
                f" ({'x'.join(map(str, shape))}, {dtype})"
            )

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores ``[B, kv_heads, T, head_dim]`` behind what the layer holds; returns everything it then holds.

        ``length`` moves on only at :meth:`advance`, once every layer has its part.

        Raises:
            CapacityError: there is no room for T more tokens.
        """
        end = self.length + keys.shape[2]
        self.room(layer, keys.shape[2])
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def room(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        """A layer's whole memory ``[B, kv_heads, max_len, head_dim]``, for a kernel that stores ``tokens`` more itself.

        Raises:
            CapacityError: there is no room for them.
        """
        keys, values = self.room_of_all(tokens)
        return keys[layer], values[layer]

    def room_of_all(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The same of all layers: ``[layers, B, kv_heads, max_len, head_dim]``, contiguous.

        Raises:
            CapacityError: there is no room for them.
        """
        end = self.length + tokens
        if end > self.max_len:
            raise CapacityError(f"the key-value cache has room for {self.max_len} tokens, not for {end}")
        return self._keys, self._values

    def advance(self, tokens: int) -> None:
        """Counts tokens that every layer has stored."""
        self.length += tokens


def _heads(config: ModelConfig) -> tuple[int, int]:
    """Key-value heads and their width, which all layers have alike."""
    (found,) = {(layer.attention.kv_heads, layer.attention.dim) for layer in config.layers}
    return found
