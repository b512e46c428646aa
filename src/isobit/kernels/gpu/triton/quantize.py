"""The rounding of activations as kernels of their own, by the law of ``law.py``.

What leaves is the codes, or their values as float16 (``WIDE``) for kernels that multiply in float16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.law import magnitudes, scale_of, scale_of_token, store_rounded
from isobit.kernels.gpu.triton.pdl import wait


@triton.jit
def round_token(
    values, codes, scales, static_scale, m, K, qmax, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rounds token ``m``, whose values ``[BLOCK_K]`` (zeros from K on) are in registers, for kernels that end so.

    Codes are stored as a matrix, so that a thread has as many values as it would have without them: sums in front of
    this are in the same order then, with the same bits.
    """
    ROW: tl.constexpr = 8 if BLOCK_K >= 8 else BLOCK_K
    column = tl.arange(0, BLOCK_K // ROW)[:, None] * ROW + tl.arange(0, ROW)[None, :]
    scale = scale_of_token(tl.max(magnitudes(values), axis=0), static_scale, qmax, STATIC)
    tl.store(scales + m, scale)
    values = tl.reshape(values, (BLOCK_K // ROW, ROW))
    store_rounded(
        codes + m.to(tl.int64) * K, column, values, scale, qmax, column < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS
    )


@triton.jit
def quantize_token(
    x, codes, scales, static_scale, K, qmax,
    ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr, OVERLAP: tl.constexpr, ONCE: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, LATE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One scale per token. Grid: (M,).

    Args:
        x: ``[M, K]`` float32, bfloat16 or float16.
        codes: ``[M, K]`` uint8 or int8 codes; float16 values of them if WIDE.
        scales: ``[M]`` float32.
        static_scale: ``[1]`` float32, the scale of every token without NaN and infinity, if STATIC.
        qmax: largest value of the format, as float32.
        RECIPROCAL, CONVERTS: see ``law.py``. LATE: see ``pdl.wait``.
        ONCE: K is at most BLOCK_K, and the token is read once and kept in registers.
    """
    if OVERLAP:
        wait(LATE)
    m = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    row = x + m * K
    out = codes + m * K
    values = tl.load(row + column, mask=column < K, other=0.0)
    peaks = magnitudes(values)
    if not ONCE:
        for begin in range(BLOCK_K, K, BLOCK_K):
            k = begin + column
            peaks = tl.maximum(peaks, magnitudes(tl.load(row + k, mask=k < K, other=0.0)))
    scale = scale_of_token(tl.max(peaks, axis=0), static_scale, qmax, STATIC)
    tl.store(scales + m, scale)
    store_rounded(out, column, values, scale, qmax, column < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS)
    if not ONCE:
        for begin in range(BLOCK_K, K, BLOCK_K):
            k = begin + column
            values = tl.load(row + k, mask=k < K, other=0.0)
            store_rounded(out, k, values, scale, qmax, k < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS)


@triton.jit
def quantize_parts(
    x, peaks, codes, scales, static_scale, K, qmax,
    ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr, OVERLAP: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr, LATE: tl.constexpr, RECIPROCAL: tl.constexpr,
    CONVERTS: tl.constexpr,
):  # fmt: skip
    """One scale per token, of parts. Grid: (M, parts of BLOCK_K values).

    Args:
        x, codes, scales, static_scale, qmax: as for ``quantize_token``.
        peaks: int32 ``[M, parts]``: bits of the largest magnitude of each part.
        PARTS: parts rounded up to a power of two.
        LATE: see ``pdl.wait``.
    """
    if OVERLAP:
        wait(LATE)
    m = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    parts = tl.num_programs(1)
    peak = tl.max(tl.load(peaks + m * parts + part, mask=part < parts, other=0), axis=0)
    scale = scale_of_token(peak, static_scale, qmax, STATIC)
    if tl.program_id(1) == 0:
        tl.store(scales + m, scale)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    values = tl.load(x + m * K + k, mask=k < K, other=0.0)
    store_rounded(codes + m * K, k, values, scale, qmax, k < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS)


@triton.jit
def quantize_group(
    x, codes, scales, groups, qmax,
    ELEMENT: tl.constexpr, WIDE: tl.constexpr, OVERLAP: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """One scale per ``GROUP`` consecutive values. Grid: (ceil(groups / ROWS),).

    Args:
        x: ``groups`` runs of GROUP values, float32, bfloat16 or float16: ``[M, K]`` read as ``[M * K / GROUP, GROUP]``.
        codes: as ``x``, as for ``quantize_token``.
        scales: ``[groups]`` float32.
        WIDTH: GROUP rounded up to a power of two.
    """
    if OVERLAP:
        wait()
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    place = row[:, None] * GROUP + column[None, :]
    mask = (row < groups)[:, None] & (column < GROUP)[None, :]
    values = tl.load(x + place, mask=mask, other=0.0)
    scale = scale_of(tl.max(magnitudes(values), axis=1), qmax)
    tl.store(scales + row, scale, mask=row < groups)
    store_rounded(codes, place, values, scale[:, None], qmax, mask, ELEMENT, WIDE, False, RECIPROCAL, CONVERTS)
