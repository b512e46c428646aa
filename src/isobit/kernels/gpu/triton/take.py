"""The inputs of experts, sorted by expert, for linears whose tokens TMA copies (``linear_experts.py``)."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.pdl import wait


@triton.jit
def take_rows(
    x, order, y, PAIRS, K, SHARE: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr
):
    """The inputs of pairs, as they stand in ``order`` (``experts.py``). Grid: (places / ROWS, ceil(K / BLOCK_K)).

    Args:
        x: ``[PAIRS / SHARE, K]`` words of 32 bits; y: ``[places, K]``, where places of no pair are left as they are.
        ROWS: places of a program, of which there are a multiple.
    """
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = (tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    if OVERLAP:
        wait()
    pair = tl.load(order + place)
    real = (pair >= 0) & (pair < PAIRS)  # in empty tiles they are anything
    inside = real[:, None] & (k < K)
    row = (tl.where(real, pair, 0) // SHARE).to(tl.int64)[:, None] * K
    values = tl.load(x + row + k, mask=inside)
    tl.store(y + place.to(tl.int64)[:, None] * K + k, values, mask=inside)
