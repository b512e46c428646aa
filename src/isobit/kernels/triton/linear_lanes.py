"""``y = x W^T`` for one token on NVIDIA's matrix units, each lane with the weights it has read itself.

A row of weights is read as by ``linear_vector``: every lane 16 neighbouring bytes, a warp 512. Such a lane then gives
``mma.m16n8k16`` its own weights as a piece of the left operand and its own activations as a piece of the right one. For
the matrix unit the lanes ``4 g .. 4 g + 3`` hold row ``g`` of the left and column ``g`` of the right operand, so the
sum of their products is the element ``(g, g)`` of the result, and what lies beside the diagonal is not used. That is a
dot product in float32 of eight weights a lane for one instruction, with no shared memory, no shuffles and no other
order of the weights in memory. Two rows of weights fill the upper and the lower half of the operand.

``ASM`` off: the same sums in plain Triton, for the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.triton.decode import nibbles, to_f16
from isobit.kernels.triton.pdl import prefetch, wait

# A word of four codes ({w}) as two float16 pairs ({a}, {b}), in any order, since both operands are decoded alike. By
# integers e4m3fn is 2**-8 of the number (decode.py); there the codes 0 and 2, and 1 and 3, are pairs.
_DECODE = {
    "hardware": "mov.b32 {{l, h}}, {w};\ncvt.rn.f16x2.e4m3x2 {a}, l;\ncvt.rn.f16x2.e4m3x2 {b}, h;\n",
    "e4m3fn": (
        "shl.b32 s, {w}, 7;\nshl.b32 t, {w}, 8;\nand.b32 s, s, 0x3f803f80;\nlop3.b32 {a}, t, 0x80008000, s, 0xea;\n"
        "shr.u32 s, {w}, 1;\nand.b32 s, s, 0x3f803f80;\nlop3.b32 {b}, {w}, 0x80008000, s, 0xea;\n"
    ),
    "e5m2": "prmt.b32 {a}, 0, {w}, 0x5140;\nprmt.b32 {b}, 0, {w}, 0x7362;\n",
}
_MMA = "mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32 {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n"


def _eight_bit(element: str) -> str:
    """Four words of each of two rows ($4, $8) by four of codes of activations ($12), added to $16."""
    text = "{\n.reg .b16 l, h;\n.reg .b32 a0, a1, a2, a3, b0, b1, s, t;\n"
    for word in range(4):
        for place, low, high in ((4, "a0", "a2"), (8, "a1", "a3"), (12, "b0", "b1")):
            text += _DECODE[element].format(w=f"${place + word}", a=low, b=high)
        before = "$16, $17, $18, $19" if word == 0 else "$0, $1, $2, $3"
        text += _MMA.format(t="f16", d="$0, $1, $2, $3", a="a0, a1, a2, a3", b="b0, b1", c=before)
    return text + "}"


# Nibbles of each half of {w}, less 8, as pairs {q}0 to {q}3. Float16: see decode.py. Bfloat16: the lower byte of a half
# is, as a number, that byte times 2**-133, normal or not; times 2**127 (2**123 for high nibbles), less 1/8, it is 1/64
# of the nibble less 8.
_NIBBLES = {
    "f16": (
        "lop3.b32 {q}0, {w}, 0x000f000f, k, 0xea;\nlop3.b32 {q}1, {w}, 0x00f000f0, k, 0xea;\nshr.u32 s, {w}, 8;\n"
        "lop3.b32 {q}2, s, 0x000f000f, k, 0xea;\nlop3.b32 {q}3, s, 0x00f000f0, k, 0xea;\n"
        "add.f16x2 {q}0, {q}0, o;\nfma.rn.f16x2 {q}1, {q}1, m, n;\n"
        "add.f16x2 {q}2, {q}2, o;\nfma.rn.f16x2 {q}3, {q}3, m, n;\n"
    ),
    "bf16": (
        "and.b32 {q}0, {w}, 0x000f000f;\nand.b32 {q}1, {w}, 0x00f000f0;\nshr.u32 s, {w}, 8;\n"
        "and.b32 {q}2, s, 0x000f000f;\nand.b32 {q}3, s, 0x00f000f0;\n"
        "fma.rn.bf16x2 {q}0, {q}0, k, o;\nfma.rn.bf16x2 {q}1, {q}1, m, o;\n"
        "fma.rn.bf16x2 {q}2, {q}2, k, o;\nfma.rn.bf16x2 {q}3, {q}3, m, o;\n"
    ),
}  # fmt: skip
_NIBBLE_CONSTANTS = {
    "f16": "mov.b32 k, 0x64006400;\nmov.b32 o, 0xe408e408;\nmov.b32 m, 0x2c002c00;\nmov.b32 n, 0xd480d480;\n",
    "bf16": "mov.b32 k, 0x7f007f00;\nmov.b32 o, 0xbe00be00;\nmov.b32 m, 0x7d007d00;\n",
}


def _four_bit(dtype: str) -> str:
    """Four words of each of two rows ($4, $8) by the activations of their four quarters ($12, $16, $20, $24).

    $0 and $1: both rows' sums of the lower two quarters; $2 and $3: of the upper two.
    """
    text = "{\n.reg .b32 a<4>, b<4>, c<4>, d<4>, s, k, o, m, n;\n.reg .f32 e<4>, u<4>;\n.reg .pred p;\n"
    text += _NIBBLE_CONSTANTS[dtype]
    started = {"e": False, "u": False}
    for word in (0, 2):
        for place, name in ((4, "a"), (8, "b"), (5, "c"), (9, "d")):
            text += _NIBBLES[dtype].format(w=f"${place + word}", q=name)
        for quarter in range(4):
            total = "e" if quarter < 2 else "u"
            sums = ", ".join(f"{total}{i}" for i in range(4))
            before = sums if started[total] else ", ".join(["0f00000000"] * 4)
            started[total] = True
            left = f"a{quarter}, b{quarter}, c{quarter}, d{quarter}"
            right = f"${12 + 4 * quarter + word}, ${13 + 4 * quarter + word}"
            text += _MMA.format(t=dtype, d=sums, a=left, b=right, c=before)
    text += "mov.u32 s, %laneid;\nand.b32 s, s, 4;\nsetp.ne.u32 p, s, 0;\n"  # the diagonal's column is odd
    text += "selp.f32 $0, e1, e0, p;\nselp.f32 $1, e3, e2, p;\nselp.f32 $2, u1, u0, p;\nselp.f32 $3, u3, u2, p;\n"
    return text + "}"


def _sixteen_bit(dtype: str) -> str:
    """Four words, eight floats, of each of two rows by as many activations, as ``_eight_bit``."""
    text = "{\n"
    for word in (0, 2):
        left = f"${4 + word}, ${8 + word}, ${5 + word}, ${9 + word}"
        before = "$16, $17, $18, $19" if word == 0 else "$0, $1, $2, $3"
        text += _MMA.format(t=dtype, d="$0, $1, $2, $3", a=left, b=f"${12 + word}, ${13 + word}", c=before)
    return text + "}"


_HARDWARE = tl.constexpr(_eight_bit("hardware"))
_E4M3 = tl.constexpr(_eight_bit("e4m3fn"))
_E5M2 = tl.constexpr(_eight_bit("e5m2"))
_F16 = tl.constexpr(_sixteen_bit("f16"))
_BF16 = tl.constexpr(_sixteen_bit("bf16"))
_ADDED = tl.constexpr("=&f,=&f,=&f,=&f" + ",r" * 12 + ",f" * 4)
_NIBBLES_F16 = tl.constexpr(_four_bit("f16"))
_NIBBLES_BF16 = tl.constexpr(_four_bit("bf16"))
_FOUR_BIT = tl.constexpr("=&f,=&f,=&f,=&f" + ",r" * 24)


@triton.jit
def _add_products(first, second, x, total, ELEMENT: tl.constexpr):
    """``total`` plus what a lane's words of two rows and its activations give, as the matrix unit leaves it."""
    if ELEMENT == "hardware":
        return tl.inline_asm_elementwise(_HARDWARE, _ADDED, [first, second, x, total], tl.float32, True, 4)
    elif ELEMENT == "e4m3fn":
        return tl.inline_asm_elementwise(_E4M3, _ADDED, [first, second, x, total], tl.float32, True, 4)
    elif ELEMENT == "e5m2":
        return tl.inline_asm_elementwise(_E5M2, _ADDED, [first, second, x, total], tl.float32, True, 4)
    elif ELEMENT == "f16":
        return tl.inline_asm_elementwise(_F16, _ADDED, [first, second, x, total], tl.float32, True, 4)
    else:
        tl.static_assert(ELEMENT == "bf16", "an element format")
        return tl.inline_asm_elementwise(_BF16, _ADDED, [first, second, x, total], tl.float32, True, 4)


