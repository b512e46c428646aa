"""``y = x W^T`` for one token on NVIDIA's matrix units, each lane with the weights it has read itself.

A row of weights is read as by ``linear_vector``: every lane 16 neighbouring bytes, a warp 512. Such a lane then gives
``mma.m16n8k16`` its own weights as a piece of the left operand and its own activations as a piece of the right one
(``lanes_assembly.py`` says how). That is a dot product in float32 of eight weights a lane for one instruction, with no
shared memory, no shuffles and no other order of the weights in memory.

``ASM`` off: the same sums in plain Triton, for the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton import lanes_assembly as assembly
from isobit.kernels.gpu.triton.experts import expert_of
from isobit.kernels.gpu.triton.lanes import epilogue, field, results_of, row_sums, words_at
from isobit.kernels.gpu.triton.pdl import wait

_ADDED, _ADDED_FLOATS = assembly.ADDED, assembly.ADDED_FLOATS
_HARDWARE, _E4M3, _E5M2 = assembly.HARDWARE, assembly.E4M3, assembly.E5M2
_F16, _BF16 = assembly.F16, assembly.BF16
_HARDWARE_F16, _E4M3_F16, _INT8_F16 = assembly.HARDWARE_F16, assembly.E4M3_F16, assembly.INT8_F16
_E4M3_BF16, _INT8_BF16 = assembly.E4M3_BF16, assembly.INT8_BF16


@triton.jit
def _add_products(first, second, x, total, ELEMENT: tl.constexpr):
    """``total`` plus what a lane's words of two rows and its activations of the same format give."""
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
def _add_products_by_floats(first, second, low, high, total, ELEMENT: tl.constexpr, X: tl.constexpr):
    """The same for codes by floats: of a lane's eight words of those the first four (low) and the last (high)."""
    arguments = [first, second, low, high, total]
    if X == "bf16":
        if ELEMENT == "int8":
            return tl.inline_asm_elementwise(_INT8_BF16, _ADDED_FLOATS, arguments, tl.float32, True, 4)
        else:
            tl.static_assert(ELEMENT == "e4m3fn", "an element format with a decoder to bfloat16")
            return tl.inline_asm_elementwise(_E4M3_BF16, _ADDED_FLOATS, arguments, tl.float32, True, 4)
    elif ELEMENT == "hardware":
        return tl.inline_asm_elementwise(_HARDWARE_F16, _ADDED_FLOATS, arguments, tl.float32, True, 4)
    elif ELEMENT == "e4m3fn":
        return tl.inline_asm_elementwise(_E4M3_F16, _ADDED_FLOATS, arguments, tl.float32, True, 4)
    else:
        tl.static_assert(ELEMENT == "int8", "an element format")
        return tl.inline_asm_elementwise(_INT8_F16, _ADDED_FLOATS, arguments, tl.float32, True, 4)


