"""The rounding of activations, bit for bit as docs/numerics.md, section 3, says, on every target.

Codes are computed with integer arithmetic on the bits of float32, so they do not depend on a target's conversions.
What leaves is the codes, or their values as float16 (``WIDE``) for kernels that multiply in float16.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.pdl import wait

_FLOOR = tl.constexpr(2.0**-100)
_INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def _float_code(value, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """Codes (int32) of ``value`` within the range of a float format with ``MANTISSA`` bits and least normal 2**LEAST.

    A normal number is rounded on its bits. A smaller one is rounded by adding the power of two whose last place is the
    format's smallest step.
    """
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    drop: tl.constexpr = 23 - MANTISSA
    normal = magnitude + ((1 << (drop - 1)) - 1) + ((magnitude >> drop) & 1)
    normal = (normal >> drop) - ((LEAST - 1 + 127) << MANTISSA)
    anchor: tl.constexpr = (LEAST - MANTISSA + 23 + 127) << 23
    small = magnitude.to(tl.float32, bitcast=True) + tl.full((), anchor, tl.int32).to(tl.float32, bitcast=True)
    small = small.to(tl.int32, bitcast=True) - anchor
    code = tl.where(magnitude < ((LEAST + 127) << 23), small, normal)
    return code | ((bits >> 24) & 0x80)


@triton.jit
def _code(value, ELEMENT: tl.constexpr):
    """Codes (int32) of values within the range of the format: ties to even, zeros keep their sign."""
    if ELEMENT == "e4m3fn":
        return _float_code(value, 3, -6)
    elif ELEMENT == "e5m2":
        return _float_code(value, 2, -14)
    else:
        tl.static_assert(ELEMENT == "int8", "an 8-bit element format")
        shifted = value + 12582912.0  # 1.5 * 2**23, whose last place is 1
        return shifted.to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def store_codes(codes, place, value, mask, ELEMENT: tl.constexpr, WIDE: tl.constexpr):
    """Stores codes, or what they stand for as float16 or bfloat16."""
    code = _code(value, ELEMENT)
    if not WIDE:
        tl.store(codes + place, code.to(codes.dtype.element_ty), mask=mask)
    else:
        if ELEMENT == "e4m3fn":
            half = (((code & 0x80) << 8) | ((code & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True) * 256.0
        elif ELEMENT == "e5m2":
            half = (code << 8).to(tl.int16).to(tl.float16, bitcast=True)
        else:
            half = code.to(tl.float16)
        if codes.dtype.element_ty == tl.bfloat16:
            tl.store(codes + place, half.to(tl.float32).to(tl.bfloat16), mask=mask)
        else:
            tl.store(codes + place, half, mask=mask)


@triton.jit
def magnitudes(values):
    """Magnitudes as int32: they order as the numbers do, with infinity and NaN above all."""
    return values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of(peak, qmax):
    """The scale of what has magnitude bits ``peak`` at most; NaN where that is no number."""
    scale = tl.maximum(tl.div_rn(peak.to(tl.float32, bitcast=True), qmax), _FLOOR)
    return tl.where(peak < _INFINITY_BITS, scale, float("nan"))


@triton.jit
def quotient_of(values, scale, qmax):
    """``clamp(values / scale)``, 0 where the scale is NaN."""
    quotient = tl.div_rn(values.to(tl.float32), tl.broadcast_to(scale, values.shape))
    quotient = tl.where(scale == scale, quotient, 0.0)
    return tl.minimum(tl.maximum(quotient, -qmax), qmax)


@triton.jit
def scale_of_token(peak, static_scale, qmax, STATIC: tl.constexpr):
    """The scale of a token whose largest magnitude has the bits ``peak``: its own or, if STATIC, the given one."""
    if STATIC:
        return tl.where(peak < _INFINITY_BITS, tl.load(static_scale), float("nan"))
    else:
        return scale_of(peak, qmax)


@triton.jit
def round_token(
    values, codes, scales, static_scale, m, K, qmax, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rounds token ``m``, whose values ``[BLOCK_K]`` (zeros from K on) are in registers, for kernels that end so."""
    column = tl.arange(0, BLOCK_K)
    scale = scale_of_token(tl.max(magnitudes(values), axis=0), static_scale, qmax, STATIC)
    tl.store(scales + m, scale)
    store_codes(codes + m.to(tl.int64) * K, column, quotient_of(values, scale, qmax), column < K, ELEMENT, WIDE)


@triton.jit
def quantize_token(
    x, codes, scales, static_scale, K, qmax,
    ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr, OVERLAP: tl.constexpr, ONCE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One scale per token. Grid: (M,).

    Args:
        x: ``[M, K]`` float32, bfloat16 or float16.
        codes: ``[M, K]`` uint8 or int8 codes; float16 values of them if WIDE.
        scales: ``[M]`` float32.
        static_scale: ``[1]`` float32, the scale of every token without NaN and infinity, if STATIC.
        qmax: largest value of the format, as float32.
        ONCE: K is at most BLOCK_K, and the token is read once and kept in registers.
    """
    if OVERLAP:
        wait()
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
    store_codes(out, column, quotient_of(values, scale, qmax), column < K, ELEMENT, WIDE)
    if not ONCE:
        for begin in range(BLOCK_K, K, BLOCK_K):
            k = begin + column
            values = tl.load(row + k, mask=k < K, other=0.0)
            store_codes(out, k, quotient_of(values, scale, qmax), k < K, ELEMENT, WIDE)


@triton.jit
def quantize_parts(
    x, peaks, codes, scales, static_scale, K, qmax,
    ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr, OVERLAP: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr, OWN: tl.constexpr, READ: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """One scale per token, of parts. Grid: (M, parts of BLOCK_K values).

    Args:
        x, codes, scales, static_scale, qmax: as for ``quantize_token``.
        peaks: int32 ``[M, parts]``: bits of the largest magnitude of each part, if they are known.
        PARTS: parts rounded up to a power of two.
        LATE: see ``pdl.wait``.
        OWN: they are not: each program looks over all of its token, READ values at a time.
    """
    if OVERLAP:
        wait(LATE)
    m = tl.program_id(0).to(tl.int64)
    if OWN:
        column = tl.arange(0, READ)
        highest = tl.zeros((READ,), tl.int32)
        for begin in range(0, K, READ):
            at = begin + column
            highest = tl.maximum(highest, magnitudes(tl.load(x + m * K + at, mask=at < K, other=0.0)))
        peak = tl.max(highest, axis=0)
    else:
        part = tl.arange(0, PARTS)
        parts = tl.num_programs(1)
        peak = tl.max(tl.load(peaks + m * parts + part, mask=part < parts, other=0), axis=0)
    scale = scale_of_token(peak, static_scale, qmax, STATIC)
    if tl.program_id(1) == 0:
        tl.store(scales + m, scale)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    values = tl.load(x + m * K + k, mask=k < K, other=0.0)
    store_codes(codes + m * K, k, quotient_of(values, scale, qmax), k < K, ELEMENT, WIDE)


@triton.jit
def quantize_group(
    x, codes, scales, groups, qmax,
    ELEMENT: tl.constexpr, WIDE: tl.constexpr, OVERLAP: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
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
    store_codes(codes, place, quotient_of(values, scale[:, None], qmax), mask, ELEMENT, WIDE)