@triton.jit
def _field(words, place: tl.constexpr, ELEMENT: tl.constexpr):
    """A float of each word: of four codes, or of two 16-bit floats."""
    if ELEMENT == "f16":
        return (words >> (16 * place)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    elif ELEMENT == "bf16":
        return ((words >> (16 * place)) << 16).to(tl.float32, bitcast=True)
    elif ELEMENT == "hardware":
        return to_f16(((words >> (8 * place)) & 255).to(tl.uint8), "e4m3fn", False).to(tl.float32) * 256.0
    else:
        return to_f16(((words >> (8 * place)) & 255).to(tl.uint8), ELEMENT, False).to(tl.float32)


@triton.jit
def _plain_products(words, x, ELEMENT: tl.constexpr):
    """Products of the floats of each word, added up, in plain Triton."""
    FIELDS: tl.constexpr = 2 if ELEMENT == "f16" or ELEMENT == "bf16" else 4
    total = tl.zeros(words.shape, tl.float32)
    for place in tl.static_range(FIELDS):
        total += _field(words, place, ELEMENT) * _field(x, place, ELEMENT)
    return total


@triton.jit
def _write(y, sums, n, N, token_scale, scale, bias, gain, HAS_TOKEN_SCALE: tl.constexpr, HAS_SCALE: tl.constexpr,
           HAS_BIAS: tl.constexpr):  # fmt: skip
    """Scales, bias and the store of the results of rows ``n``."""
    inside = n < N
    if HAS_SCALE:
        sums = sums * tl.load(scale + n, mask=inside, other=0.0)
    sums = sums * gain
    if HAS_TOKEN_SCALE:
        sums = sums * tl.load(token_scale)
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + n, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _words(rows, k, K, EVEN_K: tl.constexpr):
    """Words ``k`` of some rows; zeros past the end."""
    if EVEN_K:
        return tl.load(rows + k[None, :])
    else:
        return tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0)


