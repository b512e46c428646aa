"""Small Triton kernels for the tests of the proof: compiled in processes of their own, never run."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, c, M, N, K, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PEAK: tl.constexpr):
    """c = a b, with an int8 accumulator where the operands are int8."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK, BLOCK), tl.int32 if a.dtype.element_ty == tl.int8 else tl.float32)
    for begin in range(0, K, BLOCK_K):
        x = tl.load(a + i[:, None] * K + (begin + k)[None, :])
        y = tl.load(b + j[None, :] * K + (begin + k)[:, None])
        total = tl.dot(x, y, total, out_dtype=total.dtype)
    tl.store(c + i[:, None] * N + j[None, :], total.to(c.dtype.element_ty))


@triton.jit
def double(x, y, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    """y = 2 x, without a loop."""
    i = tl.arange(0, SIZE)
    tl.store(y + i, (tl.load(x + i) * 2).to(DTYPE))
