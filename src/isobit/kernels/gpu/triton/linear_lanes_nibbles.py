"""``linear_lanes`` for 4-bit codes in groups along K, with zero points or without.

A lane's four words hold eight codes of each quarter of a unit (``layouts.interleave_nibbles``). What is multiplied is
the code less its zero point, exact in 16 bits: a zero point applied to the sum of the activations would cancel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton import lanes_assembly as assembly
from isobit.kernels.gpu.triton.decode import nibbles
from isobit.kernels.gpu.triton.experts import expert_of
from isobit.kernels.gpu.triton.lanes import epilogue, field, results_of, row_sums, words_at
from isobit.kernels.gpu.triton.pdl import wait

_HALVES, _HALVES_ZEROS, _QUARTERS = assembly.HALVES, assembly.HALVES_ZEROS, assembly.QUARTERS
_NIBBLES_F16, _NIBBLES_BF16 = assembly.NIBBLES_F16, assembly.NIBBLES_BF16
_ZEROS_F16, _ZEROS_BF16 = assembly.ZEROS_F16, assembly.ZEROS_BF16
_QUARTERS_F16, _QUARTERS_BF16 = assembly.QUARTERS_F16, assembly.QUARTERS_BF16


@triton.jit
def _half_sums(a, b, x0, x1, x2, x3, zeros, DTYPE: tl.constexpr, HAS_ZERO: tl.constexpr):
    """Of both rows of each pair the sums of the lower two and of the upper two quarters, as the lanes have them."""
    if HAS_ZERO:
        zeros = zeros * 0x10001
        if DTYPE == "f16":
            return tl.inline_asm_elementwise(
                _ZEROS_F16, _HALVES_ZEROS, [a, b, x0, x1, x2, x3, zeros], tl.float32, True, 4
            )
        else:
            return tl.inline_asm_elementwise(
                _ZEROS_BF16, _HALVES_ZEROS, [a, b, x0, x1, x2, x3, zeros], tl.float32, True, 4
            )
    elif DTYPE == "f16":
        return tl.inline_asm_elementwise(_NIBBLES_F16, _HALVES, [a, b, x0, x1, x2, x3], tl.float32, True, 4)
    else:
        return tl.inline_asm_elementwise(_NIBBLES_BF16, _HALVES, [a, b, x0, x1, x2, x3], tl.float32, True, 4)


@triton.jit
def _quarter_sums(a, b, x0, x1, x2, x3, DTYPE: tl.constexpr):
    """The same for each quarter: two tensors, of the lower and of the upper two."""
    if DTYPE == "f16":
        return tl.inline_asm_elementwise(
            _QUARTERS_F16, _QUARTERS, [a, b, x0, x1, x2, x3], (tl.float32, tl.float32), True, 4
        )
    else:
        return tl.inline_asm_elementwise(
            _QUARTERS_BF16, _QUARTERS, [a, b, x0, x1, x2, x3], (tl.float32, tl.float32), True, 4
        )


@triton.jit
def _plain_sums(total, words, x0, x1, x2, x3, scale, zero, code, rows, across, GROUP: tl.constexpr, UNIT: tl.constexpr,
                DTYPE: tl.constexpr, HAS_ZERO: tl.constexpr):  # fmt: skip
    """``total`` plus a row's products, of which ``code`` is the first code of each word's unit, in plain Triton."""
    FLOAT: tl.constexpr = tl.float16 if DTYPE == "f16" else tl.bfloat16
    group0, group1 = (code // GROUP * across)[None, :] + rows, ((code + UNIT // 4) // GROUP * across)[None, :] + rows
    group2 = ((code + UNIT // 2) // GROUP * across)[None, :] + rows
    group3 = ((code + UNIT // 4 * 3) // GROUP * across)[None, :] + rows
    origin = tl.full(words.shape, 8.0, tl.float32)
    if HAS_ZERO:  # then a unit lies in one group
        origin = tl.load(zero + group0).to(tl.float32)
    for half in tl.static_range(2):
        w0, w1, w2, w3 = nibbles((words >> (16 * half)).to(tl.int16), origin, FLOAT, False)
        total += w0.to(tl.float32) * field(x0, half, DTYPE) * tl.load(scale + group0).to(tl.float32)
        total += w1.to(tl.float32) * field(x1, half, DTYPE) * tl.load(scale + group1).to(tl.float32)
        total += w2.to(tl.float32) * field(x2, half, DTYPE) * tl.load(scale + group2).to(tl.float32)
        total += w3.to(tl.float32) * field(x3, half, DTYPE) * tl.load(scale + group3).to(tl.float32)
    return total


@triton.jit
def _of_groups(values, begin, column, n, N, across, K, FIRST: tl.constexpr, NEXT: tl.constexpr,
               GROUP: tl.constexpr, UNIT: tl.constexpr, ASM: tl.constexpr, EVEN_K: tl.constexpr):  # fmt: skip
    """What groups have, for a lane's four sums of a step: of both rows' quarter FIRST, and of the quarter NEXT on."""
    quarter = FIRST + column // 2 % 2 * NEXT
    group = (column // (UNIT // 8) * UNIT + quarter * (UNIT // 4)) // GROUP
    row = n[:, None] + (column % 2)[None, :]
    place = values + (begin * 8 // GROUP * across + group[None, :] * across + row)
    if not ASM:
        return tl.zeros(place.shape, values.dtype.element_ty)  # read where they are used
    elif EVEN_K:
        return tl.load(place, mask=row < N, other=0)
    else:
        return tl.load(place, mask=(row < N) & (begin + column < K)[None, :], other=0)


@triton.jit
def _read(scale, zero, begin, column, n, N, across, K, GROUP: tl.constexpr, UNIT: tl.constexpr,
          HAS_ZERO: tl.constexpr, ASM: tl.constexpr, EVEN_K: tl.constexpr):  # fmt: skip
    """Scales for a lane's sums of halves, or of the lower and of the upper quarters; and zero points."""
    if GROUP % (UNIT // 2) == 0:
        low = _of_groups(scale, begin, column, n, N, across, K, 0, 2, GROUP, UNIT, ASM, EVEN_K)
        zeros = low
        if HAS_ZERO:
            zeros = _of_groups(zero, begin, column, n, N, across, K, 0, 2, GROUP, UNIT, ASM, EVEN_K).to(tl.int32)
        return low, low, zeros
    else:
        low = _of_groups(scale, begin, column, n, N, across, K, 0, 1, GROUP, UNIT, ASM, EVEN_K)
        high = _of_groups(scale, begin, column, n, N, across, K, 2, 1, GROUP, UNIT, ASM, EVEN_K)
        return low, high, low


@triton.jit
def _step(
    total, other, a, b, low, high, zeros, x, scale, zero, begin, column, rows_a, rows_b, across, K,
    GROUP: tl.constexpr, UNIT: tl.constexpr, DTYPE: tl.constexpr, HAS_ZERO: tl.constexpr, ASM: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """The sums after the step of the words from ``begin`` on."""
    QUARTER: tl.constexpr = UNIT // 8  # words of a unit, and words of a quarter of its activations
    tokens = x + (column + column // QUARTER * (3 * QUARTER)) + begin * 4
    mask = None if EVEN_K else begin + column < K
    none = None if EVEN_K else 0
    x0 = tl.broadcast_to(tl.load(tokens, mask=mask, other=none)[None, :], a.shape)
    x1 = tl.broadcast_to(tl.load(tokens + QUARTER, mask=mask, other=none)[None, :], a.shape)
    x2 = tl.broadcast_to(tl.load(tokens + 2 * QUARTER, mask=mask, other=none)[None, :], a.shape)
    x3 = tl.broadcast_to(tl.load(tokens + 3 * QUARTER, mask=mask, other=none)[None, :], a.shape)
    if not ASM:
        code = tl.minimum(begin + column, K - 1) // QUARTER * UNIT
        total = _plain_sums(total, a, x0, x1, x2, x3, scale, zero, code, rows_a, across, GROUP, UNIT, DTYPE, HAS_ZERO)
        other = _plain_sums(other, b, x0, x1, x2, x3, scale, zero, code, rows_b, across, GROUP, UNIT, DTYPE, HAS_ZERO)
        return total, other
    elif GROUP % (UNIT // 2) == 0:
        return total + _half_sums(a, b, x0, x1, x2, x3, zeros, DTYPE, HAS_ZERO) * low.to(tl.float32), other
    else:
        lower, upper = _quarter_sums(a, b, x0, x1, x2, x3, DTYPE)
        return total + (lower * low.to(tl.float32) + upper * high.to(tl.float32)), other


@triton.jit
def linear_lanes_nibbles(
    x, w, scale, zero, bias, residual, y, experts, N, K,
    GROUP: tl.constexpr, UNIT: tl.constexpr, DTYPE: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr, AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / BLOCK_N), 1), or (.., pairs).

    Args:
        x: ``[1, 4 K]`` int32 words of two float16 or bfloat16 activations.
        w: ``[N, K]`` int32 words: two neighbouring words of ``linear_matrix_nibbles``, in units of ``UNIT`` codes.
        scale: ``[8 K / GROUP, N]`` float32, bfloat16 or float16.
        zero: ``[8 K / GROUP, N]`` uint8 zero points, if HAS_ZERO; else codes are stored plus 8.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, EXPERTS, SHARE: see ``experts.py``.
        K: words of a row, of eight codes each; whole units.
        GROUP: weights along K that share a scale: a multiple of a quarter of a unit that divides a step.
        DTYPE: of the activations: "f16" or "bf16".
        OVERLAP, BLOCK_N, BLOCK_K, UNROLL: as ``linear_lanes``.
    """
    tl.static_assert(GROUP % (UNIT // 4) == 0, "a quarter of a unit has one scale")
    tl.static_assert(not HAS_ZERO or GROUP % UNIT == 0, "a unit has one zero point")
    tl.static_assert(8 * BLOCK_K % GROUP == 0, "a step begins with a group")
    PAIRS: tl.constexpr = BLOCK_N // 2
    across = N
    if EXPERTS > 0:
        across = N * EXPERTS
        pair = tl.program_id(1)
        expert = expert_of(experts, pair, OVERLAP)
        w, bias = w + expert * N * K, bias + expert * N
        scale, zero = scale + expert * N, zero + expert * N
        x, y = x + pair // SHARE * (4 * K), y + pair * results_of(N, AFTER)
    n = tl.program_id(0) * BLOCK_N + 2 * tl.arange(0, PAIRS)
    rows_a, rows_b = tl.minimum(n, N - 1)[:, None], tl.minimum(n + 1, N - 1)[:, None]
    first, second = w + rows_a.to(tl.int64) * K, w + rows_b.to(tl.int64) * K
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    other = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    a, b = words_at(first, column, K, EVEN_K), words_at(second, column, K, EVEN_K)
    low, high, zeros = _read(scale, zero, 0, column, n, N, across, K, GROUP, UNIT, HAS_ZERO, ASM, EVEN_K)
    if OVERLAP:
        wait()
    for begin in tl.range(0, K - BLOCK_K, BLOCK_K, loop_unroll_factor=UNROLL):
        then = begin + BLOCK_K
        next_a, next_b = words_at(first, then + column, K, EVEN_K), words_at(second, then + column, K, EVEN_K)
        next_low, next_high, next_zeros = _read(
            scale, zero, then, column, n, N, across, K, GROUP, UNIT, HAS_ZERO, ASM, EVEN_K
        )  # fmt: skip
        total, other = _step(
            total, other, a, b, low, high, zeros, x, scale, zero, begin, column, rows_a, rows_b, across, K, GROUP,
            UNIT, DTYPE, HAS_ZERO, ASM, True,
        )  # fmt: skip
        a, b, low, high, zeros = next_a, next_b, next_low, next_high, next_zeros
    begin = (tl.cdiv(K, BLOCK_K) - 1) * BLOCK_K
    total, other = _step(
        total, other, a, b, low, high, zeros, x, scale, zero, begin, column, rows_a, rows_b, across, K, GROUP, UNIT,
        DTYPE, HAS_ZERO, ASM, EVEN_K,
    )  # fmt: skip
    rows = n[:, None] + tl.arange(0, 2)[None, :]
    gain = 64.0 if ASM and DTYPE == "bf16" else 1.0
    sums = row_sums(total, other, column, ASM, True)
    epilogue(y, residual, sums, rows, N, scale, scale, bias, gain, False, False, HAS_BIAS, AFTER)
