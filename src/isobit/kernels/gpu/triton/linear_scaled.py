"""``y = x W^T`` on block-scaled matrix units: codes and scales of both operands go in as they are (MX, NVFP4).

What such a unit keeps of its sums was not measured on a card: with PROMOTE each step along K is added up in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.experts import pairs_of
from isobit.kernels.gpu.triton.linear_matrix import _epilogue, _reduce_split_k, _tile
from isobit.kernels.gpu.triton.pdl import let_next_start, wait_for_last


@triton.jit
def linear_matrix_scaled(
    x, w, token_scale, groups, scale, bias, residual, y, partials, counters, experts, order, M, N, K,
    ELEMENT: tl.constexpr, INPUT: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr, LATE: tl.constexpr, PROMOTE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE: tl.constexpr,
    AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Grid: as ``linear_matrix``.

    Args:
        x: uint8 codes of activations: ``[M, K]`` e4m3, or ``[M, K / 2]`` e2m1, the first of two in the low bits.
        w: uint8 codes of weights, likewise, ``[N, ...]``.
        token_scale: uint8 ``[M, K / GROUP]``: scales of groups of activations, e8m0 (GROUP 32) or e4m3 (GROUP 16).
        groups: the same of weights, ``[N, K / GROUP]``.
        scale: float32 ``[N]``: what stands above the scales of both.
        bias, residual, y, AFTER, partials, counters, experts, order, EXPERTS, SHARE: as ``linear_matrix``.
        ELEMENT, INPUT: formats of weights and of activations, as ``tl.dot_scaled`` calls them.
        PROMOTE: add the sums of each step to the total outside the matrix unit.
        BLOCK_K: a step along K, of which K is a multiple.
    """
    PER_W: tl.constexpr = 2 if ELEMENT == "e2m1" else 1
    PER_X: tl.constexpr = 2 if INPUT == "e2m1" else 1
    tile_n, tile_m, split, tile = _tile(N, M, BLOCK_N, BLOCK_M, SPLIT_K, SWIZZLE)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    across = K // GROUP
    of = m
    if EXPERTS > 0:
        pairs, expert = pairs_of(order, experts, tile_m, m, OVERLAP > 0)
        if expert < 0:
            return
        m = pairs
        of = m // SHARE
        w, bias, scale = w + expert * N * (K // PER_W), bias + expert * N, scale + expert * N
        groups += expert * N * across
    real_n = tl.minimum(n, N - 1).to(tl.int64)
    real = m < M
    steps = tl.cdiv(K // BLOCK_K, SPLIT_K)
    begin = split * steps
    end = tl.minimum(K // BLOCK_K, begin + steps)
    rows = w + real_n[:, None] * (K // PER_W) + tl.arange(0, BLOCK_K // PER_W)[None, :]
    tokens = x + of.to(tl.int64)[None, :] * (K // PER_X) + tl.arange(0, BLOCK_K // PER_X)[:, None]
    group = tl.arange(0, BLOCK_K // GROUP)[None, :]
    of_rows = groups + real_n[:, None] * across + group
    of_tokens = token_scale + of.to(tl.int64)[:, None] * across + group
    if OVERLAP:
        if not LATE:
            let_next_start()
        wait_for_last()
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(begin, end):
        values = tl.load(tokens + step * (BLOCK_K // PER_X), mask=real[None, :], other=0)
        value_scales = tl.load(of_tokens + step * (BLOCK_K // GROUP), mask=real[:, None], other=0)
        weights = tl.load(rows + step * (BLOCK_K // PER_W))
        weight_scales = tl.load(of_rows + step * (BLOCK_K // GROUP))
        if GROUP == 16:
            value_scales = value_scales.to(tl.float8e4nv, bitcast=True)
            weight_scales = weight_scales.to(tl.float8e4nv, bitcast=True)
        if PROMOTE:
            total += tl.dot_scaled(weights, weight_scales, ELEMENT, values, value_scales, INPUT)
        else:
            total = tl.dot_scaled(weights, weight_scales, ELEMENT, values, value_scales, INPUT, total)
    if OVERLAP > 0 and LATE:
        let_next_start()
    last = True
    if SPLIT_K > 1:
        last, total = _reduce_split_k(total, partials, counters, tile, split, SPLIT_K, BLOCK_N, BLOCK_M)
    if last:
        _epilogue(total, y, residual, scale, scale, bias, n, m, of, N, M, 1.0, False, True, HAS_BIAS, AFTER)
