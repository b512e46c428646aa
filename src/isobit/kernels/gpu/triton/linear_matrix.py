"""``y = x W^T`` on matrix units, for one token up to thousands: weights are the left operand, widened in registers.

A program owns a tile of ``BLOCK_N`` output rows by ``BLOCK_M`` tokens and walks along K, or along one of ``SPLIT_K``
splits; the last split of a tile to finish adds all of them, in order, so that the result does not depend on timing.
Sums are float32 (int32 for int8 by int8). The columns of a tile do not meet: a token's result does not depend on the
tokens beside it while the tile shape stays the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.after import store_tile
from isobit.kernels.gpu.triton.decode import nibbles, stream, to_bf16, to_f16
from isobit.kernels.gpu.triton.experts import pairs_of
from isobit.kernels.gpu.triton.pdl import let_next_start, prefetch, wait_for_last


@triton.jit
def _tile(N, M, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE: tl.constexpr):
    """Tile indices (n, m) of this program, its split of K, its tile; ``SWIZZLE`` tiles along N share x in the cache."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    split = program % SPLIT_K
    tile = program // SPLIT_K
    band = tile // (SWIZZLE * tiles_m)
    height = tl.minimum(tiles_n - band * SWIZZLE, SWIZZLE)
    inside = tile % (SWIZZLE * tiles_m)
    return band * SWIZZLE + inside % height, inside // height, split, tile


