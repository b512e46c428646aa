"""The law of rounding activations, bit for bit as docs/numerics.md, section 3, says, on every target, for all kernels;
and that of narrowing those that are not rounded, for products in float16.

Plainly it is a division and integer arithmetic on the bits of float32. With RECIPROCAL the same quotients come by way
of the scale's reciprocal, found once for all values that share a scale (``_quotient`` says why they are the same); with
CONVERTS the same codes by instructions that round several values, where a target has such.
"""

from __future__ import annotations

import triton
import triton.language as tl

_FLOOR = tl.constexpr(2.0**-100)
_INFINITY_BITS = tl.constexpr(0x7F800000)
_LOWEST, _HIGHEST = tl.constexpr(2.0**-60), tl.constexpr(2.0**60)

# Four floats as four codes; what is beyond the largest code becomes that. The first source is the upper half.
_E4M3 = tl.constexpr(
    "{\n.reg .b16 l, h;\ncvt.rn.satfinite.e4m3x2.f32 l, $2, $1;\ncvt.rn.satfinite.e4m3x2.f32 h, $4, $3;\n"
    "mov.b32 $0, {l, h};\n}"
)
_E5M2 = tl.constexpr(
    "{\n.reg .b16 l, h;\ncvt.rn.satfinite.e5m2x2.f32 l, $2, $1;\ncvt.rn.satfinite.e5m2x2.f32 h, $4, $3;\n"
    "mov.b32 $0, {l, h};\n}"
)
# Integers: 1.5 * 2**23, whose last place is 1, is added, and the last bytes are what counts.
_INT8 = tl.constexpr(
    "{\n.reg .b32 a<6>;\nadd.rn.f32 a0, $1, 0f4B400000;\nadd.rn.f32 a1, $2, 0f4B400000;\n"
    "add.rn.f32 a2, $3, 0f4B400000;\nadd.rn.f32 a3, $4, 0f4B400000;\n"
    "prmt.b32 a4, a0, a1, 0x0040;\nprmt.b32 a5, a2, a3, 0x0040;\nprmt.b32 $0, a4, a5, 0x5410;\n}"
)

_NEGATED = tl.constexpr("neg.f32 $0, $1;")
# Two floats rounded to bfloat16, as floats: the conversion of two at once is four times as fast as that of one.
_BF16 = tl.constexpr("{\n.reg .b32 t;\ncvt.rn.bf16x2.f32 t, $3, $2;\nshl.b32 $0, t, 16;\nand.b32 $1, t, 0xffff0000;\n}")

# Two floats rounded to float16.
_F16 = tl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")


@triton.jit
def as_values_of(wide, dtype: tl.constexpr, CONVERTS: tl.constexpr):
    """Float32 rounded to ``dtype``, as float32 or as ``dtype``; CONVERTS: on a target that rounds to bfloat16."""
    if CONVERTS and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(_BF16, "=f,=f,f,f", [wide], tl.float32, True, 2)
    else:
        return wide.to(dtype)


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
def scale_of_token(peak, static_scale, qmax, STATIC: tl.constexpr):
    """The scale of a token whose largest magnitude has the bits ``peak``: its own or, if STATIC, the given one."""
    if STATIC:
        return tl.where(peak < _INFINITY_BITS, tl.load(static_scale), float("nan"))
    else:
        return scale_of(peak, qmax)


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
def _store_codes(codes, place, value, mask, ELEMENT: tl.constexpr, WIDE: tl.constexpr, CONVERTS: tl.constexpr):
    """Stores codes of values within the range of the format, or what they stand for as float16 or bfloat16."""
    if not WIDE:
        if CONVERTS and ELEMENT == "int8":
            code = tl.inline_asm_elementwise(_INT8, "=r,f,f,f,f", [value], tl.int8, True, 4)
        elif CONVERTS and ELEMENT == "e4m3fn":
            code = tl.inline_asm_elementwise(_E4M3, "=r,f,f,f,f", [value], tl.int8, True, 4)
        elif CONVERTS and ELEMENT == "e5m2":
            code = tl.inline_asm_elementwise(_E5M2, "=r,f,f,f,f", [value], tl.int8, True, 4)
        else:
            code = _code(value, ELEMENT).to(tl.int8)
        tl.store(codes + place, code.to(codes.dtype.element_ty, bitcast=True), mask=mask)
    else:
        code = _code(value, ELEMENT)
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
def _near_one(values, scale):
    """Values and their scale times the power of two that makes the scale one of 1 to 2; zeros where it is NaN.

    The quotients are the same but where a value becomes subnormal, and there their codes are zeros in any case.
    """
    exponent = tl.minimum(scale.to(tl.int32, bitcast=True) >> 23, 253)
    power = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    known = scale == scale
    return tl.where(known, values * power, 0.0), tl.where(known, scale * power, 1.0)


