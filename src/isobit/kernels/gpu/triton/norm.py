"""Norms, and the rounding of what they give in the same kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.law import (
    as_values_of,
    magnitudes,
    range_of_token,
    scale_of_token,
    store_narrowed,
    store_range,
    store_rounded,
)
from isobit.kernels.gpu.triton.pdl import wait
from isobit.kernels.gpu.triton.quantize import round_token


@triton.jit
def _sum(x, delta, total, place, inside, ADD: tl.constexpr):
    """``x``, or ``x + delta``, which is stored, in the dtype of x."""
    values = tl.load(x + place, mask=inside, other=0.0)
    if ADD:
        other = tl.load(delta + place, mask=inside, other=0.0)
        values = (values.to(tl.float32) + other.to(tl.float32)).to(values.dtype)
        tl.store(total + place, values, mask=inside)
    return values


@triton.jit
def _normed(values, mean, factor, weights, biases, CENTRED: tl.constexpr, HAS_BIAS: tl.constexpr, HALVES: tl.constexpr):
    """The norm of values whose mean and factor are known, rounded to their dtype (``as_values_of``)."""
    wide = values.to(tl.float32)
    if CENTRED:
        wide -= mean
    wide = wide * factor * weights
    if HAS_BIAS:
        wide += biases
    return as_values_of(wide, values.dtype, HALVES)


@triton.jit
def _centred(values, x, delta, total, m, K, ADD: tl.constexpr, ONCE: tl.constexpr, BLOCK_K: tl.constexpr):
    """The mean of a token, of which the first BLOCK_K ``values`` are there, and squares of what is left without it."""
    column = tl.arange(0, BLOCK_K)
    sums = values.to(tl.float32)
    if not ONCE:
        for begin in range(BLOCK_K, K, BLOCK_K):
            sums += _sum(x, delta, total, m * K + begin + column, begin + column < K, ADD).to(tl.float32)
    mean = tl.sum(sums, axis=0) / K
    rest = tl.where(column < K, values.to(tl.float32) - mean, 0.0)
    squares = rest * rest
    if not ONCE:
        tl.debug_barrier()  # the sum is read again
        for begin in range(BLOCK_K, K, BLOCK_K):
            source = total if ADD else x
            more = tl.load(source + m * K + begin + column, mask=begin + column < K, other=0.0).to(tl.float32)
            rest = tl.where(begin + column < K, more - mean, 0.0)
            squares += rest * rest
    return mean, squares


@triton.jit
def norm_token(
    x, delta, weight, bias, total, y, codes, scales, static_scale, K, eps, qmax,
    ADD: tl.constexpr, ELEMENT: tl.constexpr, WIDE: tl.constexpr, STATIC: tl.constexpr, OVERLAP: tl.constexpr,
    ONCE: tl.constexpr, BLOCK_K: tl.constexpr, PARTS: tl.constexpr, LATE: tl.constexpr, CENTRED: tl.constexpr,
    HAS_BIAS: tl.constexpr, RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The norm of ``x``, or of ``x + delta``; rounded (narrowed: "range") if there is an ELEMENT. Grid: (M, PARTS).

    The sum and the norm are values of the dtype of x, whatever follows: a rounded norm is the rounding of a norm.

    Args:
        x, delta: ``[M, K]``; delta if ADD.
        weight: float32 ``[K]``; bias: likewise, if HAS_BIAS.
        total: ``[M, K]``: the sum, if ADD.
        y: ``[M, K]``: the norm, if there is no ELEMENT.
        codes, scales, static_scale, qmax, WIDE, STATIC, RECIPROCAL, CONVERTS: as ``quantize_token``, if there is one;
            then ONCE.
        ONCE: K is at most BLOCK_K.
        HALVES: see ``gate_token``.
        LATE: see ``pdl.wait``.
        CENTRED: the mean is taken away first.
        PARTS: programs that look over all of a token and round a part of it each: a power of two, 1 but for roundings.
    """
    tl.static_assert(ONCE or ELEMENT == "", "what is rounded is in registers as a whole")
    tl.static_assert(PARTS == 1 or (ELEMENT != "" and not ADD), "only what is rounded has parts")
    m = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    factors = tl.load(weight + column, mask=column < K, other=0.0)
    biases = tl.load(bias + column, mask=column < K, other=0.0) if HAS_BIAS else 0.0
    if OVERLAP:
        wait(LATE)
    values = _sum(x, delta, total, m * K + column, column < K, ADD)
    mean = 0.0
    if CENTRED:
        mean, squares = _centred(values, x, delta, total, m, K, ADD, ONCE, BLOCK_K)
    else:
        squares = values.to(tl.float32) * values.to(tl.float32)
        if not ONCE:
            for begin in range(BLOCK_K, K, BLOCK_K):
                more = _sum(x, delta, total, m * K + begin + column, begin + column < K, ADD).to(tl.float32)
                squares += more * more
    factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    normed = _normed(values, mean, factor, factors, biases, CENTRED, HAS_BIAS, HALVES and ELEMENT != "")
    if CENTRED or HAS_BIAS:
        normed = tl.where(column < K, normed, 0.0).to(normed.dtype)
    if PARTS > 1:
        scale = scale_of_token(tl.max(magnitudes(normed), axis=0), static_scale, qmax, STATIC)
        if tl.program_id(1) == 0:
            tl.store(scales + m, scale)
        k = tl.program_id(1) * (BLOCK_K // PARTS) + tl.arange(0, BLOCK_K // PARTS)
        own = tl.load(x + m * K + k, mask=k < K, other=0.0)
        own_bias = tl.load(bias + k, mask=k < K, other=0.0) if HAS_BIAS else 0.0
        own = _normed(
            own, mean, factor, tl.load(weight + k, mask=k < K, other=0.0), own_bias, CENTRED, HAS_BIAS, HALVES
        )  # fmt: skip
        store_rounded(codes + m * K, k, own, scale, qmax, k < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS)
    elif ELEMENT == "range":
        power = range_of_token(tl.max(magnitudes(normed), axis=0))
        store_range(scales, m, power)
        store_narrowed(codes + m * K, column, normed, power, column < K, CONVERTS)
    elif ELEMENT != "":
        round_token(
            normed, codes, scales, static_scale, m, K, qmax, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS, BLOCK_K
        )
    else:
        tl.store(y + m * K + column, normed, mask=column < K)
        if not ONCE:
            tl.debug_barrier()  # the sum is read again
            for begin in range(BLOCK_K, K, BLOCK_K):
                k = begin + column
                source = total if ADD else x
                more = tl.load(source + m * K + k, mask=k < K, other=0.0)
                more_bias = tl.load(bias + k, mask=k < K, other=0.0) if HAS_BIAS else 0.0
                more = _normed(
                    more, mean, factor, tl.load(weight + k, mask=k < K, other=0.0), more_bias, CENTRED, HAS_BIAS, False
                )  # fmt: skip
                tl.store(y + m * K + k, more, mask=k < K)
