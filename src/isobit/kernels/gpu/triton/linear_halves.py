"""``y = x W^T`` of e2m1 codes (MXFP4, NVFP4), four in a 16-bit word, decoded in registers.

The walk is that of ``linear_matrix_nibbles``; it shares with its file what it can. They are two because kernels of one
file are compiled and proved anew when any of them changes, and those of int4 are measured.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.experts import pairs_of
from isobit.kernels.gpu.triton.linear_matrix import _add_quarter, _epilogue, _reduce_split_k, _tile
from isobit.kernels.gpu.triton.pdl import let_next_start, prefetch, wait_for_last

# Four e2m1 codes of each 16-bit half: the sign to the top, two bits of exponent and one of mantissa to the fields of a
# float16 that is 2**-14 of the number (0.5 is subnormal there), times 2**14 (0x7400): exact.
_E2M1_F16 = tl.constexpr("""{
.reg .b32 a, b, c, k;
mov.b32 k, 0x74007400;
shl.b32 a, $4, 12;
shl.b32 b, $4, 9;
and.b32 b, b, 0x0e000e00;
lop3.b32 $0, a, 0x80008000, b, 0xea;
shl.b32 a, $4, 8;
shl.b32 b, $4, 5;
and.b32 b, b, 0x0e000e00;
lop3.b32 $1, a, 0x80008000, b, 0xea;
shl.b32 a, $4, 4;
shl.b32 b, $4, 1;
and.b32 b, b, 0x0e000e00;
lop3.b32 $2, a, 0x80008000, b, 0xea;
shr.u32 c, $4, 3;
and.b32 c, c, 0x0e000e00;
lop3.b32 $3, $4, 0x80008000, c, 0xea;
mul.rn.f16x2 $0, $0, k;
mul.rn.f16x2 $1, $1, k;
mul.rn.f16x2 $2, $2, k;
mul.rn.f16x2 $3, $3, k;
}""")

# The same in the fields of a bfloat16, times 2**126 (0x7e80).
_E2M1_BF16 = tl.constexpr("""{
.reg .b32 a, b, c, k, z;
mov.b32 k, 0x7e807e80;
mov.b32 z, 0x80008000;
shl.b32 a, $4, 12;
shl.b32 b, $4, 6;
and.b32 b, b, 0x01c001c0;
lop3.b32 $0, a, 0x80008000, b, 0xea;
shl.b32 a, $4, 8;
shl.b32 b, $4, 2;
and.b32 b, b, 0x01c001c0;
lop3.b32 $1, a, 0x80008000, b, 0xea;
shl.b32 a, $4, 4;
shr.u32 b, $4, 2;
and.b32 b, b, 0x01c001c0;
lop3.b32 $2, a, 0x80008000, b, 0xea;
shr.u32 c, $4, 6;
and.b32 c, c, 0x01c001c0;
lop3.b32 $3, $4, 0x80008000, c, 0xea;
fma.rn.bf16x2 $0, $0, k, z;
fma.rn.bf16x2 $1, $1, k, z;
fma.rn.bf16x2 $2, $2, k, z;
fma.rn.bf16x2 $3, $3, k, z;
}""")


@triton.jit
def e2m1_nibbles(words, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """The values of the four e2m1 codes of each 16-bit word, lowest first, as four tensors in float16 or bfloat16.

    Args:
        words: int16.
        DTYPE: tl.float16 or tl.bfloat16.
    """
    if ASM:
        if DTYPE == tl.float16:
            return tl.inline_asm_elementwise(
                _E2M1_F16,
                "=&r,=&r,=&r,=&r,r",
                [words],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True,
                pack=2,
            )
        else:
            return tl.inline_asm_elementwise(
                _E2M1_BF16,
                "=&r,=&r,=&r,=&r,r",
                [words],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
                is_pure=True,
                pack=2,
            )
    else:
        bits = words.to(tl.int32)
        return (
            _e2m1(bits).to(DTYPE),
            _e2m1(bits >> 4).to(DTYPE),
            _e2m1(bits >> 8).to(DTYPE),
            _e2m1(bits >> 12).to(DTYPE),
        )


@triton.jit
def _e2m1(bits):
    """The value of the e2m1 code in the lowest four bits, float32: halves of integers up to 12."""
    exponent, mantissa = (bits >> 1) & 3, bits & 1
    halves = tl.where(exponent > 0, (2 + mantissa) << tl.maximum(exponent - 1, 0), mantissa)
    return tl.where((bits & 8) != 0, -0.5, 0.5) * halves.to(tl.float32)


@triton.jit
def linear_matrix_halves(
    x, w, scale, bias, residual, y, partials, counters, experts, order, M, N, K,
    GROUP: tl.constexpr, UNIT: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr, LATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT_K: tl.constexpr, SWIZZLE: tl.constexpr,
    AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """e2m1 codes in groups along K, each with partial sums of its own. Grid: as ``linear_matrix``.

    Args:
        x: ``[M, K]`` float16 or bfloat16.
        w: ``[N, K / 4]`` int16 in units of ``UNIT`` codes, as ``linear_matrix_nibbles`` has them.
        scale: ``[K / GROUP, N]`` float32, bfloat16 or float16.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, order, EXPERTS, SHARE: see ``experts.py``; then M is that of the tiles.
        GROUP: weights along K that share a scale, a multiple of a quarter unit.
        UNIT: K is a multiple.
    """
    tl.static_assert(not HAS_ZERO, "e2m1 has a code for 0.0")
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
        scale += expert * N
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
        w0, w1, w2, w3 = e2m1_nibbles(words, x.dtype.element_ty, ASM)
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
