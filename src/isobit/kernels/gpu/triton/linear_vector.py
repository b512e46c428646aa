"""``y = x W^T`` one token at a time, without matrix units: products and sums in float32 (int8 by int8: in int32).

A program owns ``BLOCK_N`` output rows and walks along K; each thread keeps its own partial sums, which meet once at the
end, in an order that depends on the shape alone. Runs on every target, with any K and N.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.after import store_rows
from isobit.kernels.gpu.triton.decode import dp4a, stream, to_f16
from isobit.kernels.gpu.triton.experts import expert_of
from isobit.kernels.gpu.triton.pdl import prefetch, wait


@triton.jit
def _codes_to_f32(codes, ELEMENT: tl.constexpr, ASM: tl.constexpr):
    """Weights or codes as float32, less the decoder's gain."""
    if ELEMENT == "float" or ELEMENT == "hardware":
        return codes.to(tl.float32)
    else:
        return to_f16(codes, ELEMENT, ASM).to(tl.float32)


@triton.jit
def _epilogue(y, residual, total, m, of, n, N, token_scale, scale, bias, gain, HAS_TOKEN_SCALE: tl.constexpr,
              HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, AFTER: tl.constexpr):  # fmt: skip
    """The epilogue: scales, bias, and what ``store_rows`` does with ``BLOCK_N`` results ``m`` of token ``of``."""
    inside = n < N
    total = total.to(tl.float32)
    if HAS_SCALE:
        total = total * tl.load(scale + n, mask=inside, other=0.0) * gain
    if HAS_TOKEN_SCALE:
        total = total * tl.load(token_scale + of)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    if AFTER == "" or AFTER == "add":
        store_rows(y, residual, total, n, N, m.to(tl.int64), AFTER)
    else:
        PAIRS: tl.constexpr = n.shape[0] // 2
        store_rows(y, residual, tl.reshape(total, (PAIRS, 2)), tl.reshape(n, (PAIRS, 2)), N, m.to(tl.int64), AFTER)


@triton.jit
def linear_vector(
    x, w, token_scale, scale, bias, residual, y, experts, N, K, gain,
    ELEMENT: tl.constexpr, HAS_TOKEN_SCALE: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr, AFTER: tl.constexpr,
    EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Scales shared by rows (or none). Grid: (ceil(N / BLOCK_N), M).

    Args:
        x: ``[M, K]`` float16, bfloat16 or float32: activations, or their code values.
        w: ``[N, K]``: floats for ELEMENT "float"; float8 for "hardware"; else codes, uint8 or int8.
        token_scale: ``[M]`` float32, of rounded activations.
        scale: ``[N]`` float32.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, EXPERTS, SHARE: see ``experts.py``.
        gain: what the decoder left to be multiplied.
    """
    m = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    of = m
    if EXPERTS > 0:
        of = m // SHARE
        expert = expert_of(experts, m, OVERLAP > 0)
        w, scale, bias = w + expert * N * K, scale + expert * N, bias + expert * N
    rows = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K  # rows past the end repeat the last one
    column = tl.arange(0, BLOCK_K)
    token = x + of.to(tl.int64) * K
    if OVERLAP:
        prefetch(rows, 0, K, OVERLAP)
        wait()
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
        k = begin + column
        if EVEN_K:
            codes = tl.load(rows + k[None, :])
            values = tl.load(token + k)
        else:
            codes = tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0)
            values = tl.load(token + k, mask=k < K, other=0.0)
        total += _codes_to_f32(codes, ELEMENT, ASM) * values.to(tl.float32)[None, :]
    sums = tl.sum(total, axis=1)
    _epilogue(
        y, residual, sums, m, of, n, N, token_scale, scale, bias, gain, HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS, AFTER
    )


@triton.jit
def linear_vector_int8(
    x, w, token_scale, scale, bias, residual, y, experts, N, K,
    HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr, AFTER: tl.constexpr,
    EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """int8 by int8, exact in int32, four products an instruction. Grid: (ceil(N / BLOCK_N), M).

    Args:
        x: ``[M, K]`` int8 codes as int32 words, four codes each.
        w: ``[N, K]`` likewise.
        token_scale: ``[M]`` float32.
        scale: ``[N]`` float32.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, EXPERTS, SHARE: see ``experts.py``.
        K: words of a row.
    """
    m = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    of = m
    if EXPERTS > 0:
        of = m // SHARE
        expert = expert_of(experts, m, OVERLAP > 0)
        w, scale, bias = w + expert * N * K, scale + expert * N, bias + expert * N
    rows = w + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    column = tl.arange(0, BLOCK_K)
    token = x + of.to(tl.int64) * K
    if OVERLAP:
        prefetch(rows, 0, K, OVERLAP)
        wait()
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    for begin in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
        k = begin + column
        if EVEN_K:
            words = tl.load(rows + k[None, :])
            values = tl.load(token + k)
        else:
            words = tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0)
            values = tl.load(token + k, mask=k < K, other=0)
        total = dp4a(words, tl.broadcast_to(values[None, :], (BLOCK_N, BLOCK_K)), total, ASM)
    sums = tl.sum(total, axis=1)
    _epilogue(y, residual, sums, m, of, n, N, token_scale, scale, bias, 1.0, True, True, HAS_BIAS, AFTER)


@triton.jit
def linear_vector_stream(
    x, w, scale, zero, bias, residual, y, experts, N, K, stride_w, stride_scale,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, AFTER: tl.constexpr,
    EXPERTS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    """Packed integers of any width as they are stored, any group size. Grid: (ceil(N / BLOCK_N), M).

    Args:
        x: ``[M, K]`` float16, bfloat16 or float32.
        w: ``[N, stride_w]`` int32 words of ``BITS``-bit codes (formats/pack.py), offset binary where signed.
        scale: ``[N, stride_scale]`` float32, bfloat16 or float16, one per group.
        zero: ``[N, stride_scale]`` uint8 zero points, if HAS_ZERO; else the code of 0.0 is half of the range.
        bias: ``[N]``.
        residual, y, AFTER: see ``store_rows``.
        experts, EXPERTS, SHARE: see ``experts.py``.
        GROUP: weights along K that share a scale.
    """
    m = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(n, N - 1).to(tl.int64)[:, None]
    of = m
    if EXPERTS > 0:
        of = m // SHARE
        expert = expert_of(experts, m, False)
        row, bias = row + expert * N, bias + expert * N
    column = tl.arange(0, BLOCK_K)
    token = x + of.to(tl.int64) * K
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + column
        values = tl.load(token + k, mask=k < K, other=0.0).to(tl.float32)
        k = tl.minimum(k, K - 1)[None, :]
        codes = stream(w, row * stride_w, k, BITS)
        of_group = row * stride_scale + k // GROUP
        if HAS_ZERO:
            codes -= tl.load(zero + of_group).to(tl.int32)
        else:
            codes -= 1 << (BITS - 1)
        weights = codes.to(tl.float32) * tl.load(scale + of_group).to(tl.float32)
        total += weights * values[None, :]
    sums = tl.sum(total, axis=1)
    _epilogue(y, residual, sums, m, of, n, N, scale, scale, bias, 1.0, False, False, HAS_BIAS, AFTER)
