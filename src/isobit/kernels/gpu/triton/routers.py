"""Routers: the logits of tokens' experts, and on the way the rounding of what goes into those."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.pdl import prefetch, wait
from isobit.kernels.gpu.triton.quantize import round_token


@triton.jit
def _round(
    x, codes, scales, static_scale, token, K, qmax, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, ROUND_K: tl.constexpr,
):  # fmt: skip
    """Rounds a token for the experts."""
    column = tl.arange(0, ROUND_K)
    values = tl.load(x + token.to(tl.int64) * K + column, mask=column < K, other=0.0)
    round_token(
        values, codes, scales, static_scale, token, K, qmax, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS, ROUND_K
    )


@triton.jit
def router_token(
    x, weight, bias, logits, codes, scales, static_scale, K, qmax,
    EXPERTS: tl.constexpr, HAS_BIAS: tl.constexpr, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, ROUND_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Logits of a token and BLOCK_N experts. Grid: (ceil(EXPERTS / BLOCK_N), and one that rounds if ELEMENT; T).

    The first BLOCK_K weights of each expert are read while the kernel in front still runs.

    Args:
        x: ``[T, K]`` of any float.
        weight: ``[EXPERTS, K]`` of any float; bias: float32 ``[EXPERTS]``, if HAS_BIAS.
        logits: float32 ``[T, EXPERTS]``.
        codes, scales, static_scale, qmax, WIDE, STATIC, RECIPROCAL, CONVERTS: as ``quantize_token``, if there is an
            ELEMENT: what ``x`` is rounded to for the experts; ROUND_K is K rounded up to a power of two.
    """
    token = tl.program_id(1)
    if ELEMENT != "":
        if tl.program_id(0) == tl.cdiv(EXPERTS, BLOCK_N):
            if OVERLAP:
                wait()
            _round(x, codes, scales, static_scale, token, K, qmax, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS, ROUND_K)
            return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = weight + tl.minimum(n, EXPERTS - 1)[:, None] * K
    column = tl.arange(0, BLOCK_K)
    first = tl.load(rows + column[None, :], mask=(column < K)[None, :], other=0.0)
    if OVERLAP:
        wait()
    row = x + token.to(tl.int64) * K
    values = tl.load(row + column, mask=column < K, other=0.0).to(tl.float32)
    total = first.to(tl.float32) * values[None, :]
    for begin in range(BLOCK_K, K, BLOCK_K):
        k = begin + column
        values = tl.load(row + k, mask=k < K, other=0.0).to(tl.float32)
        total += tl.load(rows + k[None, :], mask=(k < K)[None, :], other=0.0).to(tl.float32) * values[None, :]
    sums = tl.sum(total, axis=1)
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=n < EXPERTS, other=0.0)
    tl.store(logits + token.to(tl.int64) * EXPERTS + n, sums, mask=n < EXPERTS)


@triton.jit
def router_tiles(
    x, weight, bias, logits, codes, scales, static_scale, M, K, qmax,
    EXPERTS: tl.constexpr, HAS_BIAS: tl.constexpr, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, ROUND_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The same in tiles of tokens, each sum in SPLITS parts, ``logits [SPLITS, M, EXPERTS]``.

    Grid: (ceil(M / BLOCK_M) * ceil(EXPERTS / BLOCK_N) * SPLITS, and M that round if ELEMENT). Weights of the dtype of
    ``x`` are multiplied as they are: such products have no rounding. OVERLAP: lines of each row to ask for before the
    kernel in front has ended.
    """
    tiles_n: tl.constexpr = (EXPERTS + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    if ELEMENT != "":
        behind = program - tl.cdiv(M, BLOCK_M) * (tiles_n * SPLITS)
        if behind >= 0:
            if OVERLAP > 0:
                wait()
            _round(
                x, codes, scales, static_scale, behind, K, qmax, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS, ROUND_K
            )
            return
    split = program % SPLITS
    n = program // SPLITS % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = program // (SPLITS * tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = weight + tl.minimum(n, EXPERTS - 1)[:, None] * K
    tokens = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * K
    column = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS)
    start = split * steps * BLOCK_K
    if OVERLAP > 0:
        prefetch(rows, tl.minimum(start, K - 1), K, OVERLAP)
        wait()
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(start, tl.minimum(K, start + steps * BLOCK_K), BLOCK_K):
        k = (begin + column)[None, :]
        values = tl.load(tokens + k, mask=k < K, other=0.0)
        weights = tl.load(rows + k, mask=k < K, other=0.0)
        if weights.dtype == values.dtype:
            total = tl.dot(values, tl.trans(weights), total, input_precision=PRECISION)
        else:
            total = tl.dot(values.to(tl.float32), tl.trans(weights), total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < tl.where(split == 0, EXPERTS, 0), other=0.0)[None, :]
    place = (split * M + m).to(tl.int64)[:, None] * EXPERTS + n[None, :]
    tl.store(logits + place, total, mask=(m < M)[:, None] & (n < EXPERTS)[None, :])
