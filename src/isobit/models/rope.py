"""Rotary position embeddings: frequencies per kind, and their application to queries and keys (halves, as in Llama)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isobit.models.config import Rope


def frequencies(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """Angular frequencies, float32 ``[head_dim / 2]``, and what cosines and sines are multiplied by.

    Sources: RoFormer (arXiv 2104.09864); linear position interpolation (2306.15595); the published Llama 3.1 scaling;
    YaRN (2309.00071). The operations are in the order of transformers' own, so that the numbers agree to the bit.
    """
    powers = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    wavelengths = rope.theta**powers
    if rope.kind == "yarn":
        return _yarn(rope, head_dim, wavelengths)
    plain = 1.0 / wavelengths
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    return plain, 1.0


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long waves are stretched by the factor, short ones kept, those between mixed."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_context / rope.low_freq_factor
    shortest = rope.original_context / rope.high_freq_factor
    stretched = torch.where(wavelength > longest, plain / rope.factor, plain)
    share = (rope.original_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    mixed = (1 - share) * stretched / rope.factor + share * stretched
    between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(between, mixed, stretched)


def _yarn(rope: Rope, head_dim: int, wavelengths: Tensor) -> tuple[Tensor, float]:
    """Dimensions that turn often keep their frequency, slow ones are interpolated, with a ramp between."""
    low, high = (_yarn_dimension(rope, head_dim, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001  # no division by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    return (1.0 / (rope.factor * wavelengths)) * (1 - kept) + (1.0 / wavelengths) * kept, rope.scale


def _yarn_dimension(rope: Rope, head_dim: int, turns: float) -> float:
    """The dimension that turns so many times over the original context."""
    return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


class RotaryTable:
    """Cosines and sines by position, grown on demand; ``[positions, head_dim]``.

    They are computed in float32 on the CPU wherever they are used, so that every device has the same, and kept in the
    dtype of the activations.
    """

    def __init__(
        self, rope: Rope, head_dim: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        self._frequencies, self._factor = frequencies(rope, head_dim)
        self._dtype, self._device = dtype, device or torch.device("cpu")
        nothing = torch.empty(0, head_dim, dtype=dtype, device=device)
        self._table = nothing, nothing  # one value, which threads see whole

    def at(self, positions: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, int64 ``[T]``, all below ``end``: ``[T, head_dim]`` each."""
        cos, sin = self.upto(end)
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def upto(self, end: int) -> tuple[Tensor, Tensor]:
        """The tables, with at least ``end`` positions: what a recorded graph reads, and so has to keep."""
        table = self._table
        if end > len(table[0]):
            table = self._table = self._made(max(end, 2 * len(table[0]), 256))
        return table

    def _made(self, positions: int) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), self._frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = ((part * self._factor).to(self._device, self._dtype) for part in (angles.cos(), angles.sin()))
        return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotation to ``[heads, T, head_dim]`` with ``cos`` and ``sin`` ``[T, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