@triton.jit
def _quotient(values, scale, CONVERTS: tl.constexpr):
    """``values / scale``, correctly rounded, of float32, for scales about 1 and quotients that do not overflow.

    ``r`` is the correctly rounded reciprocal; ``low`` is it or its neighbour below, and ``low + rest`` the reciprocal
    but for 2**-46 of it. So ``first`` is the quotient or one of the two floats beside it. What that leaves of the value
    is then a float, exactly, and ``first`` plus that by ``r`` rounds as the division does: Markstein's theorem. It
    wants that nothing becomes subnormal, which holds wherever a code is not zero: a remainder has no bits below
    2**-46 of scale and quotient, and ``_LOWEST`` by 2**-18, half the smallest step of e5m2, leaves room for them.

    A negative zero stays one, because ``rest`` is not negative and what is left is found by ``first * scale - value``,
    and subtracted. That holds where Triton's ``-x`` is ``0 - x`` (up to 3.6), which an instruction more makes it there.
    """
    r = tl.div_rn(1.0, scale)
    low = tl.where(tl.fma(r, scale, -1.0) > 0.0, (r.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True), r)
    rest = tl.fma(-low, scale, 1.0) * r
    first = tl.fma(values, tl.broadcast_to(low, values.shape), values * rest)
    negated = tl.inline_asm_elementwise(_NEGATED, "=f,f", [values], tl.float32, True, 1) if CONVERTS else -values
    left = tl.fma(first, tl.broadcast_to(scale, values.shape), negated)
    return tl.fma(left, tl.broadcast_to(-r, values.shape), first)


@triton.jit
def store_rounded(
    codes, place, values, scale, qmax, mask, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Stores the codes of ``values`` under their scale: zeros where it is NaN.

    Args:
        codes: pointer; with WIDE what leaves is the codes' values, as float16 or bfloat16.
        place, mask: of the shape of ``values``.
        scale: float32: one, or one for each row.
        STATIC: quotients may be beyond the format's range by more than a rounding.
        RECIPROCAL, CONVERTS: see above.
    """
    if RECIPROCAL:
        values = values.to(tl.float32)
        if scale.type.is_block():
            values, scale = _near_one(values, scale)
        else:
            if not ((scale >= _LOWEST) & (scale <= _HIGHEST)):
                values, scale = _near_one(values, scale)
        if STATIC:
            most = 2.0 * qmax * scale
            values = tl.minimum(tl.maximum(values, -most), most)
        quotient = _quotient(values, scale, CONVERTS)
    else:
        quotient = tl.div_rn(values.to(tl.float32), tl.broadcast_to(scale, values.shape))
        quotient = tl.where(scale == scale, quotient, 0.0)
    if STATIC or not RECIPROCAL:
        quotient = tl.minimum(tl.maximum(quotient, -qmax), qmax)
    _store_codes(codes, place, quotient, mask, ELEMENT, WIDE, CONVERTS)


@triton.jit
def range_of_token(peak):
    """The power of two, as the exponent of a float32, that a token is narrowed by whose largest magnitude has the bits
    ``peak``: no value is 2**15 times as large."""
    return tl.maximum((peak >> 23) - 14, 1)


@triton.jit
def store_range(scales, m, power):
    """Stores a token's power of two, as float32."""
    tl.store(scales + m, (power << 23).to(tl.float32, bitcast=True))


@triton.jit
def store_narrowed(codes, place, values, power, mask, CONVERTS: tl.constexpr):
    """Stores values less a power of two, as float16.

    The eight significant bits of a bfloat16 fit; what is below 2**-32 of the token's largest value loses bits below
    2**-41 of it, far under those that the float32 sum rounds. NaN and infinities stay.
    """
    down = ((254 - power) << 23).to(tl.float32, bitcast=True)
    wide = values.to(tl.float32) * down
    if CONVERTS:
        tl.store(codes + place, tl.inline_asm_elementwise(_F16, "=r,f,f", [wide], tl.float16, True, 2), mask=mask)
    else:
        tl.store(codes + place, wide.to(tl.float16), mask=mask)
