"""Exact widening of few-bit codes by integer arithmetic, for targets without a conversion (docs/numerics.md, 1).

Every decoder has a plain form, which any target and Triton's interpreter run, and on NVIDIA a form in inline assembly
that handles two to four codes per instruction (``ASM``). Both give the same bits for every code, except for the two
NaN codes of e4m3fn: those come out as +-480 and are poisoned when the weight is bound (``layouts.py``).

Float16 values of e4m3fn are 2**-8 of the number: a code shifted into float16's fields is that, subnormals included,
and the power of two costs nothing where the scales are applied. ``gain`` says what a decoder leaves to be multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Two codes in the high bytes of two halves; sign | (magnitude >> 1): float16 of the value times 2**-8.
_E4M3_F16 = tl.constexpr("""{
.reg .b32 a, b, s, t;
prmt.b32 a, 0, $2, 0x5140;
prmt.b32 b, 0, $2, 0x7362;
shr.u32 s, a, 1;
shr.u32 t, b, 1;
and.b32 s, s, 0x3f803f80;
and.b32 t, t, 0x3f803f80;
lop3.b32 $0, a, 0x80008000, s, 0xea;
lop3.b32 $1, b, 0x80008000, t, 0xea;
}""")

# The same with bfloat16's wider exponent, times 2**120 (0x7b80), which is exact; 0x8000 is -0.
_E4M3_BF16 = tl.constexpr("""{
.reg .b32 a, b, s, t, k, z;
mov.b32 k, 0x7b807b80;
mov.b32 z, 0x80008000;
prmt.b32 a, 0, $2, 0x5140;
prmt.b32 b, 0, $2, 0x7362;
shr.u32 s, a, 4;
shr.u32 t, b, 4;
and.b32 s, s, 0x07f007f0;
and.b32 t, t, 0x07f007f0;
lop3.b32 a, a, 0x80008000, s, 0xea;
lop3.b32 b, b, 0x80008000, t, 0xea;
fma.rn.bf16x2 $0, a, k, z;
fma.rn.bf16x2 $1, b, k, z;
}""")

# e5m2 is the high byte of a float16.
_E5M2_F16 = tl.constexpr("""{
prmt.b32 $0, 0, $2, 0x5140;
prmt.b32 $1, 0, $2, 0x7362;
}""")

# 1024 + (code + 128) in float16, whose last place is 1 there; less 1152.
_INT8_F16 = tl.constexpr("""{
.reg .b32 u, k, m;
mov.b32 m, 0x64646464;
mov.b32 k, 0x64806480;
xor.b32 u, $2, 0x80808080;
prmt.b32 $0, u, m, 0x4140;
prmt.b32 $1, u, m, 0x4342;
sub.f16x2 $0, $0, k;
sub.f16x2 $1, $1, k;
}""")

# 2**23 + (code + 128) in float32, less that; the difference has 8 bits and so is exact in bfloat16.
_INT8_BF16 = tl.constexpr("""{
.reg .b32 u, m;
.reg .f32 a, b, c, d;
.reg .b32 p, q, r, s;
mov.b32 m, 0x4b000000;
xor.b32 u, $2, 0x80808080;
prmt.b32 p, u, m, 0x7440;
prmt.b32 q, u, m, 0x7441;
prmt.b32 r, u, m, 0x7442;
prmt.b32 s, u, m, 0x7443;
mov.b32 a, p;
mov.b32 b, q;
mov.b32 c, r;
mov.b32 d, s;
sub.f32 a, a, 0f4B000080;
sub.f32 b, b, 0f4B000080;
sub.f32 c, c, 0f4B000080;
sub.f32 d, d, 0f4B000080;
cvt.rn.bf16x2.f32 $0, b, a;
cvt.rn.bf16x2.f32 $1, d, c;
}""")

# Four 4-bit fields of each 16-bit half. Low nibbles: 1024 + c, plus $5 = -(1024 + zero). High nibbles stay where they
# are: 1024 + 16 c, times 1/16 (0x2c00), plus $6 = -(64 + zero). Every step is exact.
_NIBBLES_F16 = tl.constexpr("""{
.reg .b32 a, k, s;
mov.b32 k, 0x64006400;
mov.b32 s, 0x2c002c00;
shr.u32 a, $4, 8;
lop3.b32 $0, $4, 0x000f000f, k, 0xea;
lop3.b32 $1, $4, 0x00f000f0, k, 0xea;
lop3.b32 $2, a, 0x000f000f, k, 0xea;
lop3.b32 $3, a, 0x00f000f0, k, 0xea;
add.f16x2 $0, $0, $5;
fma.rn.f16x2 $1, $1, s, $6;
add.f16x2 $2, $2, $5;
fma.rn.f16x2 $3, $3, s, $6;
}""")

# bfloat16 has room for one nibble beside its exponent: 128 + c, plus $5 = -(128 + zero); $6 is not used.
_NIBBLES_BF16 = tl.constexpr("""{
.reg .b32 a, b, c, k, o;
mov.b32 k, 0x43004300;
mov.b32 o, 0x3f803f80;
shr.u32 a, $4, 4;
shr.u32 b, $4, 8;
shr.u32 c, $4, 12;
lop3.b32 $0, $4, 0x000f000f, k, 0xea;
lop3.b32 $1, a, 0x000f000f, k, 0xea;
lop3.b32 $2, b, 0x000f000f, k, 0xea;
lop3.b32 $3, c, 0x000f000f, k, 0xea;
fma.rn.bf16x2 $0, $0, o, $5;
fma.rn.bf16x2 $1, $1, o, $5;
fma.rn.bf16x2 $2, $2, o, $5;
fma.rn.bf16x2 $3, $3, o, $5;
}""")

# Four products of signed bytes, added to a 32-bit integer.
_DP4A = tl.constexpr("dp4a.s32.s32 $0, $1, $2, $3;")


@triton.jit
def e4m3_to_f16(codes, ASM: tl.constexpr):
    """uint8 codes of e4m3fn to float16, times 2**-8."""
    if ASM:
        return tl.inline_asm_elementwise(_E4M3_F16, "=&r,=&r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    else:
        # The sign, extended, also reaches bit 15; bit 14 is cleared.
        bits = (codes.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4080
        return bits.to(tl.float16, bitcast=True)


@triton.jit
def e4m3_to_bf16(codes, ASM: tl.constexpr):
    """uint8 codes of e4m3fn to bfloat16."""
    if ASM:
        return tl.inline_asm_elementwise(_E4M3_BF16, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        return (e4m3_to_f16(codes, False).to(tl.float32) * 256.0).to(tl.bfloat16)


@triton.jit
def e5m2_to_f16(codes, ASM: tl.constexpr):
    """uint8 codes of e5m2 to float16."""
    if ASM:
        return tl.inline_asm_elementwise(_E5M2_F16, "=&r,=&r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    else:
        return (codes.to(tl.uint16) << 8).to(tl.float16, bitcast=True)


@triton.jit
def int8_to_f16(codes, ASM: tl.constexpr):
    """int8 to float16."""
    if ASM:
        return tl.inline_asm_elementwise(_INT8_F16, "=&r,=&r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    else:
        return codes.to(tl.float16)


@triton.jit
def int8_to_bf16(codes, ASM: tl.constexpr):
    """int8 to bfloat16."""
    if ASM:
        return tl.inline_asm_elementwise(_INT8_BF16, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        return codes.to(tl.float32).to(tl.bfloat16)


@triton.jit
def to_f16(codes, ELEMENT: tl.constexpr, ASM: tl.constexpr):
    """Codes of an 8-bit element format to float16, less ``gain``."""
    if ELEMENT == "e4m3fn":
        return e4m3_to_f16(codes, ASM)
    elif ELEMENT == "e5m2":
        return e5m2_to_f16(codes, ASM)
    else:
        tl.static_assert(ELEMENT == "int8", "an 8-bit element format")
        return int8_to_f16(codes, ASM)


@triton.jit
def to_bf16(codes, ELEMENT: tl.constexpr, ASM: tl.constexpr):
    """Codes of an 8-bit element format to bfloat16, exactly (``gain`` is 1)."""
    if ELEMENT == "e4m3fn":
        return e4m3_to_bf16(codes, ASM)
    elif ELEMENT == "e5m2":
        return e5m2_to_f16(codes, ASM).to(tl.float32).to(tl.bfloat16)
    else:
        tl.static_assert(ELEMENT == "int8", "an 8-bit element format")
        return int8_to_bf16(codes, ASM)


@triton.jit
def nibbles(words, zero, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """The four 4-bit codes of each 16-bit word, lowest first, less ``zero``, as four tensors in float16 or bfloat16.

    Args:
        words: int16.
        zero: float32 whole numbers 0 to 15, of the same shape: the stored code of 0.0.
        DTYPE: tl.float16 or tl.bfloat16.
    """
    if ASM:
        if DTYPE == tl.float16:
            return tl.inline_asm_elementwise(
                _NIBBLES_F16,
                "=&r,=&r,=&r,=&r,r,r,r",
                [words, (-1024.0 - zero).to(tl.float16), (-64.0 - zero).to(tl.float16)],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True,
                pack=2,
            )
        else:
            return tl.inline_asm_elementwise(
                _NIBBLES_BF16,
                "=&r,=&r,=&r,=&r,r,r",
                [words, (-128.0 - zero).to(tl.bfloat16)],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
                is_pure=True,
                pack=2,
            )
    else:
        bits = words.to(tl.int32)
        return (
            ((bits & 15).to(tl.float32) - zero).to(DTYPE),
            (((bits >> 4) & 15).to(tl.float32) - zero).to(DTYPE),
            (((bits >> 8) & 15).to(tl.float32) - zero).to(DTYPE),
            (((bits >> 12) & 15).to(tl.float32) - zero).to(DTYPE),
        )


@triton.jit
def stream(words, row, k, BITS: tl.constexpr):
    """Codes ``k`` of a row of a dense little-endian bit stream (formats/pack.py), as int32 0 to 2**BITS - 1.

    Args:
        words: pointer to int32.
        row: offset of the row's first word, broadcastable to ``k``.
        k: which codes; a code may cross into the next word.
    """
    bit = k * BITS
    word, shift = bit >> 5, bit & 31
    low = tl.load(words + row + word).to(tl.uint32, bitcast=True) >> shift.to(tl.uint32)
    crosses = shift > 32 - BITS
    high = tl.load(words + row + word + 1, mask=crosses, other=0).to(tl.uint32, bitcast=True)
    high = tl.where(crosses, high << ((32 - shift) & 31).to(tl.uint32), 0)
    return ((low | high) & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
def dp4a(words, x, total, ASM: tl.constexpr):
    """``total`` plus the four products of the signed bytes of ``words`` and ``x`` (all int32)."""
    if ASM:
        return tl.inline_asm_elementwise(_DP4A, "=r,r,r,r", [words, x, total], dtype=tl.int32, is_pure=True, pack=1)
    else:
        for byte in tl.static_range(4):
            total += ((words << (24 - 8 * byte)) >> 24) * ((x << (24 - 8 * byte)) >> 24)
        return total
