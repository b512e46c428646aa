"""What a norm is, whoever computes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class NormSpec:
    """A norm over the last axis: ``x / sqrt(mean(x^2) + eps) * weight + bias``, in float32.

    Attributes:
        weight: float32 ``[K]``, with whatever its family adds to it; ``[heads, dim]``, whose product is K: each head is
            normed by itself.
        eps: its epsilon.
        bias: float32 ``[K]``; None: nothing is added.
        centred: whether the mean of ``x`` is taken away first (LayerNorm).
    """

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    centred: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is an RMS norm over all of K without bias, as most are."""
        return self.bias is None and not self.centred and self.weight.dim() == 1
