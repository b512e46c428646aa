"""Rotary position embeddings as descriptions: how positions turn pairs of dimensions. ``rope`` computes by them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope", "dynamic"]
SectionLayout = Literal["pairs", "columns", "woven"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        dims: how many dimensions of a head, the first ones, are rotated; None: all.
        interleaved: whether pairs are neighbours (0 and 1, 2 and 3, ...) and not halves, as in Llama.
        kind: how frequencies are stretched beyond the original context.
        theta: base of the wavelengths.
        factor: how much longer the context is than the original one (linear, llama3, yarn, longrope); how fast theta
            grows with sequences that are longer (dynamic).
        original_context: the context that frequencies were made for (llama3, yarn, longrope, dynamic); 0 where it is
            not known (linear).
        low_freq_factor, high_freq_factor: the band that llama3 interpolates in.
        beta_fast, beta_slow: rotations that bound yarn's band.
        attention_factor: what yarn and longrope multiply cosines and sines by; None to derive it from ``factor``.
        long_attention_factor: the same of longrope's longer sequences; None: it is the same.
        mscale, mscale_all_dim: yarn's other way to derive the attention factor.
        truncate: whether yarn's band is rounded to whole dimensions.
        short_factors, long_factors: longrope's, one for each pair of dimensions: of contexts up to the original one,
            and of longer ones.
        sections: where a token has a position on each of several axes (of an image: time, row, column): how many pairs
            of dimensions are turned by each; empty: a token has one position.
        section_layout: which these are: ``pairs``: the first pairs by the first axis, those behind them by the second,
            and so on; ``woven``: pair ``i`` by axis ``i % axes`` as long as that axis has pairs, and by the first where
            it has none; ``columns``: as ``pairs``, but of single dimensions, twice as many, so that the two dimensions
            of a pair may be turned by different axes (Hunyuan).
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    long_attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    dims: int | None = None
    interleaved: bool = False
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    sections: tuple[int, ...] = ()
    section_layout: SectionLayout = "pairs"

    @property
    def axes(self) -> int:
        """How many positions a token has."""
        return max(1, len(self.sections))

    def axis_of(self, rotated: int) -> tuple[int, ...]:
        """Which axis turns each of so many dimensions; the two of pair ``i`` are ``i`` and ``i + rotated / 2``."""
        if self.section_layout == "columns":
            return tuple(axis for axis, count in enumerate(self.sections) for _ in range(2 * count))
        if self.section_layout == "pairs":
            found = [axis for axis, count in enumerate(self.sections) for _ in range(count)]
        else:
            found = [0] * (rotated // 2)
            for axis, count in enumerate(self.sections[1:], 1):
                for pair in range(axis, min(len(self.sections) * count, len(found)), len(self.sections)):
                    found[pair] = axis
        return (*found, *found)

    def theta_at(self, length: int, rotated: int) -> float:
        """The base of wavelengths of a sequence of so many tokens: of ``dynamic`` it grows beyond the original context.

        Args:
            length: tokens that the sequence may have.
            rotated: dimensions of a head that are rotated, more than 2 of ``dynamic``.
        """
        if self.kind != "dynamic" or length <= self.original_context:
            return self.theta
        stretch = self.factor * length / self.original_context - (self.factor - 1)
        return float(self.theta * stretch ** (rotated / (rotated - 2)))

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied by; yarn and longrope derive it where it is not given."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "longrope":
            longer = self.factor > 1 and self.original_context > 1
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context)) if longer else 1.0
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True)
class QueryScale:
    """Queries grow with their positions, by ``1 + beta * ln(1 + floor((position + ahead) / floor))``.

    Attributes:
        floor: tokens of a step.
        beta: how much a step adds.
        ahead: 1 where positions are counted from one (Llama 4), 0 where from zero (Ministral 3).
    """

    floor: int
    beta: float
    ahead: int = 0
