"""What a cache holds of one layer, and the law of storing and reading it (docs/numerics.md, 9) in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.formats.codec import decode, quantize_activations
from isobit.formats.schemes import ActSpec


@dataclass(frozen=True)
class Cached:
    """Keys and values of one layer: plain numbers, or codes with a scale for each token and head.

    Latent attention keeps something else in the same two places: as keys the latent, as values the rotated part of the
    key, both of one head.

    Attributes:
        keys, values: ``[blocks, kv_heads, block, dim]``, contiguous, each with a ``dim`` of its own.
        key_scales, value_scales: float32 ``[blocks, kv_heads, block]``, contiguous, of codes; None for plain numbers.
        element: element format of the codes; empty for plain numbers.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    element: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is stored."""
        parts = self.keys, self.values, self.key_scales, self.value_scales
        return tuple(part for part in parts if part is not None)

    def store(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores new tokens.

        Args:
            slots: int64 ``[T]``: number of the block times its tokens, plus the place in it.
            keys, values: ``[T, kv_heads, dim]`` of the activations' dtype; keys are normed and rotated.
        """
        block = self.keys.shape[2]
        at = slots // block, slots % block
        for new, memory, scales in ((keys, self.keys, self.key_scales), (values, self.values, self.value_scales)):
            codes, found = rounded(new, self.element, memory.dtype)
            memory[at[0], :, at[1]] = codes
            if scales is not None and found is not None:
                scales[at[0], :, at[1]] = found

    def read(self, blocks: tuple[int, ...], length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first ``length`` keys and values of the sequence that blocks hold, ``[kv_heads, length, dim]`` each.

        Plain numbers come in ``dtype``, which holds them; what codes stand for comes in float32.
        """
        found = []
        for memory, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            part = _gathered(memory, blocks)[:, :length]
            if scales is None:
                found.append(part.to(dtype))
            else:
                found.append(decode(part.contiguous(), self.element) * _gathered(scales, blocks)[:, :length, None])
        return found[0], found[1]


def rounded(x: Tensor, element: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Keys or values as a cache stores them.

    Args:
        x: ``[..., dim]`` float32, bfloat16 or float16.
        element: element format of the codes; empty for plain numbers.
        dtype: of plain numbers.

    Returns:
        codes ``[..., dim]`` and float32 scales ``[...]``; or plain numbers and None: finite ones saturate.
    """
    if element:
        codes, scales = quantize_activations(x, ActSpec(element, "token"))
        return codes, scales.squeeze(-1)
    if dtype == x.dtype:
        return x, None
    largest = torch.finfo(dtype).max
    return torch.where(x.isfinite(), x.clamp(-largest, largest), x).to(dtype), None


def _gathered(memory: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """``[kv_heads, tokens, ...]`` of a sequence's blocks."""
    if len(blocks) == 1:
        return memory[blocks[0]]
    return memory[list(blocks)].transpose(0, 1).flatten(1, 2)