@triton.jit
def _activations(x, begin, column, K, WIDE: tl.constexpr, ASM: tl.constexpr, EVEN_K: tl.constexpr):
    """Activations beside words of codes: a word each, given twice, or, WIDE, two of floats.

    The assembly takes the first four of a lane's eight words of floats and then the last four; plain Triton takes the
    first and the second word beside each word of codes.
    """
    mask = None if EVEN_K else begin + column < K
    zero = None if EVEN_K else 0
    if not WIDE:
        values = tl.load(x + (begin + column), mask=mask, other=zero)
        return values, values
    elif ASM:
        place = x + (column + column // 4 * 4) + begin * 2
        return tl.load(place, mask=mask, other=zero), tl.load(place + 4, mask=mask, other=zero)
    else:
        place = x + (begin + column) * 2
        return tl.load(place, mask=mask, other=zero), tl.load(place + 1, mask=mask, other=zero)


@triton.jit
def _plain_products(words, low, high, ELEMENT: tl.constexpr, X: tl.constexpr):
    """Products of the numbers of each word, added up, in plain Triton."""
    total = tl.zeros(words.shape, tl.float32)
    if X != "":
        KIND: tl.constexpr = "hardware" if ELEMENT == "e4m3fn" and X == "bf16" else ELEMENT
        for place in tl.static_range(2):
            total += field(words, place, KIND) * field(low, place, X)
            total += field(words, 2 + place, KIND) * field(high, place, X)
    else:
        FIELDS: tl.constexpr = 2 if ELEMENT == "f16" or ELEMENT == "bf16" else 4
        for place in tl.static_range(FIELDS):
            total += field(words, place, ELEMENT) * field(low, place, ELEMENT)
    return total


@triton.jit
def _step(total, other, a, b, low, high, ELEMENT: tl.constexpr, X: tl.constexpr, ASM: tl.constexpr):
    """The sums after one more step: of both rows of a pair in ``total`` where the matrix unit adds them up."""
    low, high = tl.broadcast_to(low[None, :], a.shape), tl.broadcast_to(high[None, :], a.shape)
    if not ASM:
        return total + _plain_products(a, low, high, ELEMENT, X), other + _plain_products(b, low, high, ELEMENT, X)
    elif X == "":
        return _add_products(a, b, low, total, ELEMENT), other
    else:
        return _add_products_by_floats(a, b, low, high, total, ELEMENT, X), other


@triton.jit
def linear_lanes(
    x, w, token_scale, scale, bias, residual, y, experts, N, K, gain,
    ELEMENT: tl.constexpr, X: tl.constexpr, HAS_TOKEN_SCALE: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, UNROLL: tl.constexpr, AFTER: tl.constexpr, EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Scales shared by rows (or none). Grid: (ceil(N / BLOCK_N), 1), or (.., pairs).

    Weights are read a step before they are used, and those of the first step before the kernel in front has ended.

    Args:
        x: ``[1, K]`` int32 words of the weights' format, or (X) ``[1, 2 K]`` of two floats.
        w: ``[N, K]`` int32 words: four codes, or two floats of 16 bits; K is a multiple of 4.
        token_scale: ``[1]`` float32, of rounded activations.
        scale: ``[N]`` float32.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, EXPERTS, SHARE: see ``experts.py``.
        K: words of a row.
        gain: what the decoders of both operands left to be multiplied.
        ELEMENT: "hardware" (e4m3fn by the conversion of sm_89), "e4m3fn", "e5m2", "int8" (with X), "f16" or "bf16".
        X: dtype of activations that are not of the weights' format, "f16" or "bf16", else "".
        OVERLAP: start while the kernel before this one still runs.
        BLOCK_N: rows of a program, even.
        BLOCK_K: words of a step: 128 for each warp.
        UNROLL: steps in the body of the loop.
    """
    PAIRS: tl.constexpr = BLOCK_N // 2
    WIDE: tl.constexpr = X != ""
    if EXPERTS > 0:
        pair = tl.program_id(1)
        expert = expert_of(experts, pair, OVERLAP)
        w, scale, bias = w + expert * N * K, scale + expert * N, bias + expert * N
        x, token_scale = x + pair // SHARE * (K * (2 if WIDE else 1)), token_scale + pair // SHARE
        y += pair * results_of(N, AFTER)
    n = tl.program_id(0) * BLOCK_N + 2 * tl.arange(0, PAIRS)
    first = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K  # rows past the end repeat the last one
    second = w + tl.minimum(n + 1, N - 1).to(tl.int64)[:, None] * K
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    other = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    a, b = words_at(first, column, K, EVEN_K), words_at(second, column, K, EVEN_K)
    if OVERLAP:
        wait()
    for begin in tl.range(0, K - BLOCK_K, BLOCK_K, loop_unroll_factor=UNROLL):
        low, high = _activations(x, begin, column, K, WIDE, ASM, True)
        then = begin + BLOCK_K + column
        next_a, next_b = words_at(first, then, K, EVEN_K), words_at(second, then, K, EVEN_K)
        total, other = _step(total, other, a, b, low, high, ELEMENT, X, ASM)
        a, b = next_a, next_b
    low, high = _activations(x, (tl.cdiv(K, BLOCK_K) - 1) * BLOCK_K, column, K, WIDE, ASM, EVEN_K)
    total, other = _step(total, other, a, b, low, high, ELEMENT, X, ASM)
    rows = n[:, None] + tl.arange(0, 2)[None, :]
    if ASM and ELEMENT == "int8" and X == "bf16":
        gain = gain * 64.0
    sums = row_sums(total, other, column, ASM, False)
    epilogue(y, residual, sums, rows, N, token_scale, scale, bias, gain, HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS, AFTER)


@triton.jit
def _factors(token_scale, scales, begin, column, K, GROUP: tl.constexpr, EVEN_K: tl.constexpr):
    """Products of the scales of a step's words and of the activations beside them."""
    group = begin // (GROUP // 4) + column // (GROUP // 4)
    mask = None if EVEN_K else begin + column < K
    zero = None if EVEN_K else 0.0
    return tl.load(token_scale + group, mask=mask, other=zero) * tl.load(scales + group, mask=mask, other=zero)


@triton.jit
def _block_step(total, other, a, b, x, factors, begin, column, K, ELEMENT: tl.constexpr, ASM: tl.constexpr,
                EVEN_K: tl.constexpr):  # fmt: skip
    """The sums after one more step whose own sums are scaled before they are added."""
    low, high = _activations(x, begin, column, K, False, ASM, EVEN_K)
    none = tl.zeros(total.shape, tl.float32)
    sums, others = _step(none, none, a, b, low, high, ELEMENT, "", ASM)
    return total + sums * factors[None, :], other + others * factors[None, :]


@triton.jit
def linear_lanes_block(
    x, w, token_scale, scale, bias, residual, y, experts, N, K, gain,
    ELEMENT: tl.constexpr, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr, AFTER: tl.constexpr,
    EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Scales of blocks: the sums of every step are scaled. Grid: as ``linear_lanes``.

    Args:
        x, w, bias, residual, y, K, gain, AFTER, OVERLAP, BLOCK_K, UNROLL, experts, EXPERTS, SHARE: as
            ``linear_lanes``, for codes.
        token_scale: ``[1, 4 K / GROUP]`` float32.
        scale: ``[ceil(N / GROUP), 4 K / GROUP]`` float32.
        ELEMENT: "hardware" or "e4m3fn".
        GROUP: rows and columns of a block, and activations that share a scale: a multiple of 64, the codes of four
            lanes, which 4 BLOCK_K is a multiple of.
        BLOCK_N: even, divides GROUP.
    """
    tl.static_assert(GROUP % BLOCK_N == 0, "the rows of a program lie in one row of blocks")
    tl.static_assert(GROUP % 64 == 0 and 4 * BLOCK_K % GROUP == 0, "four lanes have one scale, a step whole blocks")
    PAIRS: tl.constexpr = BLOCK_N // 2
    if EXPERTS > 0:
        pair = tl.program_id(1)
        expert = expert_of(experts, pair, OVERLAP)
        high = tl.cdiv(N, GROUP)  # blocks of an expert, which begins with a row of them
        w, bias = w + expert * (high * GROUP) * K, bias + expert * N
        scale += expert * (high * (K // (GROUP // 4)))
        x, token_scale = x + pair // SHARE * K, token_scale + pair // SHARE * (K // (GROUP // 4))
        y += pair * results_of(N, AFTER)
    n = tl.program_id(0) * BLOCK_N + 2 * tl.arange(0, PAIRS)
    first = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    second = w + tl.minimum(n + 1, N - 1).to(tl.int64)[:, None] * K
    scales = scale + (tl.program_id(0) * BLOCK_N // GROUP) * (K // (GROUP // 4))
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    other = tl.zeros((PAIRS, BLOCK_K), tl.float32)
    a, b = words_at(first, column, K, EVEN_K), words_at(second, column, K, EVEN_K)
    if OVERLAP:
        wait()
    factors = _factors(token_scale, scales, 0, column, K, GROUP, EVEN_K)
    for begin in tl.range(0, K - BLOCK_K, BLOCK_K, loop_unroll_factor=UNROLL):
        then = begin + BLOCK_K
        next_a, next_b = words_at(first, then + column, K, EVEN_K), words_at(second, then + column, K, EVEN_K)
        next_factors = _factors(token_scale, scales, then, column, K, GROUP, EVEN_K)
        total, other = _block_step(total, other, a, b, x, factors, begin, column, K, ELEMENT, ASM, True)
        a, b, factors = next_a, next_b, next_factors
    begin = (tl.cdiv(K, BLOCK_K) - 1) * BLOCK_K
    total, other = _block_step(total, other, a, b, x, factors, begin, column, K, ELEMENT, ASM, EVEN_K)
    rows = n[:, None] + tl.arange(0, 2)[None, :]
    sums = row_sums(total, other, column, ASM, False)
    epilogue(y, residual, sums, rows, N, token_scale, scale, bias, gain, False, False, HAS_BIAS, AFTER)