@triton.jit
def _operand(codes, ELEMENT: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """A tile of weights in the dtype of the product."""
    if ELEMENT == "native":
        return codes
    elif DTYPE == tl.float16:
        return to_f16(codes, ELEMENT, ASM)
    elif DTYPE == tl.bfloat16:
        return to_bf16(codes, ELEMENT, ASM)
    else:
        return to_f16(codes, ELEMENT, ASM).to(tl.float32)


@triton.jit
def _reduce_split_k(total, partials, counters, tile, split, SPLIT_K: tl.constexpr, BLOCK_N: tl.constexpr,
                    BLOCK_M: tl.constexpr):  # fmt: skip
    """Leaves this split's sums in ``partials``; returns whether it was the tile's last, and then the sum of all."""
    place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    first = partials + tile.to(tl.int64) * (SPLIT_K * BLOCK_N * BLOCK_M)
    tl.store(first + split * (BLOCK_N * BLOCK_M) + place, total)
    tl.debug_barrier()  # all threads have stored before one of them says so
    before = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")
    last = before == SPLIT_K - 1
    if last:
        tl.store(counters + tile, 0)  # ready for the next launch
        total = tl.load(first + place, cache_modifier=".cg")
        for other in tl.static_range(1, SPLIT_K):
            total += tl.load(first + other * (BLOCK_N * BLOCK_M) + place, cache_modifier=".cg")
    return last, total


@triton.jit
def _factors(token_scale, scale, n, of, real, N, gain, HAS_TOKEN_SCALE: tl.constexpr, HAS_SCALE: tl.constexpr):
    """What the sums of rows ``n`` and of tokens ``of`` are multiplied by, those that are ``real``; 1 for nothing."""
    of_row = tl.load(scale + n, mask=n < N, other=0.0) * gain if HAS_SCALE else 1.0
    of_token = tl.load(token_scale + of, mask=real, other=0.0) if HAS_TOKEN_SCALE else 1.0
    return of_row, of_token


@triton.jit
def _epilogue(total, y, residual, token_scale, scale, bias, n, m, of, N, M, gain, HAS_TOKEN_SCALE: tl.constexpr,
              HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, AFTER: tl.constexpr):  # fmt: skip
    """The epilogue: scales, bias, and what ``store_tile`` does with a tile ``[BLOCK_N, BLOCK_M]``."""
    of_row, of_token = _factors(token_scale, scale, n, of, m < M, N, gain, HAS_TOKEN_SCALE, HAS_SCALE)
    _finish(total, y, residual, of_row, of_token, bias, n, m, N, M, HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS, AFTER)


@triton.jit
def _finish(total, y, residual, of_row, of_token, bias, n, m, N, M, HAS_TOKEN_SCALE: tl.constexpr,
            HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, AFTER: tl.constexpr):  # fmt: skip
    """The epilogue behind ``_factors``."""
    y_tile = total.to(tl.float32)
    if HAS_SCALE:
        y_tile = y_tile * of_row[:, None]
    if HAS_TOKEN_SCALE:
        y_tile = y_tile * of_token[None, :]
    if HAS_BIAS:
        y_tile += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    store_tile(y, residual, y_tile, n, m, N, M, AFTER)


@triton.jit
def linear_matrix(
    x, w, token_scale, scale, bias, residual, y, partials, counters, experts, order, M, N, K, gain,
    ELEMENT: tl.constexpr, HAS_TOKEN_SCALE: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, IMPRECISE: tl.constexpr,
    PROMOTE: tl.constexpr, PRECISION: tl.constexpr, LATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE: tl.constexpr,
    AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Scales shared by rows (or none). Grid: (ceil(N / BLOCK_N) * ceil(M / BLOCK_M) * SPLIT_K,).

    Args:
        x: ``[M, K]``: activations, or their codes (int8, float8), or their code values (float16).
        w: ``[N, K]``: the dtype of ``x`` for ELEMENT "native"; else codes, uint8 or int8.
        token_scale: ``[M]`` float32, of rounded activations.
        scale: ``[N]`` float32.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, order, EXPERTS, SHARE: see ``experts.py``; then M is that of the tiles.
        partials, counters: float32 (int32) partial sums of the tiles and int32 zeros, one per tile; SPLIT_K > 1 only.
        gain: what the decoder left to be multiplied.
        OVERLAP: cache lines of each row to ask for while the kernel before this one still runs; 0 not to overlap it; -1
            if that kernel writes the weights and another one must not do so again before this one has ended.
        LATE: let the next kernel start behind the loop over K, and not at the beginning.
        IMPRECISE: products along K that a Hopper float8 unit may add up before float32 takes over.
        PROMOTE: add the sum of each step along K to the total outside the matrix unit (which rounds its sums).
        PRECISION: how float32 operands are multiplied: "ieee", or "tf32x3" in three products of their halves.
    """
    tile_n, tile_m, split, tile = _tile(N, M, BLOCK_N, BLOCK_M, SPLIT_K, SWIZZLE)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    of = m
    if EXPERTS > 0:
        pairs, expert = pairs_of(order, experts, tile_m, m, OVERLAP > 0)
        if expert < 0:
            return
        m = pairs
        of = m // SHARE
        w, scale, bias = w + expert * N * K, scale + expert * N, bias + expert * N
    column = tl.arange(0, BLOCK_K)
    rows = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K  # padding: rows past the end repeat the last one
    tokens = x + of.to(tl.int64)[None, :] * K
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    begin = split * steps * BLOCK_K
    end = tl.minimum(K, begin + steps * BLOCK_K)
    if OVERLAP > 0:
        prefetch(rows, tl.minimum(begin, K - 1), K, OVERLAP)
        if not LATE:
            let_next_start()
        wait_for_last()
    elif OVERLAP < 0:
        wait_for_last()
    real = (m < M)[None, :]
    if EXPERTS > 0:  # rows of K are short: scales that are asked for behind them are waited for
        of_row, of_token = _factors(token_scale, scale, n, of, m < M, N, gain, HAS_TOKEN_SCALE, HAS_SCALE)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    for at in range(begin, end, BLOCK_K):
        k = at + column
        if EVEN_K:
            codes = tl.load(rows + k[None, :])
            values = tl.load(tokens + k[:, None], mask=real, other=0.0)
        else:
            codes = tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0.0)
            values = tl.load(tokens + k[:, None], mask=real & (k < K)[:, None], other=0.0)
        weights = _operand(codes, ELEMENT, x.dtype.element_ty, ASM)
        if PROMOTE:
            total += tl.dot(weights, values, max_num_imprecise_acc=IMPRECISE, out_dtype=total.dtype)
        else:
            total = tl.dot(weights, values, total, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE,
                           out_dtype=total.dtype)  # fmt: skip
    if OVERLAP > 0 and LATE:
        let_next_start()
    last = True
    if SPLIT_K > 1:
        last, total = _reduce_split_k(total, partials, counters, tile, split, SPLIT_K, BLOCK_N, BLOCK_M)
    if EXPERTS > 0:
        _finish(total, y, residual, of_row, of_token, bias, n, m, N, M, HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS, AFTER)
    elif last:
        _epilogue(total, y, residual, token_scale, scale, bias, n, m, of, N, M, gain, HAS_TOKEN_SCALE, HAS_SCALE,
                  HAS_BIAS, AFTER)  # fmt: skip


@triton.jit
def linear_matrix_block(
    x, w, token_scale, scale, bias, residual, y, partials, counters, experts, order, M, N, K, gain,
    ELEMENT: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, IMPRECISE: tl.constexpr,
    LATE: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SWIZZLE: tl.constexpr, AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Scales of blocks: every ``GROUP`` along K has partial sums of its own. Grid: as ``linear_matrix``.

    Args:
        x: ``[M, K]``: codes (float8) or code values (float16).
        w: ``[N, K]``: float8 for ELEMENT "native", else uint8 codes.
        token_scale: ``[M, K / GROUP]`` float32.
        scale: ``[ceil(N / GROUP), K / GROUP]`` float32; BLOCK_N divides GROUP.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, order, EXPERTS, SHARE: see ``experts.py``; then M is that of the tiles.
        partials, counters, gain, IMPRECISE: as ``linear_matrix``.
        GROUP: rows and columns of a block, and activations that share a scale; K is a multiple.
        BLOCK_K: a step along K; divides GROUP.
    """
    tl.static_assert(GROUP % BLOCK_N == 0, "a tile lies in one row of blocks")
    tile_n, tile_m, split, tile = _tile(N, M, BLOCK_N, BLOCK_M, SPLIT_K, SWIZZLE)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    of = m
    if EXPERTS > 0:
        pairs, expert = pairs_of(order, experts, tile_m, m, OVERLAP > 0)
        if expert < 0:
            return
        m = pairs
        of = m // SHARE
        high = tl.cdiv(N, GROUP)  # blocks of an expert, which begins with a row of them
        w, bias = w + expert * (high * GROUP) * K, bias + expert * N
        scale += expert * (high * (K // GROUP))
    column = tl.arange(0, BLOCK_K)
    groups = K // GROUP
    row = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    rows = row + column[None, :]
    tokens = x + of.to(tl.int64)[None, :] * K + column[:, None]
    token_scales = token_scale + of.to(tl.int64) * groups
    scales = scale + (tile_n * BLOCK_N // GROUP) * groups
    steps = tl.cdiv(groups, SPLIT_K)
    begin = split * steps
    end = tl.minimum(groups, begin + steps)
    if OVERLAP:
        prefetch(row, tl.minimum(begin, groups - 1) * GROUP, K, OVERLAP)
        if not LATE:
            let_next_start()
        wait_for_last()
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for group in range(begin, end):
        at = group * GROUP
        values = tl.load(tokens + at, mask=(m < M)[None, :], other=0.0)
        weights = _operand(tl.load(rows + at), ELEMENT, x.dtype.element_ty, ASM)
        partial = tl.dot(weights, values, max_num_imprecise_acc=IMPRECISE, out_dtype=tl.float32)
        for inner in tl.static_range(BLOCK_K, GROUP, BLOCK_K):
            values = tl.load(tokens + (at + inner), mask=(m < M)[None, :], other=0.0)
            weights = _operand(tl.load(rows + (at + inner)), ELEMENT, x.dtype.element_ty, ASM)
            partial = tl.dot(weights, values, partial, max_num_imprecise_acc=IMPRECISE, out_dtype=tl.float32)
        factor = tl.load(token_scales + group, mask=m < M, other=0.0) * (tl.load(scales + group) * gain)
        total += partial * factor[None, :]
    if OVERLAP > 0 and LATE:
        let_next_start()
    last = True
    if SPLIT_K > 1:
        last, total = _reduce_split_k(total, partials, counters, tile, split, SPLIT_K, BLOCK_N, BLOCK_M)
    if last:
        _epilogue(total, y, residual, token_scale, scale, bias, n, m, of, N, M, 1.0, False, False, HAS_BIAS, AFTER)


@triton.jit
def _add_quarter(total, partial, factor, weights, values, scales, SAME: tl.constexpr):
    """``partial`` plus the products of a quarter unit; if it has scales of its own (not SAME), in ``total`` first."""
    if SAME:
        return total, tl.dot(weights, values, partial), factor
    else:
        total += partial * factor
        factor = tl.load(scales).to(tl.float32)[:, None]
        return total, tl.dot(weights, values), factor


@triton.jit
def linear_matrix_nibbles(
    x, w, scale, zero, bias, residual, y, partials, counters, experts, order, M, N, K,
    GROUP: tl.constexpr, UNIT: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr, LATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE: tl.constexpr,
    AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """4-bit codes in groups along K, each with partial sums of its own. Grid: as ``linear_matrix``.

    Args:
        x: ``[M, K]`` float16 or bfloat16.
        w: ``[N, K / 4]`` int16 in units of ``UNIT`` codes: word p of a unit holds its codes p, p + UNIT / 4,
            p + UNIT / 2 and p + 3 UNIT / 4, lowest bits first (``layouts.interleave_nibbles``).
        scale: ``[K / GROUP, N]`` float32, bfloat16 or float16.
        zero: ``[K / GROUP, N]`` uint8, if HAS_ZERO; else the stored code of 0.0 is 8.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, order, EXPERTS, SHARE: see ``experts.py``; then M is that of the tiles.
        GROUP: weights along K that share a scale, a multiple of a quarter unit.
        UNIT: K is a multiple.
    """
    tl.static_assert(not HAS_ZERO or GROUP % UNIT == 0, "zero points: one group in a unit")
    QUARTER: tl.constexpr = UNIT // 4
    tile_n, tile_m, split, tile = _tile(N, M, BLOCK_N, BLOCK_M, SPLIT_K, SWIZZLE)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    across = N
    of = m
    if EXPERTS > 0:
        pairs, expert = pairs_of(order, experts, tile_m, m, OVERLAP > 0)
        if expert < 0:
            return
        m = pairs
        of = m // SHARE
        across = N * EXPERTS
        w, bias = w + expert * N * (K // 4), bias + expert * N
        scale, zero = scale + expert * N, zero + expert * N
    column = tl.arange(0, QUARTER)
    real_n = tl.minimum(n, N - 1)
    row = w + real_n.to(tl.int64)[:, None] * (K // 4)
    rows = row + column[None, :]
    tokens = x + of.to(tl.int64)[None, :] * K + column[:, None]
    units = K // UNIT
    steps = tl.cdiv(units, SPLIT_K)
    begin = split * steps
    end = tl.minimum(units, begin + steps)
    if OVERLAP:
        prefetch(row, tl.minimum(begin, units - 1) * QUARTER, K // 4, OVERLAP)
        if not LATE:
            let_next_start()
        wait_for_last()
    real = (m < M)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for unit in range(begin, end):
        words = tl.load(rows + unit * QUARTER)
        at = unit * UNIT
        x0 = tl.load(tokens + at, mask=real, other=0.0)
        x1 = tl.load(tokens + (at + QUARTER), mask=real, other=0.0)
        x2 = tl.load(tokens + (at + 2 * QUARTER), mask=real, other=0.0)
        x3 = tl.load(tokens + (at + 3 * QUARTER), mask=real, other=0.0)
        if HAS_ZERO:
            origin = tl.load(zero + (at // GROUP * across + real_n)).to(tl.float32)[:, None]
        else:
            origin = tl.full((BLOCK_N, 1), 8.0, tl.float32)
        w0, w1, w2, w3 = nibbles(words, tl.broadcast_to(origin, (BLOCK_N, QUARTER)), x.dtype.element_ty, ASM)
        s0 = tl.load(scale + (at // GROUP * across + real_n)).to(tl.float32)[:, None]
        partial = tl.dot(w0, x0)
        g1 = scale + ((at + QUARTER) // GROUP * across + real_n)
        g2 = scale + ((at + 2 * QUARTER) // GROUP * across + real_n)
        g3 = scale + ((at + 3 * QUARTER) // GROUP * across + real_n)
        total, partial, s0 = _add_quarter(total, partial, s0, w1, x1, g1, GROUP % (2 * QUARTER) == 0)
        total, partial, s0 = _add_quarter(total, partial, s0, w2, x2, g2, GROUP % UNIT == 0)
        total, partial, s0 = _add_quarter(total, partial, s0, w3, x3, g3, GROUP % (2 * QUARTER) == 0)
        total += partial * s0
    if OVERLAP > 0 and LATE:
        let_next_start()
    last = True
    if SPLIT_K > 1:
        last, total = _reduce_split_k(total, partials, counters, tile, split, SPLIT_K, BLOCK_N, BLOCK_M)
    if last:
        _epilogue(total, y, residual, scale, scale, bias, n, m, of, N, M, 1.0, False, False, HAS_BIAS, AFTER)


@triton.jit
def linear_matrix_stream(
    x, w, scale, zero, bias, residual, y, experts, order, M, N, K, stride_w, stride_scale,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SWIZZLE: tl.constexpr, AFTER: tl.constexpr,
    EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Packed integers of any width and group size, multiplied in float32. Grid: (tiles of N * tiles of M,).

    Args:
        x: ``[M, K]`` float16, bfloat16 or float32.
        w: ``[N, stride_w]`` int32 words of ``BITS``-bit codes as formats/pack.py stores them.
        scale: ``[N, stride_scale]`` float32, bfloat16 or float16, one per group.
        zero: ``[N, stride_scale]`` uint8 zero points, if HAS_ZERO; else the code of 0.0 is half of the range.
        bias, residual, y, AFTER, experts, order, EXPERTS, SHARE: as ``linear_matrix``.
        PRECISION: "ieee", or "tf32x3" where there is a matrix unit: three products of the operands' halves.
    """
    tile_n, tile_m, _, _ = _tile(N, M, BLOCK_N, BLOCK_M, 1, SWIZZLE)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    of = m
    if EXPERTS > 0:
        pairs, expert = pairs_of(order, experts, tile_m, m, False)
        if expert < 0:
            return
        m = pairs
        of = m // SHARE
        bias += expert * N
    column = tl.arange(0, BLOCK_K)
    row = tl.minimum(n, N - 1).to(tl.int64)[:, None]
    if EXPERTS > 0:
        row += expert * N
    tokens = x + of.to(tl.int64)[None, :] * K
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for at in range(0, K, BLOCK_K):
        k = at + column
        values = tl.load(tokens + k[:, None], mask=(m < M)[None, :] & (k < K)[:, None], other=0.0)
        k = tl.minimum(k, K - 1)[None, :]
        codes = stream(w, row * stride_w, k, BITS)
        of_group = row * stride_scale + k // GROUP
        if HAS_ZERO:
            codes -= tl.load(zero + of_group).to(tl.int32)
        else:
            codes -= 1 << (BITS - 1)
        weights = codes.to(tl.float32) * tl.load(scale + of_group).to(tl.float32)
        total = tl.dot(weights, values.to(tl.float32), total, input_precision=PRECISION)
    _epilogue(total, y, residual, scale, scale, bias, n, m, of, N, M, 1.0, False, False, HAS_BIAS, AFTER)
