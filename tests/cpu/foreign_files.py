"""Tiny checkpoints as other tools write them, made from what is known of their formats, a number at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight outputs, from the lowest bits of a word up


@dataclass(frozen=True)
class Codes:
    """A weight ``[N, K]`` in integers.

    Attributes:
        codes: ``[N, K]``, from 0.
        zero: ``[N, G]``.
        scale: float16 ``[N, G]``.
        index: the group of each input ``[K]``.
    """

    codes: Tensor
    zero: Tensor
    scale: Tensor
    index: Tensor

    @property
    def values(self) -> Tensor:
        """Float16 ``[N, K]``: the product, in float16, of what all of these tools multiply."""
        return self.scale[:, self.index] * (self.codes - self.zero[:, self.index]).half()


def random_codes(
    n: int, k: int, bits: int, group: int, *, symmetric: bool = False, shuffled: bool = False, seed: int = 0
) -> Codes:
    """A random weight; ``shuffled`` puts inputs into groups at random, as act-order does."""
    made = torch.Generator().manual_seed(seed)
    size = k if group == -1 else group
    groups = -(-k // size)
    codes = torch.randint(0, 1 << bits, (n, k), generator=made)
    middle = torch.full((n, groups), 1 << (bits - 1))
    zero = middle if symmetric else torch.randint(1, 1 << bits, (n, groups), generator=made)
    scale = (torch.rand(n, groups, generator=made) * 0.02 + 0.001).half()
    index = torch.arange(k) // size
    return Codes(codes, zero, scale, index[torch.randperm(k, generator=made)] if shuffled else index)


def in_words(rows: Tensor, bits: int) -> Tensor:
    """Numbers ``[R, C]`` as little-endian streams of bits along the rows, int32 ``[R, C * bits / 32]``."""
    places = np.arange(bits)
    stream = (rows.numpy()[:, :, None] >> places & 1).astype(np.uint8).reshape(len(rows), -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view(np.int32).copy())


def gptq(weight: Codes, bits: int, *, version: int = 1, index: bool = True) -> dict[str, Tensor]:
    """The tensors of a linear in GPTQ's layout, by part."""
    n = len(weight.codes)
    zeros = in_words(weight.zero.t().contiguous(), bits)
    if version == 1:
        fields = (weight.zero.t() - 1).contiguous()
        assert int(fields.min()) >= 0
        zeros = in_words(fields, bits)
    assert zeros.shape[1] == -(-n * bits // 32)
    parts = {
        "qweight": in_words(weight.codes, bits).t().contiguous(),
        "qzeros": zeros,
        "scales": weight.scale.t().contiguous(),
    }
    return parts | ({"g_idx": weight.index.to(torch.int32)} if index else {})


def awq_gemm(weight: Codes) -> dict[str, Tensor]:
    """The tensors of a linear in AWQ's order for matrix products, by part."""

    def packed(rows: Tensor) -> Tensor:
        return in_words(rows.view(len(rows), -1, 8)[:, :, list(AWQ_ORDER)].flatten(1), 4)

    return {
        "qweight": packed(weight.codes.t().contiguous()),
        "qzeros": packed(weight.zero.t().contiguous()),
        "scales": weight.scale.t().contiguous(),
    }


def awq_gemv(weight: Codes, multiple: int = 1) -> dict[str, Tensor]:
    """The tensors of a linear in AWQ's order for vector products, by part; words of zeros in multiples of some."""
    n, groups = weight.zero.shape
    width = math.ceil(math.ceil(groups / 8) / multiple) * multiple
    zero, scale = torch.zeros(n, 8 * width, dtype=torch.int64), torch.zeros(n, 8 * width, dtype=torch.float16)
    zero[:, :groups], scale[:, :groups] = weight.zero, weight.scale
    return {"qweight": in_words(weight.codes, 4), "qzeros": in_words(zero, 4), "scales": scale}