@triton.jit
def _step(total, other, a, b, values, ELEMENT: tl.constexpr, ASM: tl.constexpr):
    """The sums after one more step: of both rows of a pair in ``total`` where the matrix unit adds them up."""
    values = tl.broadcast_to(values[None, :], a.shape)
    if ASM:
        return _add_products(a, b, values, total, ELEMENT), other
    else:
        return total + _plain_products(a, values, ELEMENT), other + _plain_products(b, values, ELEMENT)


@triton.jit
def _row_sums(total, other, column, ASM: tl.constexpr, NIBBLES: tl.constexpr):
    """Sums of both rows of each pair, ``[pairs, 2]``."""
    if ASM:
        lane = column // 4 % 32
        own = lane % 4 == lane // 8  # the lane that has the diagonal's element of its row
        if not NIBBLES:
            own = own & (column % 2 == lane // 4 % 2)
        four = tl.reshape(tl.where(own[None, :], total, 0.0), (total.shape[0], total.shape[1] // 4, 2, 2))
        return tl.sum(tl.sum(four, axis=2 if NIBBLES else 3), axis=1)
    else:
        return tl.join(tl.sum(total, axis=1), tl.sum(other, axis=1))


@triton.jit
def linear_lanes(
    x, w, token_scale, scale, bias, y, N, K, gain,
    ELEMENT: tl.constexpr, HAS_TOKEN_SCALE: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, AHEAD: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Scales shared by rows (or none). Grid: (ceil(N / BLOCK_N), 1).

    Args:
        x: ``[1, K]`` int32 words: four codes, or two floats of 16 bits.
        w: ``[N, K]`` likewise; K is a multiple of 4.
        token_scale: ``[1]`` float32, of rounded activations.
        scale: ``[N]`` float32.
        bias: ``[N]``.
        y: ``[1, N]``.
        K: words of a row.
        gain: what the decoders of both operands left to be multiplied.
        ELEMENT: "hardware" (e4m3fn by the conversion of sm_89), "e4m3fn", "e5m2", "f16" or "bf16".
        OVERLAP: start while the kernel before this one still runs.
        AHEAD: read weights a step before they are used, and those of the first step before the wait.
        BLOCK_N: rows of a program, even.
        BLOCK_K: words of a step: 128 for each warp.
        UNROLL: steps in the body of the loop.
    """
    PAIRS: tl.constexpr = BLOCK_N // 2
    n = tl.program_id(0) * BLOCK_N + 2 * tl.arange(0, PAIRS)
    first = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K  # rows past the end repeat the last one
    second = w + tl.minimum(n + 1, N - 1).to(tl.int64)[:, None] * K
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    other = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    if AHEAD:
        a, b = _words(first, column, K, EVEN_K), _words(second, column, K, EVEN_K)
        if OVERLAP:
            wait()
        for begin in tl.range(0, K - BLOCK_K, BLOCK_K, loop_unroll_factor=UNROLL):
            k = begin + column
            values = tl.load(x + k)
            next_a, next_b = _words(first, k + BLOCK_K, K, EVEN_K), _words(second, k + BLOCK_K, K, EVEN_K)
            total, other = _step(total, other, a, b, values, ELEMENT, ASM)
            a, b = next_a, next_b
        k = (tl.cdiv(K, BLOCK_K) - 1) * BLOCK_K + column
        values = tl.load(x + k) if EVEN_K else tl.load(x + k, mask=k < K, other=0)
        total, other = _step(total, other, a, b, values, ELEMENT, ASM)
    else:
        if OVERLAP:
            prefetch(first, 0, K, 2)
            prefetch(second, 0, K, 2)
            wait()
        for begin in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
            k = begin + column
            values = tl.load(x + k) if EVEN_K else tl.load(x + k, mask=k < K, other=0)
            a, b = _words(first, k, K, EVEN_K), _words(second, k, K, EVEN_K)
            total, other = _step(total, other, a, b, values, ELEMENT, ASM)
    rows = n[:, None] + tl.arange(0, 2)[None, :]
    sums = _row_sums(total, other, column, ASM, False)
    _write(y, sums, rows, N, token_scale, scale, bias, gain, HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS)


@triton.jit
def _nibble_sums(words, x0, x1, x2, x3, DTYPE: tl.constexpr):
    """Sums of the lower and of the upper two quarters of each word's codes by activations, in plain Triton."""
    FLOAT: tl.constexpr = tl.float16 if DTYPE == "f16" else tl.bfloat16
    low = tl.zeros(words.shape, tl.float32)
    high = tl.zeros(words.shape, tl.float32)
    eight = tl.full(words.shape, 8.0, tl.float32)
    for half in tl.static_range(2):
        w0, w1, w2, w3 = nibbles((words >> (16 * half)).to(tl.int16), eight, FLOAT, False)
        low += w0.to(tl.float32) * _field(x0, half, DTYPE) + w1.to(tl.float32) * _field(x1, half, DTYPE)
        high += w2.to(tl.float32) * _field(x2, half, DTYPE) + w3.to(tl.float32) * _field(x3, half, DTYPE)
    return low, high


@triton.jit
def _plain_nibble_step(
    total, other, a, b, x0, x1, x2, x3, scale, code, rows_a, rows_b, N, GROUP: tl.constexpr, UNIT: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Both rows' sums after one more step, of which ``code`` is the first code of each word's unit."""
    lower, upper = (code // GROUP * N)[None, :], ((code + UNIT // 2) // GROUP * N)[None, :]
    low, high = _nibble_sums(a, x0, x1, x2, x3, DTYPE)
    total += low * tl.load(scale + lower + rows_a).to(tl.float32)
    total += high * tl.load(scale + upper + rows_a).to(tl.float32)
    low, high = _nibble_sums(b, x0, x1, x2, x3, DTYPE)
    other += low * tl.load(scale + lower + rows_b).to(tl.float32)
    other += high * tl.load(scale + upper + rows_b).to(tl.float32)
    return total, other


@triton.jit
def _lane_scales(
    scale, begin, column, n, N, K, GROUP: tl.constexpr, UNIT: tl.constexpr, ASM: tl.constexpr, EVEN_K: tl.constexpr
):
    """Scales of a lane's four sums of a step: of both rows' lower quarters, and of the upper ones."""
    group = (column // (UNIT // 8) * UNIT + column // 2 % 2 * (UNIT // 2)) // GROUP
    row = n[:, None] + (column % 2)[None, :]
    place = scale + (begin * 8 // GROUP * N + group[None, :] * N + row)
    if not ASM:
        return tl.zeros(place.shape, scale.dtype.element_ty)  # read where they are used
    elif EVEN_K:
        return tl.load(place, mask=row < N, other=0.0)
    else:
        return tl.load(place, mask=(row < N) & (begin + column < K)[None, :], other=0.0)


@triton.jit
def _nibble_step(
    total, other, a, b, scales, x, scale, begin, column, rows_a, rows_b, N, K, GROUP: tl.constexpr,
    UNIT: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """The sums after the step of the words from ``begin`` on."""
    QUARTER: tl.constexpr = UNIT // 8  # words of a unit, and words of a quarter of its activations
    tokens = x + (column + column // QUARTER * (3 * QUARTER)) + begin * 4
    mask = None if EVEN_K else begin + column < K
    zero = None if EVEN_K else 0
    x0 = tl.broadcast_to(tl.load(tokens, mask=mask, other=zero)[None, :], a.shape)
    x1 = tl.broadcast_to(tl.load(tokens + QUARTER, mask=mask, other=zero)[None, :], a.shape)
    x2 = tl.broadcast_to(tl.load(tokens + 2 * QUARTER, mask=mask, other=zero)[None, :], a.shape)
    x3 = tl.broadcast_to(tl.load(tokens + 3 * QUARTER, mask=mask, other=zero)[None, :], a.shape)
    if ASM:
        sums = tl.inline_asm_elementwise(
            _NIBBLES_F16 if DTYPE == "f16" else _NIBBLES_BF16, _FOUR_BIT, [a, b, x0, x1, x2, x3], tl.float32, True, 4
        )
        return total + sums * scales.to(tl.float32), other
    else:
        code = tl.minimum(begin + column, K - 1) // QUARTER * UNIT
        return _plain_nibble_step(
            total, other, a, b, x0, x1, x2, x3, scale, code, rows_a, rows_b, N, GROUP, UNIT, DTYPE
        )  # fmt: skip


@triton.jit
def linear_lanes_nibbles(
    x, w, scale, bias, y, N, K,
    GROUP: tl.constexpr, UNIT: tl.constexpr, DTYPE: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr,
    ASM: tl.constexpr, OVERLAP: tl.constexpr, AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """4-bit codes in groups along K, symmetric. Grid: (ceil(N / BLOCK_N), 1).

    Args:
        x: ``[1, 4 K]`` int32 words of two float16 or bfloat16 activations.
        w: ``[N, K]`` int32 words: two neighbouring words of ``linear_matrix_nibbles``, in units of ``UNIT`` codes.
        scale: ``[8 K / GROUP, N]`` float32, bfloat16 or float16.
        bias: ``[N]``.
        y: ``[1, N]``.
        K: words of a row, of eight codes each; whole units.
        GROUP: weights along K that share a scale: a multiple of half a unit that divides a step.
        DTYPE: of the activations: "f16" or "bf16".
        OVERLAP, AHEAD, BLOCK_N, BLOCK_K, UNROLL: as ``linear_lanes``.
    """
    tl.static_assert(GROUP % (UNIT // 2) == 0, "the sums of two quarters have one scale")
    tl.static_assert(8 * BLOCK_K % GROUP == 0, "a step begins with a group")
    PAIRS: tl.constexpr = BLOCK_N // 2
    n = tl.program_id(0) * BLOCK_N + 2 * tl.arange(0, PAIRS)
    rows_a, rows_b = tl.minimum(n, N - 1)[:, None], tl.minimum(n + 1, N - 1)[:, None]
    first, second = w + rows_a.to(tl.int64) * K, w + rows_b.to(tl.int64) * K
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    other = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    if AHEAD:
        a, b = _words(first, column, K, EVEN_K), _words(second, column, K, EVEN_K)
        scales = _lane_scales(scale, 0, column, n, N, K, GROUP, UNIT, ASM, EVEN_K)
        if OVERLAP:
            wait()
        for begin in tl.range(0, K - BLOCK_K, BLOCK_K, loop_unroll_factor=UNROLL):
            then = begin + BLOCK_K
            next_a, next_b = _words(first, then + column, K, EVEN_K), _words(second, then + column, K, EVEN_K)
            next_scales = _lane_scales(scale, then, column, n, N, K, GROUP, UNIT, ASM, EVEN_K)
            total, other = _nibble_step(
                total, other, a, b, scales, x, scale, begin, column, rows_a, rows_b, N, K, GROUP, UNIT, DTYPE, ASM, True
            )  # fmt: skip
            a, b, scales = next_a, next_b, next_scales
        begin = (tl.cdiv(K, BLOCK_K) - 1) * BLOCK_K
        total, other = _nibble_step(
            total, other, a, b, scales, x, scale, begin, column, rows_a, rows_b, N, K, GROUP, UNIT, DTYPE, ASM, EVEN_K
        )  # fmt: skip
    else:
        if OVERLAP:
            prefetch(first, 0, K, 2)
            prefetch(second, 0, K, 2)
            wait()
        for begin in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
            a, b = _words(first, begin + column, K, EVEN_K), _words(second, begin + column, K, EVEN_K)
            scales = _lane_scales(scale, begin, column, n, N, K, GROUP, UNIT, ASM, EVEN_K)
            total, other = _nibble_step(
                total, other, a, b, scales, x, scale, begin, column, rows_a, rows_b, N, K, GROUP, UNIT, DTYPE, ASM,
                EVEN_K,
            )  # fmt: skip
    rows = n[:, None] + tl.arange(0, 2)[None, :]
    gain = 64.0 if ASM and DTYPE == "bf16" else 1.0
    _write(y, _row_sums(total, other, column, ASM, True), rows, N, scale, scale, bias, gain, False, False, HAS_BIAS)
