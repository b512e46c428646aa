"""The rounding of activations under scales of few bits (MX, NVFP4), in one launch (docs/numerics.md, sections 2 and 3).

What leaves is, for kernels that multiply in 16 bits, the codes' values times their scales, which a bfloat16 holds
(under e4m3 a float16, too: the number above those is left out); or, for block-scaled matrix units, codes and codes of
scales.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.law import _float_code, _near_one, _quotient, magnitudes
from isobit.kernels.gpu.triton.pdl import wait

_INFINITY_BITS = tl.constexpr(0x7F800000)
_LEAST_POWER = tl.constexpr(-100)


@triton.jit
def number_of(code, ELEMENT: tl.constexpr):
    """The number of a code of e4m3fn or e2m1 (int32; its sign in the highest bit), float32."""
    if ELEMENT == "e4m3fn":
        half = (((code & 0x80) << 8) | ((code & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
        return half.to(tl.float32) * 256.0
    else:
        tl.static_assert(ELEMENT == "e2m1", "e4m3fn or e2m1")
        exponent, mantissa = (code >> 1) & 3, code & 1
        halves = tl.where(exponent > 0, (2 + mantissa) << tl.maximum(exponent - 1, 0), mantissa).to(tl.float32)
        half = tl.where((code & 8) != 0, -0.5, 0.5)
        return halves * half


@triton.jit
def code_of(value, ELEMENT: tl.constexpr):
    """The code (int32) of a number within the range of e4m3fn or e2m1: ties to even, zeros keep their sign."""
    if ELEMENT == "e4m3fn":
        return _float_code(value, 3, -6)
    else:
        code = _float_code(value, 1, 0)
        return (code & 7) | ((code >> 4) & 8)


@triton.jit
def micro_scales(peak, over, qmax, SCALE: tl.constexpr, TOP: tl.constexpr):
    """The scales of groups whose largest magnitudes have the bits ``peak``.

    Returns:
        the code of each scale (int32; that of NaN where a group has a NaN or an infinity), the number that it stands
        for, and what values are divided by.
    """
    known = peak < _INFINITY_BITS
    if SCALE == "e8m0":
        exponent = tl.minimum(tl.maximum(((peak + (1 << 21)) >> 23) - (127 + TOP), _LEAST_POWER), 127)
        power = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
        power = tl.where(known, power, float("nan"))
        return tl.where(known, exponent + 127, 0xFF), power, power
    else:
        share = tl.div_rn(tl.where(known, peak, 0).to(tl.float32, bitcast=True), qmax)
        code = _float_code(tl.minimum(over * share, 448.0), 3, -6)
        code = tl.where(code == 0, 0x20, code)  # 2**-3
        number = tl.where(known, number_of(code, "e4m3fn"), float("nan"))
        return tl.where(known, code, 0x7F), number, tl.div_rn(number, over)


@triton.jit
def quantize_micro(
    x, codes, scales, over, groups, qmax,
    ELEMENT: tl.constexpr, SCALE: tl.constexpr, TOP: tl.constexpr, VALUES: tl.constexpr, UNIT: tl.constexpr,
    OVERLAP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """One scale per ``GROUP`` consecutive values. Grid: (ceil(groups / ROWS),).

    Args:
        x: ``groups`` runs of GROUP values, float32, bfloat16 or float16: ``[M, K]`` read as ``[M * K / GROUP, GROUP]``.
        codes: with VALUES ``[M, K]`` bfloat16 or float16: what the codes stand for times the numbers of the scales
            (NaN in a group with a NaN or an infinity); else uint8 codes, of e2m1 two a byte, the first in the low bits.
        scales: uint8 ``[groups]``: codes of scales; not written with VALUES.
        over: float32 ``[1]``: what e4m3 scales are divided by.
        qmax: largest value of the format, as float32.
        TOP: exponent of that.
        UNIT: with VALUES, values stand in units of so many: every fourth of them, beginning with the first, then every
            fourth beginning with the second, and so on, as the words of 16 bits hold e2m1 codes; 0 to leave them.
        RECIPROCAL, CONVERTS: see ``law.py``.
    """
    if OVERLAP:
        wait()
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, GROUP)
    place = row[:, None] * GROUP + column[None, :]
    real = row < groups
    values = tl.load(x + place, mask=real[:, None], other=0.0).to(tl.float32)
    above = 1.0
    if SCALE == "e4m3fn":
        above = tl.load(over)
    code, number, scale = micro_scales(tl.max(magnitudes(values), axis=1), above, qmax, SCALE, TOP)
    if SCALE == "e8m0":
        inverse = ((254 - tl.where(code == 0xFF, 127, code)) << 23).to(tl.float32, bitcast=True)
        quotient = values * inverse[:, None]  # a power of two: the quotient, or too small for any code
        quotient = tl.where((code == 0xFF)[:, None], 0.0, quotient)
    elif RECIPROCAL:
        near, scale_near = _near_one(values, scale[:, None])
        most = 2.0 * qmax * scale_near  # scales end at 448 of what they are divided by, values do not
        near = tl.minimum(tl.maximum(near, -most), most)
        quotient = _quotient(near, scale_near, CONVERTS)
    else:
        quotient = tl.div_rn(values, tl.broadcast_to(scale[:, None], values.shape))
        quotient = tl.where(scale[:, None] == scale[:, None], quotient, 0.0)
    quotient = tl.minimum(tl.maximum(quotient, -qmax), qmax)
    rounded = code_of(quotient, ELEMENT)
    if VALUES:
        if UNIT:
            inside = place % UNIT
            place = place - inside + (inside % 4) * (UNIT // 4) + inside // 4
        value = number_of(rounded, ELEMENT) * number[:, None]
        tl.store(codes + place, value.to(codes.dtype.element_ty), mask=real[:, None])
    else:
        tl.store(scales + row, code.to(tl.uint8), mask=real)
        if ELEMENT == "e2m1":
            low, high = tl.split(tl.reshape(rounded, (ROWS, GROUP // 2, 2)))
            pair = row[:, None] * (GROUP // 2) + tl.arange(0, GROUP // 2)[None, :]
            tl.store(codes + pair, (low | (high << 4)).to(tl.uint8), mask=real[:, None])
        else:
            tl.store(codes + place, rounded.to(tl.uint8), mask=real[:, None])
