"""Keys and values whose groups share a scale (MX, NVFP4): how they are stored, and tiles of what they stand for.

ELEMENT is then the name of a cache's format: ``mxfp8``, ``mxfp4``, ``nvfp4`` (docs/numerics.md, 9). What a code and the
scale of its group give has at most six significant bits, and an exponent that bfloat16 has: no scale is below 2**-100,
and only what is infinite in float32, too, is beyond the largest. So tiles are bfloat16 numbers, exactly (``over`` of
``nvfp4``, a scale of each token and head, goes to scores and weights as that of other codes does).

Of codes of four bits a byte holds two: dimension d in its low half, d + DIM / 2 in its high one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.decode import e4m3_to_bf16
from isobit.kernels.gpu.triton.law import _float_code, magnitudes, scale_of, store_rounded

_INFINITY_BITS = tl.constexpr(0x7F800000)

# Four bytes as the numbers of their low halves and of their high ones. Sign, exponent and mantissa go to the fields of
# bfloat16, whose exponent has another origin: times 2**126 (0x7e80), which is exact; 0x8000 is -0.
_E2M1_BF16 = tl.constexpr("""{
.reg .b32 a, b, c, d, k, z;
mov.b32 k, 0x7e807e80;
mov.b32 z, 0x80008000;
prmt.b32 a, 0, $4, 0x5140;
prmt.b32 b, 0, $4, 0x7362;
shl.b32 c, a, 4;
shl.b32 d, b, 4;
shr.u32 $0, c, 6;
shr.u32 $1, d, 6;
shr.u32 $2, a, 6;
shr.u32 $3, b, 6;
and.b32 $0, $0, 0x01c001c0;
and.b32 $1, $1, 0x01c001c0;
and.b32 $2, $2, 0x01c001c0;
and.b32 $3, $3, 0x01c001c0;
lop3.b32 $0, c, 0x80008000, $0, 0xea;
lop3.b32 $1, d, 0x80008000, $1, 0xea;
lop3.b32 $2, a, 0x80008000, $2, 0xea;
lop3.b32 $3, b, 0x80008000, $3, 0xea;
fma.rn.bf16x2 $0, $0, k, z;
fma.rn.bf16x2 $1, $1, k, z;
fma.rn.bf16x2 $2, $2, k, z;
fma.rn.bf16x2 $3, $3, k, z;
}""")

# Two products of bfloat16 at once.
_TIMES = tl.constexpr("{\n.reg .b32 z;\nmov.b32 z, 0x80008000;\nfma.rn.bf16x2 $0, $1, $2, z;\n}")


# ---------------------------------------------------------------------- reading


@triton.jit
def _to_bf16(exact):
    """Float32 numbers that bfloat16 has, as such: no rounding is asked for."""
    return (exact.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _e2m1(codes):
    """The value of the e2m1 code in the lowest four bits, float32."""
    bits = codes.to(tl.int32)
    exponent, mantissa = (bits >> 1) & 3, bits & 1
    normal = (((exponent + 126) << 23) | (mantissa << 22)).to(tl.float32, bitcast=True)
    value = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.5, normal)
    return (((bits & 8) << 28) | value.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def e2m1_halves(bytes, ASM: tl.constexpr):
    """What the low halves of bytes stand for, and the high ones: bfloat16, or float32 without ASM."""
    if ASM:
        return tl.inline_asm_elementwise(
            _E2M1_BF16, "=&r,=&r,=&r,=&r,r", [bytes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        return _e2m1(bytes), _e2m1(bytes >> 4)


@triton.jit
def _e4m3(codes):
    """Codes of e4m3fn as float32; NaN as 480."""
    bits = codes.to(tl.int32)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    normal = (((exponent + 120) << 23) | (mantissa << 20)).to(tl.float32, bitcast=True)
    value = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.001953125, normal)
    return (((bits & 0x80) << 24) | value.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _scales(codes, ELEMENT: tl.constexpr):
    """Scales of groups by their codes, float32. Of e8m0 no cache has code 0; NaN, whose group has codes 0, is infinity,
    which makes NaN of those. Of e4m3fn no cache has NaN."""
    if ELEMENT == "nvfp4":
        return _e4m3(codes)
    else:
        return (codes.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _times(values, scales, ASM: tl.constexpr):
    """Numbers ``[N, W]`` by the scales ``[N, G]`` of their groups, each of W / G neighbours: bfloat16.

    ``values`` are bfloat16 with ASM, else float32.
    """
    groups: tl.constexpr = scales.shape[1]
    each: tl.constexpr = values.shape[1] // groups
    apart = tl.reshape(values, (values.shape[0], groups, each))
    if ASM:
        wide = tl.broadcast_to(_to_bf16(scales)[:, :, None], apart.shape)
        found = tl.inline_asm_elementwise(_TIMES, "=r,r,r", [apart, wide], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        found = _to_bf16(apart * scales[:, :, None])
    return tl.reshape(found, values.shape)


@triton.jit
def _group_scales(groups, base, rows, first, ELEMENT: tl.constexpr, COUNT: tl.constexpr, TAKEN: tl.constexpr):
    """Scales ``[N, TAKEN]`` from the ``first`` one on, of the COUNT that a row has; zeros behind those.

    Four at a time where that is possible: loads of fewer bytes do not run ahead of a loop.
    """
    if COUNT % 4 == 0 and TAKEN % 4 == 0:
        words: tl.constexpr = COUNT // 4
        place = groups.to(tl.pointer_type(tl.int32)) + base * words + (rows * words + first // 4)
        byte = 8 * tl.arange(0, 4)
        if TAKEN == 4:
            codes = tl.load(place)[:, None] >> byte[None, :]
        else:
            read = tl.load(place[:, None] + tl.arange(0, TAKEN // 4)[None, :])
            codes = tl.reshape(read[:, :, None] >> byte[None, None, :], (rows.shape[0], TAKEN))
        return _scales(codes & 255, ELEMENT)
    else:
        g = first + tl.arange(0, TAKEN)[None, :]
        place = groups + base * COUNT + (rows[:, None] * COUNT + g)
        if COUNT % TAKEN == 0:
            codes = tl.load(place)
        else:
            codes = tl.load(place, mask=g < COUNT, other=0)
        return _scales(codes, ELEMENT)


@triton.jit
def halves_of(
    memory, groups, base, rows, DTYPE: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """Two tiles ``[N, DIM / 2]`` of codes of four bits: the first half of the dimensions, and the second.

    Args:
        memory, groups: uint8: codes ``[.., DIM / 2]`` and scales of groups ``[.., DIM / group]``.
        base, rows: see ``attention.rows_of_keys``.
        DTYPE: of the activations: float32 is what comes of float32 alone, bfloat16 of the others.
        DIM: a power of two, and whole groups in each half.
    """
    size: tl.constexpr = 16 if ELEMENT == "nvfp4" else 32
    half: tl.constexpr = DIM // 2
    bytes = tl.load(memory + base * half + (rows[:, None] * half + tl.arange(0, half)[None, :]))
    low, high = e2m1_halves(bytes, ASM)
    count: tl.constexpr = DIM // size
    scales = _group_scales(groups, base, rows, 0, ELEMENT, count, count)
    of_low, of_high = tl.split(tl.permute(tl.reshape(scales, (rows.shape[0], 2, count // 2)), (0, 2, 1)))
    low, high = _times(low, of_low, ASM), _times(high, of_high, ASM)
    if DTYPE == tl.float32:
        return low.to(tl.float32), high.to(tl.float32)
    else:
        return low, high


@triton.jit
def grouped_tile(
    memory, groups, base, rows, DTYPE: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Keys or values ``[N, WIDTH]`` without the scales above those of groups; zeros from DIM on. As ``halves_of``."""
    if ELEMENT == "mxfp8":
        found = grouped_part(memory, groups, base, rows, 0, DTYPE, DIM, WIDTH, DIM == WIDTH, ASM)
    else:
        low, high = halves_of(memory, groups, base, rows, DTYPE, ELEMENT, DIM, ASM)
        found = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (low.shape[0], WIDTH))
    return found


