"""Rounded activations as a value, so that what several linears want rounded alike is rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.schemes import ActSpec

Form = Literal["codes", "float16", "bfloat16"]


@dataclass(frozen=True)
class RoundingKey:
    """What decides the bits of rounded activations: two linears that name the same can share them.

    Attributes:
        spec: element format, and what shares a scale; None for numbers that are not rounded but multiplied by a power
            of two per token, so that ``form`` holds them.
        form: ``codes``, or the dtype in which values of the codes are held for kernels that multiply those.
        static: the given scale of static activations, else None.
        unit: values stand in units of so many, not as they came (``triton/quantize_micro.py``); 0: they do not.
    """

    spec: ActSpec | None
    form: Form
    static: float | None
    unit: int = 0


@dataclass(frozen=True)
class Rounded:
    """Activations ``[..., K]`` as codes and scales.

    Attributes:
        codes: ``[..., K]`` in the dtype of codes of the element format, or values of them in 16 bits.
        scales: float32 ``[..., 1]``, or ``[..., groups]``, that multiply them; codes of those where they are stored so;
            none where the values are of codes and scales.
        dtype: of the activations before they were rounded, and of what is computed from them.
        key: how they were rounded.
    """

    codes: Tensor
    scales: Tensor
    dtype: torch.dtype
    key: RoundingKey

    @property
    def shape(self) -> torch.Size:
        """``[..., K]``."""
        return self.codes.shape

    @property
    def tokens(self) -> int:
        """Product of all sizes but the last."""
        return self.codes.numel() // max(1, self.codes.shape[-1])

    def require(self, key: RoundingKey | None) -> None:
        """That a linear asks for this rounding.

        Raises:
            FormatError: it asks for another, or takes activations as they are.
        """
        if key != self.key:
            raise FormatError(f"a linear that takes {key or 'activations as they are'} was given {self.key}")


class Rounder(Protocol):
    """Rounds ``[..., K]``."""

    @property
    def key(self) -> RoundingKey:
        """How."""

    def __call__(self, x: Tensor) -> Rounded:
        """Float activations ``[..., K]`` to their codes and scales."""


class RoundingLinear(Protocol):
    """A bound linear that can be given what it would have rounded."""

    def rounding(self, tokens: int, dtype: torch.dtype) -> Rounder | None:
        """What rounds so many tokens for it; None where its kernel takes them as they are."""

    def __call__(self, x: Tensor | Rounded) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""


def shared(linears: Sequence[RoundingLinear], tokens: int, dtype: torch.dtype) -> Rounder | None:
    """The rounding that all linears of one input ask for; None where they differ or one asks for none.

    Args:
        linears: one or more.
        tokens, dtype: of the input.
    """
    first = linears[0].rounding(tokens, dtype)
    if first is None:
        return None
    others = (one.rounding(tokens, dtype) for one in linears[1:])
    return first if all(one is not None and one.key == first.key for one in others) else None


def project(linears: Sequence[RoundingLinear], x: Tensor | Rounded) -> list[Tensor]:
    """Several linears of one input, which is rounded once for all that ask for the same.

    The results are those of each linear alone, bit for bit.

    Args:
        linears: bound to weights ``[N, K]``.
        x: ``[..., K]``.

    Raises:
        FormatError: ``x`` is rounded in another way than a linear asks for.
    """
    if isinstance(x, Rounded):
        return [linear(x) for linear in linears]
    tokens = x.numel() // max(1, x.shape[-1])
    made: dict[RoundingKey, Rounded] = {}
    results = []
    for linear in linears:
        rounder = linear.rounding(tokens, x.dtype) if tokens else None
        if rounder is not None and rounder.key not in made:
            made[rounder.key] = rounder(x)
        results.append(linear(x if rounder is None else made[rounder.key]))
    return results
