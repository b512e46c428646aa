"""``y = x W^T`` of codes under scales of few bits (MX, NVFP4), both read as checkpoints have them and widened exactly.

A code times its group's scale is a number of 16 bits (docs/numerics.md, section 7), so products are added up along all
of K in the matrix unit, and the one number above e4m3 scales multiplies the sum. Activations come as numbers alike.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.decode import to_bf16
from isobit.kernels.gpu.triton.experts import pairs_of
from isobit.kernels.gpu.triton.linear_halves import e2m1_nibbles
from isobit.kernels.gpu.triton.linear_matrix import _epilogue, _reduce_split_k, _tile
from isobit.kernels.gpu.triton.pdl import let_next_start, prefetch, wait_for_last


@triton.jit
def _numbers(code, SCALE: tl.constexpr, DTYPE: tl.constexpr):
    """Codes of scales as numbers: e8m0 in bfloat16, e4m3fn in bfloat16 or float16."""
    if SCALE == "e8m0":
        bits = code.to(tl.int16)
        bits = tl.where(bits == 0, 0x40, tl.where(bits == 0xFF, 0x7FC0, bits << 7))
        return bits.to(tl.int16).to(tl.bfloat16, bitcast=True).to(DTYPE)
    else:
        bits = code.to(tl.int16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), half * 256.0).to(DTYPE)


@triton.jit
def linear_matrix_micro(
    x, w, groups, scale, bias, residual, y, partials, counters, experts, order, M, N, K,
    ELEMENT: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr, LATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE: tl.constexpr,
    AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Grid: as ``linear_matrix``.

    Args:
        x: ``[M, K]`` float16 or bfloat16, for e2m1 in units of BLOCK_K as ``quantize_micro`` leaves them.
        w: e4m3fn: uint8 codes ``[N, K]``; e2m1: ``[N, K / 4]`` int16, four codes a word, the first in the low bits.
        groups: uint8 ``[N, K / GROUP]``: scales of groups, e8m0 or e4m3fn (SCALE).
        scale: float32 ``[N]``: what stands above the scales.
        bias, residual, y, AFTER, partials, counters, experts, order, EXPERTS, SHARE: as ``linear_matrix``.
        GROUP: weights along K that share a scale; divides BLOCK_K.
        BLOCK_K: a step along K, of which K is a multiple.
    """
    PER: tl.constexpr = 4 if ELEMENT == "e2m1" else 1
    WORDS: tl.constexpr = BLOCK_K // PER
    OF_STEP: tl.constexpr = BLOCK_K // GROUP
    DTYPE: tl.constexpr = x.dtype.element_ty
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
        w, bias, scale = w + expert * N * (K // PER), bias + expert * N, scale + expert * N
        groups += expert * N * across
    real_n = tl.minimum(n, N - 1).to(tl.int64)
    row = w + real_n[:, None] * (K // PER)
    group = tl.arange(0, OF_STEP)
    word = group[:, None] * (GROUP // PER) + tl.arange(0, GROUP // PER)[None, :]
    rows = row[:, :, None] + word[None, :, :]
    scales = groups + (real_n[:, None] * across + group[None, :])
    tokens = x + of.to(tl.int64)[None, :] * K + tl.arange(0, WORDS)[:, None]
    units = K // BLOCK_K
    steps = tl.cdiv(units, SPLIT_K)
    begin = split * steps
    end = tl.minimum(units, begin + steps)
    if OVERLAP:
        prefetch(row, tl.minimum(begin, units - 1) * WORDS, K // PER, OVERLAP)
        if not LATE:
            let_next_start()
        wait_for_last()
    real = (m < M)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for unit in range(begin, end):
        words = tl.load(rows + unit * WORDS)
        of_groups = _numbers(tl.load(scales + unit * OF_STEP), SCALE, DTYPE)[:, :, None]
        at = tokens + unit * BLOCK_K
        if ELEMENT == "e2m1":
            w0, w1, w2, w3 = e2m1_nibbles(words, DTYPE, ASM)
            w0 = tl.reshape(w0 * of_groups, (BLOCK_N, WORDS))
            total = tl.dot(w0, tl.load(at, mask=real, other=0.0), total)
            w1 = tl.reshape(w1 * of_groups, (BLOCK_N, WORDS))
            total = tl.dot(w1, tl.load(at + WORDS, mask=real, other=0.0), total)
            w2 = tl.reshape(w2 * of_groups, (BLOCK_N, WORDS))
            total = tl.dot(w2, tl.load(at + 2 * WORDS, mask=real, other=0.0), total)
            w3 = tl.reshape(w3 * of_groups, (BLOCK_N, WORDS))
            total = tl.dot(w3, tl.load(at + 3 * WORDS, mask=real, other=0.0), total)
        else:
            weights = tl.reshape(to_bf16(words, ELEMENT, ASM) * of_groups, (BLOCK_N, WORDS))
            total = tl.dot(weights, tl.load(at, mask=real, other=0.0), total)
    if OVERLAP > 0 and LATE:
        let_next_start()
    last = True
    if SPLIT_K > 1:
        last, total = _reduce_split_k(total, partials, counters, tile, split, SPLIT_K, BLOCK_N, BLOCK_M)
    if last:
        _epilogue(total, y, residual, scale, scale, bias, n, m, of, N, M, 1.0, False, True, HAS_BIAS, AFTER)
