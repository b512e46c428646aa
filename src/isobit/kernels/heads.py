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
        rope_dims: how many dimensions of a head, the first ones, are rotated; None: all, 0: none. Cosines and sines are
            ``[T, rotated]``, and the angle of pair ``i`` stands in column ``i`` as well as ``i + rotated / 2``,
            whichever numbers make a pair.
        interleaved: whether pair ``i`` is the numbers ``2 i`` and ``2 i + 1``, and not ``i`` and ``i + rotated / 2``.
        norm_behind: whether queries and keys are normed behind the rotation, and not in front of it.
        sinks: float32 ``[heads]``: a score of each query head that takes part in its softmax and gives nothing; None:
            there is none. It is not scaled, capped or hidden.
        chunk: tokens of a chunk: the token at position ``p`` sees those from ``p - p % chunk`` on; None for all.
        scaled: whether each token's scores are multiplied by a factor of its own besides, float32 ``[T]``.
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
    rope_dims: int | None = None
    interleaved: bool = False
    norm_behind: bool = False
    sinks: Tensor | None = None
    chunk: int | None = None
    scaled: bool = False

    @property
    def rotated(self) -> int:
        """How many dimensions of a head, the first ones, are rotated."""
        return self.dim if self.rope_dims is None else self.rope_dims

    @property
    def factor(self) -> float:
        """What scores are multiplied by."""
        return self.dim**-0.5 if self.scale is None else self.scale
