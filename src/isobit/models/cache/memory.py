"""The memory of a key-value cache: blocks of every layer, and the sequences that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from isobit.errors import CapacityError
from isobit.formats.caches import AUTO, CacheFormat
from isobit.formats.pack import code_dtype
from isobit.formats.table import element
from isobit.kernels.cached import Cached, Part
from isobit.models.batch import Batch, New, Overlays, Positions, Wanted, lay_out
from isobit.models.cache.protocol import CachedSequence
from isobit.models.config import Kept, ModelConfig

_MOST_BYTES = 1 << 62


class Memory:
    """Blocks of keys and values.

    Attributes:
        blocks: how many there are.
        block: tokens of one.
        key: what it was made for; see :func:`cache_key`.
        stride: heads of tokens from a layer's keys to those of the next; None where layers differ.
        longest: tokens that a sequence may have; None for as many as the model reads.

    Args:
        config: of the model.
        blocks, block: see above.
        dtype: of the activations.
        device: where it lies; None for the CPU.
        stored: the format of keys and values.

    Raises:
        CapacityError: there is not so much memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        stored: CacheFormat = AUTO,
    ) -> None:
        self.blocks, self.block, self.key = blocks, block, cache_key(config, dtype, stored)
        self.longest: int | None = None
        kept = [one.attention.kept for one in config.layers]
        self.stride = blocks * block * kept[0].heads if len(set(kept)) == 1 else None
        size = blocks * block * bytes_per_token(kept, stored, dtype)
        try:
            if size >= _MOST_BYTES:
                raise RuntimeError("more than can be addressed")
            self._layers = new_layers(kept, blocks, block, dtype, device, stored)
        except RuntimeError:
            raise CapacityError(
                f"the key-value cache of {blocks} x {block} tokens needs {size / 2**30:.1f} GiB, which cannot be had;"
                " use a shorter context or a smaller batch"
            ) from None
        self._device = device

    def memory(self, layer: int) -> Cached:
        """What is held of a layer."""
        return self._layers[layer]

    def batch(
        self,
        new: Sequence[New],
        members: Sequence[CachedSequence],
        *,
        wanted: Wanted | Sequence[range] = "all",
        positions: Positions = None,
        overlays: Overlays = None,
    ) -> Batch:
        """New tokens of sequences of this cache; see :func:`isobit.models.batch.lay_out`.

        Raises:
            CapacityError: there is no room for them.
            UsageError: there are none.
        """
        for tokens, member in zip(new, members, strict=True):
            member.require(len(tokens))
        past, blocks = [one.length for one in members], [one.blocks for one in members]
        return lay_out(
            new, past, blocks, self.block, wanted=wanted, device=self._device, positions=positions, overlays=overlays
        )


def cache_key(config: ModelConfig, dtype: torch.dtype, stored: CacheFormat = AUTO) -> tuple[object, ...]:
    """What a cache must have been made for, to serve a model: what each layer keeps, and what it is stored as."""
    return (
        stored.kv if stored.element else stored_dtype(stored, dtype),
        *(layer.attention.kept for layer in config.layers),
    )


def bytes_per_token(kept: Iterable[Kept], stored: CacheFormat, dtype: torch.dtype) -> int:
    """Bytes of one token in layers that keep this, where activations are computed in a dtype."""
    name = dtype_name(dtype)
    return sum(stored.bytes(one.heads, width, name) for one in kept for width in one.widths)


def dtype_name(dtype: torch.dtype) -> str:
    """As configurations write it."""
    return str(dtype).removeprefix("torch.")


def stored_dtype(stored: CacheFormat, dtype: torch.dtype) -> torch.dtype:
    """The dtype in memory of keys and values of activations in ``dtype``."""
    if stored.element:
        return code_dtype(element(stored.element))
    found = getattr(torch, stored.stored(dtype_name(dtype)))
    assert isinstance(found, torch.dtype)
    return found


def new_layers(
    kept: Sequence[Kept],
    blocks: int,
    block: int,
    dtype: torch.dtype,
    device: torch.device | None,
    stored: CacheFormat,
) -> list[Cached]:
    """Memory of layers that keep this of a token, one layer behind the other."""
    both = [[(blocks, one.heads, block, getattr(one, part)) for one in kept] for part in ("first", "second")]
    first, second = (_new_parts(shapes, stored, stored_dtype(stored, dtype), device) for shapes in both)
    return [Cached.of(*pair, stored) for pair in zip(first, second, strict=True)]


def _new_parts(
    shapes: Sequence[tuple[int, ...]], stored: CacheFormat, dtype: torch.dtype, device: torch.device | None
) -> list[Part]:
    """Memory of keys, or of values, of these shapes as numbers."""
    numbers = _tensors([(*shape[:3], stored.width(shape[3])) for shape in shapes], dtype, device)
    scales: Sequence[Tensor | None] = [None] * len(shapes)
    groups: Sequence[Tensor | None] = [None] * len(shapes)
    if stored.one_scale:
        scales = _tensors([shape[:3] for shape in shapes], torch.float32, device)
    if stored.group is not None:
        codes = code_dtype(element(stored.scale.element))
        groups = _tensors([(*shape[:3], stored.groups(shape[3])) for shape in shapes], codes, device)
    return [Part(*three) for three in zip(numbers, scales, groups, strict=True)]


def _tensors(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device | None) -> list[Tensor]:
    """Memory of tensors that lie one behind the other."""
    sizes = [math.prod(shape) for shape in shapes]
    whole = torch.empty(sum(sizes), dtype=dtype, device=device)
    return [part.view(shape) for part, shape in zip(torch.split(whole, sizes), shapes, strict=True)]
