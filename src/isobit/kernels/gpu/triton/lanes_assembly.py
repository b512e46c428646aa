"""The assembly of the kernels in which every lane multiplies what it has read itself: pure texts of PTX.

For ``mma.m16n8k16`` the lanes ``4 g .. 4 g + 3`` hold row ``g`` of the left and column ``g`` of the right operand, so
the sum of their products is the element ``(g, g)`` of the result; what lies beside the diagonal is not used. A lane
brings four words of each of two rows of weights, which fill the upper and the lower half of the left operand, and the
activations that belong to them. Which 16-bit value stands where does not matter, if both operands agree.
"""

from __future__ import annotations

import triton.language as tl

_MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32 {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n"
_SUMS, _REGISTERS = "$0, $1, $2, $3", ".reg .b16 l, h;\n.reg .b32 a<4>, b<2>, s, t, k, o;\n"

# A word of four codes ({w}) as two float16 pairs ({a}, {b}), in any order, since both operands are decoded alike. By
# integers e4m3fn is 2**-8 of the number (decode.py); there the codes 0 and 2, and 1 and 3, are pairs.
_CODES = {
    "hardware": "mov.b32 {{l, h}}, {w};\ncvt.rn.f16x2.e4m3x2 {a}, l;\ncvt.rn.f16x2.e4m3x2 {b}, h;\n",
    "e4m3fn": (
        "shl.b32 s, {w}, 7;\nshl.b32 t, {w}, 8;\nand.b32 s, s, 0x3f803f80;\nlop3.b32 {a}, t, 0x80008000, s, 0xea;\n"
        "shr.u32 s, {w}, 1;\nand.b32 s, s, 0x3f803f80;\nlop3.b32 {b}, {w}, 0x80008000, s, 0xea;\n"
    ),
    "e5m2": "prmt.b32 {a}, 0, {w}, 0x5140;\nprmt.b32 {b}, 0, {w}, 0x7362;\n",
}

# The same with the codes 0 and 1, and 2 and 3, as pairs, as activations are. prmt puts a code into the low byte of a
# half and eight times its sign (e4m3fn) or zeros (int8, plus 128) above it. Then a shift and a mask make a float of
# e4m3fn: 2**-8 of the number in float16; in bfloat16 2**-120 of it, which a product brings back. The byte of int8 is
# the last of a float16 of 1024; as bfloat16 it is, normal or not, that byte times 2**-133: times 2**127, less 2, it is
# 1/64 of the code. Every step is exact.
_PAIRS = {
    ("hardware", "f16"): _CODES["hardware"],
    ("e4m3fn", "f16"): (
        "prmt.b32 s, {w}, 0, 0x9180;\nprmt.b32 t, {w}, 0, 0xb3a2;\nshl.b32 s, s, 7;\nshl.b32 t, t, 7;\n"
        "and.b32 {a}, s, 0xbf80bf80;\nand.b32 {b}, t, 0xbf80bf80;\n"
    ),
    ("e4m3fn", "bf16"): (
        "prmt.b32 s, {w}, 0, 0x9180;\nprmt.b32 t, {w}, 0, 0xb3a2;\nshl.b32 s, s, 4;\nshl.b32 t, t, 4;\n"
        "and.b32 s, s, 0x87f087f0;\nand.b32 t, t, 0x87f087f0;\n"
        "fma.rn.bf16x2 {a}, s, k, o;\nfma.rn.bf16x2 {b}, t, k, o;\n"
    ),
    ("int8", "f16"): (
        "xor.b32 s, {w}, 0x80808080;\nprmt.b32 {a}, s, k, 0x4140;\nprmt.b32 {b}, s, k, 0x4342;\n"
        "add.f16x2 {a}, {a}, o;\nadd.f16x2 {b}, {b}, o;\n"
    ),
    ("int8", "bf16"): (
        "xor.b32 s, {w}, 0x80808080;\nprmt.b32 {a}, s, 0, 0x4140;\nprmt.b32 {b}, s, 0, 0x4342;\n"
        "fma.rn.bf16x2 {a}, {a}, k, o;\nfma.rn.bf16x2 {b}, {b}, k, o;\n"
    ),
}
_PAIRS_CONSTANTS = {
    ("e4m3fn", "bf16"): "mov.b32 k, 0x7b807b80;\nmov.b32 o, 0x80008000;\n",
    ("int8", "f16"): "mov.b32 k, 0x64646464;\nmov.b32 o, 0xe480e480;\n",
    ("int8", "bf16"): "mov.b32 k, 0x7f007f00;\nmov.b32 o, 0xc000c000;\n",
}


def _by_codes(element: str) -> str:
    """Four words of codes of each of two rows ($4, $8) by four of codes of activations ($12), added to $16."""
    text = "{\n" + _REGISTERS
    for word in range(4):
        for place, low, high in ((4, "a0", "a2"), (8, "a1", "a3"), (12, "b0", "b1")):
            text += _CODES[element].format(w=f"${place + word}", a=low, b=high)
        before = "$16, $17, $18, $19" if word == 0 else _SUMS
        text += _MMA.format(t="f16", d=_SUMS, a="a0, a1, a2, a3", b="b0, b1", c=before)
    return text + "}"


def _by_floats(element: str, dtype: str) -> str:
    """Four words of codes of each of two rows ($4, $8) by eight of 16-bit floats ($12), added to $20."""
    text = "{\n" + _REGISTERS + _PAIRS_CONSTANTS.get((element, dtype), "")
    for word in range(4):
        for place, low, high in ((4, "a0", "a2"), (8, "a1", "a3")):
            text += _PAIRS[element, dtype].format(w=f"${place + word}", a=low, b=high)
        before = "$20, $21, $22, $23" if word == 0 else _SUMS
        right = f"${12 + 2 * word}, ${13 + 2 * word}"
        text += _MMA.format(t=dtype, d=_SUMS, a="a0, a1, a2, a3", b=right, c=before)
    return text + "}"


def _floats(dtype: str) -> str:
    """Four words, eight floats, of each of two rows ($4, $8) by as many activations ($12), added to $16."""
    text = "{\n"
    for word in (0, 2):
        left = f"${4 + word}, ${8 + word}, ${5 + word}, ${9 + word}"
        before = "$16, $17, $18, $19" if word == 0 else _SUMS
        text += _MMA.format(t=dtype, d=_SUMS, a=left, b=f"${12 + word}, ${13 + word}", c=before)
    return text + "}"


# Nibbles of each half of {w}, less 8 or a zero point, as pairs {q}0 to {q}3. Float16: see decode.py. Bfloat16: the
# lower byte of a half is, as a number, that byte times 2**-133, normal or not; times 2**127 (2**123 for high nibbles),
# less 1/64 of the zero point, it is 1/64 of what the nibble means. {low} and {high} belong to the first and the last
# two quarters of a unit of codes.
_NIBBLES = {
    "f16": (
        "lop3.b32 {q}0, {w}, 0x000f000f, k, 0xea;\nlop3.b32 {q}1, {w}, 0x00f000f0, k, 0xea;\nshr.u32 s, {w}, 8;\n"
        "lop3.b32 {q}2, s, 0x000f000f, k, 0xea;\nlop3.b32 {q}3, s, 0x00f000f0, k, 0xea;\n"
        "add.f16x2 {q}0, {q}0, o{low};\nfma.rn.f16x2 {q}1, {q}1, m, n{low};\n"
        "add.f16x2 {q}2, {q}2, o{high};\nfma.rn.f16x2 {q}3, {q}3, m, n{high};\n"
    ),
    "bf16": (
        "and.b32 {q}0, {w}, 0x000f000f;\nand.b32 {q}1, {w}, 0x00f000f0;\nshr.u32 s, {w}, 8;\n"
        "and.b32 {q}2, s, 0x000f000f;\nand.b32 {q}3, s, 0x00f000f0;\n"
        "fma.rn.bf16x2 {q}0, {q}0, k, o{low};\nfma.rn.bf16x2 {q}1, {q}1, m, o{low};\n"
        "fma.rn.bf16x2 {q}2, {q}2, k, o{high};\nfma.rn.bf16x2 {q}3, {q}3, m, o{high};\n"
    ),
}  # fmt: skip
_NIBBLE_CONSTANTS = {
    "f16": "mov.b32 k, 0x64006400;\nmov.b32 m, 0x2c002c00;\n",
    "bf16": "mov.b32 k, 0x7f007f00;\nmov.b32 m, 0x7d007d00;\n",
}
# The offset of symmetric codes; and those of a zero point {z}, which both halves of a word have.
_EIGHT = {"f16": "mov.b32 o0, 0xe408e408;\nmov.b32 n0, 0xd480d480;\n", "bf16": "mov.b32 o0, 0xbe00be00;\n"}
_ZERO = {
    "f16": "or.b32 o{i}, {z}, 0xe400e400;\nshl.b32 s, {z}, 4;\nor.b32 n{i}, s, 0xd400d400;\n",
    "bf16": "fma.rn.bf16x2 o{i}, {z}, r, t;\n",
}
_ZERO_CONSTANTS = {"f16": "", "bf16": "mov.b32 r, 0xff00ff00;\nmov.b32 t, 0x80008000;\n"}


def _nibbles(dtype: str, zero: bool, parts: int) -> str:
    """Four words of each of two rows by the activations of their four quarters, of which ``parts`` have own scales.

    Results are sums of both rows: of the lower and of the upper two quarters ($0 to $3), or of each quarter ($0 to $7).
    Behind them come the words of the rows, four registers of activations for each quarter, and, if ``zero``, zero
    points in both halves of a word: of both rows for the lower and then for the upper two quarters.
    """
    results = 2 * parts
    rows = (results, results + 4)
    text = "{\n.reg .b32 a<4>, b<4>, c<4>, d<4>, o<4>, n<4>, s, k, m, r, t;\n.reg .pred p;\n"
    text += "".join(f".reg .f32 {name}<4>;\n" for name in "efuv"[:parts]) + _NIBBLE_CONSTANTS[dtype]
    if zero:
        text += _ZERO_CONSTANTS[dtype]
        text += "".join(_ZERO[dtype].format(i=i, z=f"${results + 24 + i}") for i in range(4))
    else:
        text += _EIGHT[dtype]
    started: set[str] = set()
    for word in (0, 2):
        for row, names in enumerate(("ac", "bd")):
            offsets = {"low": row, "high": row + 2} if zero else {"low": 0, "high": 0}
            for i, name in enumerate(names):
                text += _NIBBLES[dtype].format(w=f"${rows[row] + word + i}", q=name, **offsets)
        for quarter in range(4):
            total = "efuv"[quarter * parts // 4]
            sums = ", ".join(f"{total}{i}" for i in range(4))
            before = sums if total in started else ", ".join(["0f00000000"] * 4)
            started.add(total)
            left = f"a{quarter}, b{quarter}, c{quarter}, d{quarter}"
            place = results + 8 + 4 * quarter + word
            text += _MMA.format(t=dtype, d=sums, a=left, b=f"${place}, ${place + 1}", c=before)
    text += "mov.u32 s, %laneid;\nand.b32 s, s, 4;\nsetp.ne.u32 p, s, 0;\n"  # the diagonal's column is odd
    for part in range(parts):
        name = "efuv"[part]
        text += f"selp.f32 ${2 * part}, {name}1, {name}0, p;\nselp.f32 ${2 * part + 1}, {name}3, {name}2, p;\n"
    return text + "}"


HARDWARE = tl.constexpr(_by_codes("hardware"))
E4M3 = tl.constexpr(_by_codes("e4m3fn"))
E5M2 = tl.constexpr(_by_codes("e5m2"))
HARDWARE_F16 = tl.constexpr(_by_floats("hardware", "f16"))
E4M3_F16 = tl.constexpr(_by_floats("e4m3fn", "f16"))
E4M3_BF16 = tl.constexpr(_by_floats("e4m3fn", "bf16"))
INT8_F16 = tl.constexpr(_by_floats("int8", "f16"))
INT8_BF16 = tl.constexpr(_by_floats("int8", "bf16"))
F16 = tl.constexpr(_floats("f16"))
BF16 = tl.constexpr(_floats("bf16"))
ADDED = tl.constexpr("=&f,=&f,=&f,=&f" + ",r" * 12 + ",f" * 4)
ADDED_FLOATS = tl.constexpr("=&f,=&f,=&f,=&f" + ",r" * 16 + ",f" * 4)

NIBBLES_F16 = tl.constexpr(_nibbles("f16", False, 2))
NIBBLES_BF16 = tl.constexpr(_nibbles("bf16", False, 2))
ZEROS_F16 = tl.constexpr(_nibbles("f16", True, 2))
ZEROS_BF16 = tl.constexpr(_nibbles("bf16", True, 2))
QUARTERS_F16 = tl.constexpr(_nibbles("f16", False, 4))
QUARTERS_BF16 = tl.constexpr(_nibbles("bf16", False, 4))
HALVES = tl.constexpr("=&f,=&f,=&f,=&f" + ",r" * 24)
HALVES_ZEROS = tl.constexpr("=&f,=&f,=&f,=&f" + ",r" * 28)
QUARTERS = tl.constexpr("=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f" + ",r" * 24)
