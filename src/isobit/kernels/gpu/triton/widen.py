"""What is done once in front of a product of very many tokens: the whole weight is widened into a workspace.

A product in registers decodes each weight once for every tile of tokens; from some number of tokens on it is cheaper to
write the decoded weight once and to multiply it as it is. Every value is exact, so no rounding point moves.

What is widened is constant, so the widening starts while the kernel in front still runs (OVERLAP) and waits for its
end only at its own, so that who waits for this kernel has waited for both. The products that read the workspace never
let the next kernel start: whatever is launched behind them begins when all of it has been read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.decode import nibbles, to_bf16, to_f16
from isobit.kernels.gpu.triton.law import magnitudes, range_of_token, store_narrowed, store_range
from isobit.kernels.gpu.triton.pdl import let_next_start, wait, wait_for_last


@triton.jit
def widen_codes(codes, values, K, ELEMENT: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, BLOCK: tl.constexpr):
    """8-bit codes to the dtype of ``values``, less the decoder's gain. Grid: (N, ceil(K / BLOCK)).

    Args:
        codes: ``[N, K]`` uint8 or int8.
        values: ``[N, K]`` float16 or bfloat16.
    """
    if OVERLAP:
        let_next_start()
    row = tl.program_id(0).to(tl.int64) * K
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    read = tl.load(codes + row + k, mask=k < K, other=0)
    if values.dtype.element_ty == tl.float16:
        tl.store(values + row + k, to_f16(read, ELEMENT, ASM), mask=k < K)
    else:
        tl.store(values + row + k, to_bf16(read, ELEMENT, ASM), mask=k < K)
    if OVERLAP:
        wait_for_last()


@triton.jit
def fold_nibbles(
    words, scale, power, values, N, K,
    GROUP: tl.constexpr, UNIT: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Signed 4-bit codes times their scales, as float16 less a power of two per row. Grid: (N, ceil(K / UNIT / UNITS)).

    Exact for scales that ``layouts.folding_scales`` has powers for.

    Args:
        words: ``[N, K / 4]`` int16 (``layouts.interleave_nibbles``).
        scale: ``[K / GROUP, N]``.
        power: ``[N]`` float32, powers of two.
        values: ``[N, K]`` float16: ``code * scale / power``.
        GROUP: a multiple of UNIT / 4.
        UNIT: K is a multiple.
        UNITS: units of a program.
    """
    if OVERLAP:
        let_next_start()
    QUARTER: tl.constexpr = UNIT // 4
    n = tl.program_id(0)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    column = tl.arange(0, QUARTER)
    real = unit < K // UNIT
    read = words + n.to(tl.int64) * (K // 4) + unit[:, None] * QUARTER + column[None, :]
    origin = tl.full((UNITS, QUARTER), 8.0, tl.float32)
    w0, w1, w2, w3 = nibbles(tl.load(read, mask=real[:, None], other=0), origin, tl.float16, ASM)
    down = 1.0 / tl.load(power + n)  # of a power of two: exact
    out = values + n.to(tl.int64) * K + unit[:, None] * UNIT + column[None, :]
    at = unit * UNIT
    s0 = tl.load(scale + at // GROUP * N + n, mask=real, other=0.0).to(tl.float32) * down
    s1 = tl.load(scale + (at + QUARTER) // GROUP * N + n, mask=real, other=0.0).to(tl.float32) * down
    s2 = tl.load(scale + (at + 2 * QUARTER) // GROUP * N + n, mask=real, other=0.0).to(tl.float32) * down
    s3 = tl.load(scale + (at + 3 * QUARTER) // GROUP * N + n, mask=real, other=0.0).to(tl.float32) * down
    tl.store(out, w0 * s0.to(tl.float16)[:, None], mask=real[:, None])
    tl.store(out + QUARTER, w1 * s1.to(tl.float16)[:, None], mask=real[:, None])
    tl.store(out + 2 * QUARTER, w2 * s2.to(tl.float16)[:, None], mask=real[:, None])
    tl.store(out + 3 * QUARTER, w3 * s3.to(tl.float16)[:, None], mask=real[:, None])
    if OVERLAP:
        wait_for_last()


@triton.jit
def narrow_range(x, values, scales, K, OVERLAP: tl.constexpr, ONCE: tl.constexpr, BLOCK_K: tl.constexpr):
    """bfloat16 activations as float16, less a power of two per token: ``law.store_narrowed``. Grid: (M,).

    Args:
        x: ``[M, K]`` bfloat16.
        values: ``[M, K]`` float16.
        scales: ``[M]`` float32: the powers of two.
        ONCE: K is at most BLOCK_K, and the token is read once and kept in registers.
    """
    if OVERLAP:
        wait()
    m = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    first = tl.load(x + m * K + column, mask=column < K, other=0.0)
    peaks = magnitudes(first)
    if not ONCE:
        for begin in range(BLOCK_K, K, BLOCK_K):
            k = begin + column
            peaks = tl.maximum(peaks, magnitudes(tl.load(x + m * K + k, mask=k < K, other=0.0)))
    power = range_of_token(tl.max(peaks, axis=0))
    store_range(scales, m, power)
    store_narrowed(values + m * K, column, first, power, column < K, False)
    if not ONCE:
        for begin in range(BLOCK_K, K, BLOCK_K):
            k = begin + column
            read = tl.load(x + m * K + k, mask=k < K, other=0.0)
            store_narrowed(values + m * K, k, read, power, k < K, False)
