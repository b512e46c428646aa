"""What linears of experts have beside others: rows of a tall weight that belong to an expert, tokens that go to it.

The weights of all experts are one matrix ``[EXPERTS * N, K]``, one expert below the other. A *pair* is a token and one
of its experts: pair p is of token ``p // SHARE``; where every pair has an input of its own, SHARE is 1. N, and the
results ``[pairs, N]``, are of one expert.

- A pair at a time (kernels of one token): ``experts [pairs]`` has the expert of each.
- In tiles: ``order [tiles * BLOCK_M]`` has the pairs, those of one expert together, and no pair (``NOTHING``) where a
  tile is not full; ``experts [tiles]`` the expert of each tile, or -1 where the tile is empty.

EXPERTS is 0 in all other linears, which have nothing of this.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.pdl import wait

NOTHING = tl.constexpr(0x7FFFFFFF)


@triton.jit
def expert_of(experts, pair, OVERLAP: tl.constexpr):
    """The expert of a pair, int64, which the kernel in front may have chosen."""
    if OVERLAP:
        wait()
    return tl.load(experts + pair).to(tl.int64)


@triton.jit
def pairs_of(order, experts, tile, m, OVERLAP: tl.constexpr):
    """The pairs at places ``m`` of a tile, and its expert, int64: read together, as neither tells where the other is.

    Of an empty tile the pairs are anything.
    """
    if OVERLAP:
        wait()
    pairs = tl.load(order + m)
    return pairs, tl.load(experts + tile).to(tl.int64)
