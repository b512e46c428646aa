"""Rotary position embeddings: frequencies per kind, and their application to queries and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.models.rotary import QueryScale, Rope

MOST_LENGTHS = 8  # of sequences longer than the original context, whose tables are kept (dynamic)


def frequencies(rope: Rope, head_dim: int, *, long: bool = False, length: int = 0) -> tuple[Tensor, float]:
    """Angular frequencies, float32 ``[rotated / 2]``, and what cosines and sines are multiplied by.

    Sources: RoFormer (arXiv 2104.09864); linear position interpolation (2306.15595); the published Llama 3.1 scaling;
    YaRN (2309.00071); LongRoPE (2402.13753). The operations are in the order of transformers' own, so that the numbers
    agree to the bit.

    Args:
        rope: what it is.
        head_dim: width of a head, of which ``rope.dims`` dimensions are rotated, if that is not None.
        long: of longrope, the frequencies of sequences that are longer than the original context.
        length: of dynamic, tokens of the sequences that they are for.
    """
    rotated = head_dim if rope.dims is None else rope.dims
    powers = torch.arange(0, rotated, 2, dtype=torch.int64).float() / rotated
    wavelengths = rope.theta_at(length, rotated) ** powers
    if rope.kind == "yarn":
        return _yarn(rope, rotated, wavelengths)
    if rope.kind == "longrope":
        factors = torch.tensor(rope.long_factors if long else rope.short_factors, dtype=torch.float32)
        scale = rope.long_attention_factor if long and rope.long_attention_factor is not None else rope.scale
        return 1.0 / (factors * wavelengths), scale
    plain = 1.0 / wavelengths
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    return plain, 1.0


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long waves are stretched by the factor, short ones kept, those between mixed: none in Llama 4, with one bound."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_context / rope.low_freq_factor
    shortest = rope.original_context / rope.high_freq_factor
    stretched = torch.where(wavelength > longest, plain / rope.factor, plain)
    if rope.low_freq_factor == rope.high_freq_factor:
        return stretched
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
    """Cosines and sines by position, grown on demand; ``[positions, rotated]``, without columns where nothing is.

    They are computed in float32 on the CPU wherever they are used, so that every device has the same, and kept in the
    dtype of the activations.
    """

    def __init__(
        self,
        rope: Rope | None,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        *,
        long: bool = False,
        length: int = 0,
    ) -> None:
        self._frequencies, self._factor = torch.empty(0), 1.0
        if rope is not None:
            self._frequencies, self._factor = frequencies(rope, head_dim, long=long, length=length)
        self._dtype, self._device = dtype, device or torch.device("cpu")
        rotated = 2 * len(self._frequencies)
        self._axis_of: Tensor | None = None  # of each column
        if rope is not None and rope.sections:
            self._axis_of = torch.tensor(rope.axis_of(rotated), device=device)
        nothing = torch.empty(0, rotated, dtype=dtype, device=device)
        self._table = nothing, nothing  # one value, which threads see whole

    def at(self, positions: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, int64 ``[T]`` or ``[T, axes]``, all below ``end``: ``[T, rotated]`` each."""
        cos, sin = self.upto(end)
        if positions.dim() > 1:
            if self._axis_of is None:  # a rope of one axis beside one of several, or none
                positions = positions[:, 0]
            else:
                rows = positions.index_select(1, self._axis_of)
                return cos.gather(0, rows), sin.gather(0, rows)
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


class Angles:
    """The cosines and sines of one rotary embedding; of longrope and dynamic, of short sequences and of longer ones.

    Longrope has factors for sequences up to the original context, and others for longer ones; dynamic has a theta for
    each length beyond it. A key is kept rotated, so that a sequence can have but one of them, from its first token on.
    What counts is how long it may become: without a cache that is its length, with one the room that the cache gives to
    a sequence.

    Args:
        rope: what it is; None: nothing is rotated.
        head_dim: width of a head.
        dtype, device: of the tables.
    """

    def __init__(self, rope: Rope | None, head_dim: int, dtype: torch.dtype, device: torch.device | None) -> None:
        self._rope, self._head_dim, self._dtype, self._device = rope, head_dim, dtype, device
        self._short = RotaryTable(rope, head_dim, dtype, device)
        self._varies = rope is not None and rope.kind in ("longrope", "dynamic")
        self._longer: dict[int, RotaryTable] = {}  # by what makes a sequence's angles its own: see _kind

    def at(self, positions: Tensor, end: int, room: int | Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of tokens, ``[T, rotated]`` each.

        Args:
            positions: theirs, int64 ``[T]``, all below ``end``; ``[T, axes]`` where they differ between axes.
            end: see above.
            room: tokens that any sequence may have; or, of each sequence, its new tokens and its length.
        """
        if not self._varies:
            return self._short.at(positions, end)
        if isinstance(room, int):
            return self._table(room).at(positions, end)
        if len({self._kind(length) for _, length in room}) == 1:
            return self._table(room[0][1]).at(positions, end)
        pieces = torch.split(positions, [new for new, _ in room])
        found = [self._table(length).at(piece, end) for piece, (_, length) in zip(pieces, room, strict=True)]
        return torch.cat([cos for cos, _ in found]), torch.cat([sin for _, sin in found])

    def upto(self, end: int, room: int) -> tuple[Tensor, Tensor]:
        """The whole tables, with at least ``end`` positions, of sequences that may have ``room`` tokens."""
        return self._table(room).upto(end)

    def _kind(self, room: int) -> int:
        """What sequences of the same angles have in common: 0 of short ones, 1 of longrope's long ones, or a length."""
        assert self._rope is not None
        if room <= self._rope.original_context:
            return 0
        return 1 if self._rope.kind == "longrope" else room

    def _table(self, room: int) -> RotaryTable:
        if not self._varies or (kind := self._kind(room)) == 0:
            return self._short
        found = self._longer.get(kind)
        if found is None:
            if len(self._longer) >= MOST_LENGTHS:
                self._longer.clear()
            found = RotaryTable(self._rope, self._head_dim, self._dtype, self._device, long=True, length=room)
            self._longer[kind] = found
        return found


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotates the first dimensions of ``[heads, T, head_dim]``, as many as ``cos`` and ``sin`` ``[T, rotated]`` have.

    Args:
        x: queries or keys.
        cos, sin: of each token; the angle of pair ``i`` stands in columns ``i`` and ``i + rotated / 2``.
        interleaved: whether pairs are neighbours, and not halves as in Llama.
    """
    rotated = cos.shape[-1]
    turned, rest = x[..., :rotated], x[..., rotated:]
    if interleaved:
        half = rotated // 2
        cos, sin = (part[..., :half].repeat_interleave(2, dim=-1) for part in (cos, sin))
        other = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        other = torch.cat((-second, first), dim=-1)
    turned = turned * cos + other * sin
    return turned if rotated == x.shape[-1] else torch.cat((turned, rest), dim=-1)


def query_factors(scale: QueryScale, positions: Tensor) -> Tensor:
    """What the queries of tokens at places of their sequences, int64 ``[T]``, are multiplied by: float32 ``[T]``."""
    steps = torch.floor((positions + scale.ahead).float() / scale.floor)
    return torch.log1p(steps) * scale.beta + 1.0
