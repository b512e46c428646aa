"""What the kernels have in common in which every lane multiplies what it has read itself (``lanes_assembly.py``)."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.after import store_rows
from isobit.kernels.gpu.triton.decode import to_f16


@triton.jit
def words_at(rows, k, K, EVEN_K: tl.constexpr):
    """Words ``k`` of some rows; zeros past the end."""
    if EVEN_K:
        return tl.load(rows + k[None, :])
    else:
        return tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0)


@triton.jit
def field(words, place: tl.constexpr, ELEMENT: tl.constexpr):
    """A float of each word, in plain Triton: of four codes, as the assembly's decoder leaves it, or of two floats."""
    if ELEMENT == "f16":
        return (words >> (16 * place)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    elif ELEMENT == "bf16":
        return ((words >> (16 * place)) << 16).to(tl.float32, bitcast=True)
    elif ELEMENT == "int8":
        return ((words << (24 - 8 * place)) >> 24).to(tl.float32)
    elif ELEMENT == "hardware":
        return to_f16(((words >> (8 * place)) & 255).to(tl.uint8), "e4m3fn", False).to(tl.float32) * 256.0
    else:
        return to_f16(((words >> (8 * place)) & 255).to(tl.uint8), ELEMENT, False).to(tl.float32)


@triton.jit
def row_sums(total, other, column, ASM: tl.constexpr, NIBBLES: tl.constexpr):
    """Sums of both rows of each pair, ``[pairs, 2]``.

    Args:
        total: sums of a lane's part of both rows as the matrix unit leaves them (for nibbles: of the first row, the
            second, the first, the second), or, not ASM, those of the first row.
        other: those of the second row, if not ASM.
    """
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
def results_of(N, AFTER: tl.constexpr):
    """Numbers of a token's result of N rows, int64: half as many behind gates."""
    if AFTER == "" or AFTER == "add" or AFTER == "only-silu" or AFTER == "only-gelu":
        return tl.full((), 1, tl.int64) * N
    elif AFTER == "only-gelu_tanh" or AFTER == "only-relu2":
        return tl.full((), 1, tl.int64) * N
    else:
        return tl.full((), 1, tl.int64) * (N // 2)


@triton.jit
def epilogue(y, residual, sums, n, N, token_scale, scale, bias, gain, HAS_TOKEN_SCALE: tl.constexpr,
             HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, AFTER: tl.constexpr):  # fmt: skip
    """The epilogue: scales, bias, and what ``store_rows`` does with the results of rows ``n``."""
    inside = n < N
    if HAS_SCALE:
        sums = sums * tl.load(scale + n, mask=inside, other=0.0)
    sums = sums * gain
    if HAS_TOKEN_SCALE:
        sums = sums * tl.load(token_scale)
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    store_rows(y, residual, sums, n, N, 0, AFTER)
