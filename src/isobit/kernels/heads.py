"""What an attention is, whoever computes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionSpec:
    """What an attention of one layer is.

    Attributes:
        heads, kv_heads, dim: query heads, key-value heads that divide them, and their width.
        window: latest tokens that a token sees, itself included; None for all.
        q_norm, k_norm: RMS norms ``[dim]`` of each query and key head, or neither.
        eps: their epsilon.
        scale: what scores are multiplied by; None for ``dim ** -0.5``.
        softcap: scores become ``softcap * tanh(score / softcap)`` before what is hidden is left out; None: they stay.
    """

    heads: int
    kv_heads: int
    dim: int
    window: int | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 0.0
    scale: float | None = None
    softcap: float | None = None

    @property
    def factor(self) -> float:
        """What scores are multiplied by."""
        return self.dim**-0.5 if self.scale is None else self.scale