@triton.jit
def grouped_part(
    memory, groups, base, rows, first, DTYPE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The WIDTH numbers of ``mxfp8`` from ``first`` on, of the DIM that a row has: all there if EVEN."""
    d = first + tl.arange(0, WIDTH)[None, :]
    place = memory + base * DIM + (rows[:, None] * DIM + d)
    if EVEN:
        codes = tl.load(place)
    else:
        codes = tl.load(place, mask=d < DIM, other=0)
    scales = _group_scales(groups, base, rows, first // 32, "mxfp8", (DIM + 31) // 32, WIDTH // 32)
    if ASM:
        found = _times(e4m3_to_bf16(codes, True), scales, True)
    else:
        found = _times(_e4m3(codes), scales, False)
    return found.to(tl.float32) if DTYPE == tl.float32 else found


# ---------------------------------------------------------------------- storing


@triton.jit
def _e2m1_code(value):
    """Codes (int32) of float32 up to 6 in magnitude: ties to even, zeros keep their sign."""
    code = _float_code(value, 1, 0)
    return (code & 7) | ((code >> 4) & 8)


@triton.jit
def _power_codes(peak, ELEMENT: tl.constexpr):
    """Codes (int32) of e8m0 for groups whose largest magnitudes have these bits: the exponent, one more from 1.75 on,
    less that of the largest code; NaN where that is no number."""
    largest: tl.constexpr = 8 if ELEMENT == "mxfp8" else 2
    code = tl.minimum(tl.maximum(((peak + (1 << 21)) >> 23) - largest, 27), 254)
    return tl.where(peak < _INFINITY_BITS, code, 255)


@triton.jit
def _codes_under(peak, above):
    """Codes (int32) of e4m3fn for groups of ``nvfp4`` by the bits of their largest magnitudes, 2**-3 for 0."""
    scale = tl.div_rn(tl.div_rn(peak.to(tl.float32, bitcast=True), 6.0), tl.broadcast_to(above, peak.shape))
    scale = tl.where(tl.broadcast_to(above == above, peak.shape), scale, 0.0)  # NaN stays above
    code = _float_code(tl.minimum(scale, 448.0), 3, -6)
    return tl.where(code == 0, 0x20, code)


@triton.jit
def store_grouped(
    y, scales, groups, values, inside, ELEMENT: tl.constexpr, DIM: tl.constexpr, CONVERTS: tl.constexpr
):  # fmt: skip
    """Stores heads ``[B, WIDTH]`` as codes, with a scale of each group and, of ``nvfp4``, one above them.

    Args:
        y, scales, groups: ``[B, 1]``: pointers to a head's bytes, to its float32 scale, to its scales of groups.
        values: of the activations' dtype, zeros from DIM on. WIDTH: DIM rounded up to a power of two, at least a group.
        inside: ``[B, 1]``: which heads there are.
        CONVERTS: see ``law.py``.
    """
    size: tl.constexpr = 16 if ELEMENT == "nvfp4" else 32
    batch: tl.constexpr = values.shape[0]
    width: tl.constexpr = values.shape[1]
    count: tl.constexpr = width // size
    bits = magnitudes(values)
    peak = tl.max(tl.reshape(bits, (batch, count, size)), axis=2)
    if ELEMENT == "nvfp4":
        above = scale_of(tl.max(bits, axis=1), 2688.0)[:, None]  # 6 * 448
        tl.store(scales, above, mask=inside)
        codes = _codes_under(peak, above)
        scale = _e4m3(codes) * above
    else:
        codes = _power_codes(peak, ELEMENT)
        scale = (codes << 23).to(tl.float32, bitcast=True)
        scale = tl.where(codes == 255, float("nan"), scale)
    g = tl.arange(0, count)[None, :]
    tl.store(groups + g, codes.to(tl.uint8), mask=inside & (g < (DIM + size - 1) // size))
    scale = tl.reshape(tl.broadcast_to(scale[:, :, None], (batch, count, size)), (batch, width))
    if ELEMENT == "mxfp8":
        d = tl.arange(0, width)[None, :]
        largest = tl.full((), 448.0, tl.float32)
        store_rounded(y, d, values, scale, largest, inside & (d < DIM), "e4m3fn", False, False, False, CONVERTS)
    else:
        quotient = tl.where(scale == scale, tl.div_rn(values.to(tl.float32), scale), 0.0)
        found = _e2m1_code(tl.minimum(tl.maximum(quotient, -6.0), 6.0))
        low, high = tl.split(tl.permute(tl.reshape(found, (batch, 2, width // 2)), (0, 2, 1)))
        tl.store(y + tl.arange(0, width // 2)[None, :], (low | (high << 4)).to(tl.uint8), mask=inside)
