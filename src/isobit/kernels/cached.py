"""What a cache holds of one layer, and the law of storing and reading it (docs/numerics.md, 9) in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.formats.caches import AUTO, CacheFormat
from isobit.formats.codec import decode, encode, quantize_activations, quantize_under_tokens
from isobit.formats.schemes import ActSpec


@dataclass(frozen=True)
class Part:
    """Keys or values as they are stored: in a cache, or of new tokens ``[..., kv_heads]``.

    Attributes:
        numbers: ``[..., width]``: plain numbers, or codes; two in a byte where the format packs them.
        scales: float32 ``[...]`` of codes, where each token and head has one; else None.
        groups: uint8 ``[..., groups]``: codes of the scales of groups, where there are groups; else None.
    """

    numbers: Tensor
    scales: Tensor | None = None
    groups: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that there is."""
        return tuple(part for part in (self.numbers, self.scales, self.groups) if part is not None)


@dataclass(frozen=True)
class Cached:
    """Keys and values of one layer: plain numbers, or codes with a scale for each token and head, or for groups of it.

    Latent attention keeps something else in the same two places: as keys the latent, as values the rotated part of the
    key, both of one head.

    Attributes:
        keys, values: ``[blocks, kv_heads, block, width]``, contiguous, each with a ``width`` of its own: the numbers of
            a head, or half of them where two share a byte (``CacheFormat.width``).
        key_scales, value_scales: float32 ``[blocks, kv_heads, block]``, contiguous, that multiply what codes and the
            scales of their groups give; None where there are none.
        form: the format.
        key_groups, value_groups: uint8 ``[blocks, kv_heads, block, groups]``, contiguous: scales of groups as codes of
            ``form.scale``; None where there are none.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    form: CacheFormat = AUTO
    key_groups: Tensor | None = None
    value_groups: Tensor | None = None

    @classmethod
    def of(cls, keys: Part, values: Part, form: CacheFormat) -> Cached:
        """Of two parts in a format."""
        return cls(keys.numbers, values.numbers, keys.scales, values.scales, form, keys.groups, values.groups)

    @property
    def element(self) -> str:
        """Element format of the codes; empty for plain numbers."""
        return self.form.element

    @property
    def parts(self) -> tuple[Part, Part]:
        """Keys and values."""
        return (
            Part(self.keys, self.key_scales, self.key_groups),
            Part(self.values, self.value_scales, self.value_groups),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is stored."""
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    def store(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores new tokens.

        Args:
            slots: int64 ``[T]``: number of the block times its tokens, plus the place in it.
            keys, values: ``[T, kv_heads, dim]`` of the activations' dtype; keys are normed and rotated.
        """
        block = self.keys.shape[2]
        at = slots // block, slots % block
        for new, part in zip((keys, values), self.parts, strict=True):
            for memory, found in zip(part.tensors, rounded(new, self.form, part.numbers.dtype).tensors, strict=True):
                memory[at[0], :, at[1]] = found

    def read(self, blocks: tuple[int, ...], length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` keys and values of the sequence that blocks hold, ``[kv_heads, length, dim]`` each.

        Plain numbers come in ``dtype``, which holds them; what codes stand for comes in float32.
        """
        found = []
        for part in self.parts:
            taken = (None if one is None else _gathered(one, blocks)[:, :length]
                     for one in (part.numbers, part.scales, part.groups))  # fmt: skip
            found.append(_stands_for(self.form, *taken, dtype=dtype))  # type: ignore[arg-type]
        return found[0], found[1]


def rounded(x: Tensor, form: CacheFormat, dtype: torch.dtype) -> Part:
    """Keys or values as a cache stores them.

    Args:
        x: ``[..., dim]`` float32, bfloat16 or float16.
        form: the format.
        dtype: of plain numbers: finite ones saturate.
    """
    if form.group is not None:
        return _in_groups(x, form, form.group)
    if form.element:
        codes, scales = quantize_activations(x, ActSpec(form.element, "token"))
        return Part(codes, scales.squeeze(-1))
    if dtype == x.dtype:
        return Part(x)
    largest = torch.finfo(dtype).max
    return Part(torch.where(x.isfinite(), x.clamp(-largest, largest), x).to(dtype))


def _in_groups(x: Tensor, form: CacheFormat, group: int) -> Part:
    """The law of activations in groups: with scales that are powers of two, or under one for each token and head."""
    above: Tensor | None = None
    if form.scale.powers:
        codes, scales = quantize_activations(x, ActSpec(form.element, "group", group, scale=form.scale))
    else:
        codes, scales, above = quantize_under_tokens(x, form.element, group)
    return Part(packed(codes) if form.packed else codes, above, encode(scales, form.scale.element))


def _stands_for(
    form: CacheFormat, numbers: Tensor, scales: Tensor | None, groups: Tensor | None, *, dtype: torch.dtype
) -> Tensor:
    """What ``[..., width]`` stored numbers stand for."""
    if not form.element:
        return numbers.to(dtype)
    numbers = decode((unpacked(numbers) if form.packed else numbers).contiguous(), form.element)
    if groups is not None and form.group is not None:  # exact: a power of two, or 6 bits by 2
        of_groups = decode(groups.contiguous(), form.scale.element)
        numbers = numbers * of_groups.repeat_interleave(form.group, dim=-1)[..., : numbers.shape[-1]]
    return numbers if scales is None else numbers * scales[..., None]


def packed(codes: Tensor) -> Tensor:
    """Codes ``[..., dim]`` of 4 bits in bytes ``[..., dim / 2]``: those of a head's first half in the low halves."""
    half = codes.shape[-1] // 2
    return codes[..., :half] | codes[..., half:] << 4


def unpacked(numbers: Tensor) -> Tensor:
    """The opposite of :func:`packed`."""
    return torch.cat((numbers & 15, numbers >> 4), dim=-1)


def _gathered(memory: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """``[kv_heads, tokens, ...]`` of a sequence's blocks."""
    if len(blocks) == 1:
        return memory[blocks[0]]
    return memory[list(blocks)].transpose(0, 1).flatten(1, 2)
