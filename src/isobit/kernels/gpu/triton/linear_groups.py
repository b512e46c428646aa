"""``y = x W^T`` of 8-bit codes whose scales are shared by groups along K: MXFP8, and what GGUF has in 8 and 6 bits."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.experts import pairs_of
from isobit.kernels.gpu.triton.linear_matrix import _epilogue, _operand, _reduce_split_k, _tile
from isobit.kernels.gpu.triton.pdl import let_next_start, prefetch, wait_for_last


@triton.jit
def linear_matrix_groups(
    x, w, scale, bias, residual, y, partials, counters, experts, order, M, N, K, gain,
    ELEMENT: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, LATE: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    SWIZZLE: tl.constexpr, AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Every ``GROUP`` along K has partial sums of its own. Grid: as ``linear_matrix``.

    Args:
        x: ``[M, K]`` float16 or bfloat16.
        w: ``[N, K]`` codes, uint8 or int8.
        scale: ``[N, K / GROUP]`` float32, bfloat16 or float16.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, order, EXPERTS, SHARE: see ``experts.py``; then M is that of the tiles.
        partials, counters, gain: as ``linear_matrix``.
        GROUP: weights along K that share a scale; K is a multiple.
        BLOCK_K: a step along K; divides GROUP.
    """
    tile_n, tile_m, split, tile = _tile(N, M, BLOCK_N, BLOCK_M, SPLIT_K, SWIZZLE)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    groups = K // GROUP
    of = m
    if EXPERTS > 0:
        pairs, expert = pairs_of(order, experts, tile_m, m, OVERLAP > 0)
        if expert < 0:
            return
        m = pairs
        of = m // SHARE
        w, bias, scale = w + expert * N * K, bias + expert * N, scale + expert * N * groups
    column = tl.arange(0, BLOCK_K)
    real_n = tl.minimum(n, N - 1).to(tl.int64)
    row = w + real_n[:, None] * K
    rows = row + column[None, :]
    tokens = x + of.to(tl.int64)[None, :] * K + column[:, None]
    scales = scale + real_n * groups
    steps = tl.cdiv(groups, SPLIT_K)
    begin = split * steps
    end = tl.minimum(groups, begin + steps)
    if OVERLAP:
        prefetch(row, tl.minimum(begin, groups - 1) * GROUP, K, OVERLAP)
        if not LATE:
            let_next_start()
        wait_for_last()
    real = (m < M)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for group in range(begin, end):
        at = group * GROUP
        values = tl.load(tokens + at, mask=real, other=0.0)
        partial = tl.dot(_operand(tl.load(rows + at), ELEMENT, x.dtype.element_ty, ASM), values)
        for inner in tl.static_range(BLOCK_K, GROUP, BLOCK_K):
            values = tl.load(tokens + (at + inner), mask=real, other=0.0)
            weights = _operand(tl.load(rows + (at + inner)), ELEMENT, x.dtype.element_ty, ASM)
            partial = tl.dot(weights, values, partial)
        total += partial * (tl.load(scales + group).to(tl.float32) * gain)[:, None]
    if OVERLAP > 0 and LATE:
        let_next_start()
    last = True
    if SPLIT_K > 1:
        last, total = _reduce_split_k(total, partials, counters, tile, split, SPLIT_K, BLOCK_N, BLOCK_M)
    if last:
        _epilogue(total, y, residual, scale, scale, bias, n, m, of, N, M, 1.0, False, False, HAS_BIAS, AFTER)
