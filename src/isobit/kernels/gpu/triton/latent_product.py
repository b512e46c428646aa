"""Heads' values by the heads' own matrices: to the latents in front of latent attention, and back behind it."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.pdl import let_next_start, prefetch, wait_for_last


@triton.jit
def _heads_matrix(
    w, k, n, K: tl.constexpr, N: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """A tile ``[BLOCK_K, BLOCK_N]`` of a head's matrix, which lies ``[K, N]``, or ``[N, K]`` if ROWS."""
    if ROWS:
        place = w + n[:, None] * STRIDE + k[None, :]
        tile = tl.load(place) if EVEN else tl.load(place, mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
        return tl.trans(tile)
    else:
        place = w + k[:, None] * STRIDE + n[None, :]
        return tl.load(place) if EVEN else tl.load(place, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)


@triton.jit
def latent_product(
    x, w, y, tokens, stride_t, stride_h, stride_w,
    HEADS: tl.constexpr, K: tl.constexpr, N: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, LINES: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Each head's values by the head's own matrix. Grid: (ceil(N / BLOCK_N), HEADS, ceil(tokens / BLOCK_M)).

    Args:
        x: ``[tokens, HEADS, K]``, with ``stride_t`` and ``stride_h`` elements from one to the next.
        w: ``[HEADS, ...]``, ``stride_w`` elements from head to head: ``[K, N]`` with STRIDE elements from row to row,
            or ``[N, K]`` if ROWS.
        y: ``[tokens, HEADS, N]``.
        EVEN: K and N are multiples of BLOCK_K and BLOCK_N.
        LINES: cache lines of a tile's row of w, which are asked for ahead.
    """
    head = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    w += head.to(tl.int64) * stride_w
    if OVERLAP:
        let_next_start()
        if EVEN:
            if ROWS:
                prefetch(w + (n * STRIDE)[:, None], 0, K, LINES)
            else:
                prefetch(w + (tl.arange(0, BLOCK_K) * STRIDE)[:, None], tl.program_id(0) * BLOCK_N, N, LINES)
        wait_for_last()
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    x += m.to(tl.int64)[:, None] * stride_t + head * stride_h
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        weights = _heads_matrix(w, k, n, K, N, STRIDE, ROWS, EVEN).to(x.dtype.element_ty)
        mask = (m < tokens)[:, None] if EVEN else (m < tokens)[:, None] & (k < K)[None, :]
        values = tl.load(x + k[None, :], mask=mask, other=0.0)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
    place = y + (m.to(tl.int64) * HEADS + head)[:, None] * N + n[None, :]
    tl.store(place, total.to(y.dtype.element_ty), mask=(m < tokens)[:, None] & (n < N)[None, :])
