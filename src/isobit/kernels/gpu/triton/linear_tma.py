"""``y = x W^T`` of very many tokens on Hopper: tiles come and go by TMA, and programs stay where they are.

What ``linear_matrix`` does, with the bits that it gives: sums of int8 are exact. There all threads compute
addresses and ask for their parts of the next tiles. Here one instruction of one thread copies a tile, with a descriptor
of the matrix that the host has made. A program stays on its multiprocessor and walks over tiles; its two loops are one
to the compiler, so that what is multiplied next arrives while results leave.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.after import activated, plus
from isobit.kernels.gpu.triton.pdl import let_next_start, wait_for_last


@triton.jit
def _halves(tile):
    """The two halves of the columns of a tile."""
    ROWS: tl.constexpr = tile.shape[0]
    HALF: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, HALF)), (0, 2, 1)))


@triton.jit
def _leave(sums, y, residual, token_scale, scale, bias, m, n, M, N, gain, HAS_BIAS: tl.constexpr, AFTER: tl.constexpr):
    """Scales, bias and what ``after.py`` does of a part of a tile ``[tokens, rows]``, and its way to memory.

    Args:
        sums: of tokens ``m`` and on by rows ``n`` and on.
    """
    token = m + tl.arange(0, sums.shape[0])
    row = n + tl.arange(0, sums.shape[1])
    tile = sums.to(tl.float32)
    tile = tile * (tl.load(scale + row, mask=row < N, other=0.0) * gain)[None, :]
    tile = tile * tl.load(token_scale + token, mask=token < M, other=0.0)[:, None]
    if HAS_BIAS:
        tile += tl.load(bias + row, mask=row < N, other=0.0).to(tl.float32)[None, :]
    values = tile.to(y.dtype)
    if AFTER == "add":
        place = token.to(tl.int64)[:, None] * N + row[None, :]
        values = plus(values, residual, place, (token < M)[:, None] & (row < N)[None, :])
    elif AFTER != "":
        values = activated(values, AFTER).to(values.dtype)
    y.store([m, n], values)


@triton.jit
def linear_tma(
    x, w, y, token_scale, scale, bias, residual, M, N, K, gain,
    HAS_BIAS: tl.constexpr, AFTER: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_Y: tl.constexpr,
    SWIZZLE: tl.constexpr,
):  # fmt: skip
    """Rounded tokens by weights with a scale a row. Grid: as many programs as the machine holds, or as there are tiles.

    Args:
        x: descriptor of ``[M, K]`` int8 in blocks ``[BLOCK_M, BLOCK_K]``.
        w: descriptor of ``[N, K]`` int8 in blocks ``[BLOCK_N, BLOCK_K]``.
        y: descriptor of ``[M, N]`` in blocks ``[BLOCK_M, BLOCK_Y]``.
        token_scale, scale, bias, gain: as ``linear_matrix``.
        residual, AFTER: see ``after.store_rows``; no gates.
        OVERLAP: whether kernels overlap: the next one may start when all programs have asked for their last results
            to leave.
        BLOCK_Y: rows whose results leave at once: BLOCK_N, half or a quarter.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    steps = tl.cdiv(K, BLOCK_K)
    if OVERLAP:
        wait_for_last()
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_m, tl.num_programs(0), flatten=True):
        band = tile // (SWIZZLE * tiles_m)  # tiles along N that share x in the cache, as in linear_matrix
        height = tl.minimum(tiles_n - band * SWIZZLE, SWIZZLE)
        inside = tile % (SWIZZLE * tiles_m)
        n = (band * SWIZZLE + inside % height) * BLOCK_N
        m = inside // height * BLOCK_M
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        for step in range(steps):
            total = tl.dot(x.load([m, step * BLOCK_K]), w.load([n, step * BLOCK_K]).T, total, out_dtype=tl.int32)
        if BLOCK_N == BLOCK_Y:
            _leave(total, y, residual, token_scale, scale, bias, m, n, M, N, gain, HAS_BIAS, AFTER)
        elif BLOCK_N == 2 * BLOCK_Y:
            low, high = _halves(total)
            _leave(low, y, residual, token_scale, scale, bias, m, n, M, N, gain, HAS_BIAS, AFTER)
            _leave(high, y, residual, token_scale, scale, bias, m, n + BLOCK_Y, M, N, gain, HAS_BIAS, AFTER)
        else:
            tl.static_assert(BLOCK_N == 4 * BLOCK_Y, "a tile leaves whole, in halves or in quarters")
            low, high = _halves(total)
            first, second = _halves(low)
            third, fourth = _halves(high)
            _leave(first, y, residual, token_scale, scale, bias, m, n, M, N, gain, HAS_BIAS, AFTER)
            _leave(second, y, residual, token_scale, scale, bias, m, n + BLOCK_Y, M, N, gain, HAS_BIAS, AFTER)
            _leave(third, y, residual, token_scale, scale, bias, m, n + 2 * BLOCK_Y, M, N, gain, HAS_BIAS, AFTER)
            _leave(fourth, y, residual, token_scale, scale, bias, m, n + 3 * BLOCK_Y, M, N, gain, HAS_BIAS, AFTER)
    if OVERLAP:
        let_next_start()
