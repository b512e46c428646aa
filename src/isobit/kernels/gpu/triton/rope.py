"""Queries and keys normed and rotated, keys and values put into the cache: what stands before attention, in one go."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.grouped import store_grouped
from isobit.kernels.gpu.triton.law import magnitudes, scale_of, store_rounded
from isobit.kernels.gpu.triton.pdl import wait


@triton.jit
def _rotated(x, weight, cos, sin, eps, inside, NORM: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr):
    """Both halves ``[BATCH, HALF]`` of the heads at ``x``: rotated in float32, and normed before that if NORM.

    Args:
        x: pointers ``[BATCH, 1]`` to heads.
        inside: ``[BATCH, 1]``: which of them there are.
        cos, sin: of this token.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    d = tl.arange(0, HALF)
    real = d < DIM // 2
    mask = inside & real[None, :]
    first = tl.load(x + d[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + (DIM // 2 + d)[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:  # a norm's result is a value of the activations' dtype
        mean = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / DIM
        factor = tl.rsqrt(mean + eps)[:, None]
        low = tl.load(weight + d, mask=real, other=0.0)[None, :]
        high = tl.load(weight + DIM // 2 + d, mask=real, other=0.0)[None, :]
        first = (first * factor * low).to(dtype).to(tl.float32)
        second = (second * factor * high).to(dtype).to(tl.float32)
    cos_low = tl.load(cos + d, mask=real, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + DIM // 2 + d, mask=real, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + d, mask=real, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + DIM // 2 + d, mask=real, other=0.0).to(tl.float32)[None, :]
    return first * cos_low - second * sin_low, second * cos_high + first * sin_high


@triton.jit
def _store(y, first, second, inside, DIM: tl.constexpr, HALF: tl.constexpr):
    """Stores both halves of heads at the pointers ``y [BATCH, 1]``."""
    d = tl.arange(0, HALF)
    mask = inside & (d < DIM // 2)[None, :]
    tl.store(y + d[None, :], first.to(y.dtype.element_ty), mask=mask)
    tl.store(y + (DIM // 2 + d)[None, :], second.to(y.dtype.element_ty), mask=mask)


@triton.jit
def largest_of(ELEMENT: tl.constexpr):
    if ELEMENT == "e4m3fn":
        return tl.full((), 448.0, tl.float32)
    elif ELEMENT == "e5m2":
        return tl.full((), 57344.0, tl.float32)
    else:
        tl.static_assert(ELEMENT == "int8", "an 8-bit element format")
        return tl.full((), 127.0, tl.float32)


@triton.jit
def _store_rounded(
    y, scales, first, second, inside, dtype: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr,
    HALF: tl.constexpr, RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Stores both halves of heads as codes, with a scale of each head: what is rounded are values of ``dtype``."""
    d = tl.arange(0, HALF)
    mask = inside & (d < DIM // 2)[None, :]
    first, second = first.to(dtype), second.to(dtype)
    peak = tl.maximum(tl.max(magnitudes(first), axis=1), tl.max(magnitudes(second), axis=1))
    largest = largest_of(ELEMENT)
    scale = scale_of(peak, largest)[:, None]
    tl.store(scales, scale, mask=inside)
    store_rounded(y, d[None, :], first, scale, largest, mask, ELEMENT, False, False, RECIPROCAL, CONVERTS)
    store_rounded(y, (DIM // 2 + d)[None, :], second, scale, largest, mask, ELEMENT, False, False, RECIPROCAL, CONVERTS)


@triton.jit
def rope_append(
    q, k, v, cos, sin, q_norm, k_norm, slots, rotated, keys, values, key_scales, value_scales, stride_q, stride_k,
    stride_v, block, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, BATCH: tl.constexpr,
    NORM: tl.constexpr, ELEMENT: tl.constexpr, OVERLAP: tl.constexpr, LATE: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Grid: (T, ceil(HEADS / BATCH) + 2 * ceil(KV_HEADS / BATCH)): heads of queries, of keys, of values.

    Args:
        q, k, v: ``[T, heads * DIM]``, with so many elements from token to token.
        cos, sin: ``[T, DIM]`` of each token's position, of one floating-point dtype.
        q_norm, k_norm: float32 ``[DIM]``, if NORM.
        slots: int64 ``[T]``: where in the cache; -1: nowhere.
        rotated: ``[T, HEADS * DIM]``: the queries.
        keys, values: ``[blocks, KV_HEADS, block, DIM]``.
        key_scales, value_scales: float32 ``[blocks, KV_HEADS, block]``, of codes.
        HALF: DIM / 2 rounded up to a power of two.
        BATCH: heads of a program.
        LATE: see ``pdl.wait``. RECIPROCAL, CONVERTS: see ``law.py``.
        ELEMENT: element format that keys and values are rounded to (docs/numerics.md, 9); empty: they are not.
    """
    Q_PROGRAMS: tl.constexpr = (HEADS + BATCH - 1) // BATCH
    KV_PROGRAMS: tl.constexpr = (KV_HEADS + BATCH - 1) // BATCH
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if OVERLAP:
        wait(LATE)
    if program < Q_PROGRAMS:
        head = program * BATCH + tl.arange(0, BATCH)[:, None]
        first, second = _rotated(
            q + token * stride_q + head * DIM, q_norm, cos + token * DIM, sin + token * DIM, eps, head < HEADS, NORM,
            DIM, HALF,
        )  # fmt: skip
        _store(rotated + (token * HEADS + head) * DIM, first, second, head < HEADS, DIM, HALF)
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            head = (program - Q_PROGRAMS) % KV_PROGRAMS * BATCH + tl.arange(0, BATCH)[:, None]
            row = ((slot // block) * KV_HEADS + head) * block + slot % block
            if program < Q_PROGRAMS + KV_PROGRAMS:
                first, second = _rotated(
                    k + token * stride_k + head * DIM, k_norm, cos + token * DIM, sin + token * DIM, eps,
                    head < KV_HEADS, NORM, DIM, HALF,
                )  # fmt: skip
                if ELEMENT != "":
                    _store_rounded(
                        keys + row * DIM, key_scales + row, first, second, head < KV_HEADS, k.dtype.element_ty, ELEMENT,
                        DIM, HALF, RECIPROCAL, CONVERTS,
                    )  # fmt: skip
                else:
                    _store(keys + row * DIM, first, second, head < KV_HEADS, DIM, HALF)
            elif ELEMENT != "":
                d = tl.arange(0, HALF)[None, :]
                inside = (head < KV_HEADS) & (d < DIM // 2)
                of = v + token * stride_v + head * DIM + d
                low = tl.load(of, mask=inside, other=0.0)
                high = tl.load(of + DIM // 2, mask=inside, other=0.0)
                _store_rounded(
                    values + row * DIM, value_scales + row, low, high, head < KV_HEADS, v.dtype.element_ty, ELEMENT,
                    DIM, HALF, RECIPROCAL, CONVERTS,
                )  # fmt: skip
            else:
                d = tl.arange(0, 2 * HALF)[None, :]
                inside = (head < KV_HEADS) & (d < DIM)
                value = tl.load(v + token * stride_v + head * DIM + d, mask=inside, other=0.0)
                tl.store(values + row * DIM + d, value, mask=inside)


@triton.jit
def _partner(d, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The dimension that each one is rotated with, and the sign of what that gives; itself and 0 from ROTATED on."""
    if INTERLEAVED:
        other, sign = d ^ 1, tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        low = d < ROTATED // 2
        other, sign = tl.where(low, d + ROTATED // 2, d - ROTATED // 2), tl.where(low, -1.0, 1.0)
    return tl.where(d < ROTATED, other, d), tl.where(d < ROTATED, sign, 0.0)


@triton.jit
def _mean_square(row, WIDTH: tl.constexpr):
    """Mean of the squares of WIDTH values of a token."""
    column = tl.arange(0, 1024)
    squares = tl.zeros((1024,), tl.float32)
    for begin in range(0, WIDTH, 1024):
        values = tl.load(row + begin + column, mask=begin + column < WIDTH, other=0.0).to(tl.float32)
        squares += values * values
    return tl.sum(squares, axis=0) / WIDTH


@triton.jit
def _turned(
    row, head, weight, cos, sin, eps, inside, NORM: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Heads ``[BATCH, WIDTH]`` of a token as any family rotates and norms them: values of the activations' dtype.

    Args:
        row: all HEADS of the token.
        head, inside: ``[BATCH, 1]``: which heads, and which of them there are.
        weight: float32 of the norm: ``[DIM]``, or ``[HEADS * DIM]`` for NORM "width".
        cos, sin: ``[ROTATED]`` of this token.
        NORM: as ``rope_append``.
    """
    dtype: tl.constexpr = row.dtype.element_ty
    d = tl.arange(0, WIDTH)[None, :]
    mask = inside & (d < DIM)
    other, sign = _partner(d, ROTATED, INTERLEAVED)
    own = tl.load(row + head * DIM + d, mask=mask, other=0.0).to(tl.float32)
    if ROTATED > 0:
        turned = tl.load(row + head * DIM + other, mask=mask, other=0.0).to(tl.float32)
    if NORM == "head" or NORM == "width":
        if NORM == "width":
            factor = tl.rsqrt(_mean_square(row, HEADS * DIM) + eps)
            weights = weight + head * DIM
        else:
            factor = tl.rsqrt(tl.sum(own * own, axis=1) / DIM + eps)[:, None]
            weights = weight + 0 * head
        own = (own * factor * tl.load(weights + d, mask=mask, other=0.0)).to(dtype).to(tl.float32)
        if ROTATED > 0:
            turned = (turned * factor * tl.load(weights + other, mask=mask, other=0.0)).to(dtype).to(tl.float32)
    if ROTATED > 0:
        real = d < ROTATED
        angle = d // 2 if INTERLEAVED else d
        c = tl.load(cos + angle, mask=real, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=real, other=0.0).to(tl.float32)
        own = own * c + turned * s * sign
    if NORM == "head-behind":
        own = own.to(dtype).to(tl.float32)
        own = own * tl.rsqrt(tl.sum(own * own, axis=1) / DIM + eps)[:, None]
        own = own * tl.load(weight + d, mask=d < DIM, other=0.0)
    return own.to(dtype)


@triton.jit
def _store_turned(
    y, scales, groups, row, values, inside, ELEMENT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Stores heads ``[BATCH, WIDTH]`` as the rows ``row [BATCH, 1]`` of ``y``, as codes with a scale each if ELEMENT,
    or with those of groups."""
    d = tl.arange(0, WIDTH)[None, :]
    mask = inside & (d < DIM)
    if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" or ELEMENT == "nvfp4":
        stride: tl.constexpr = DIM if ELEMENT == "mxfp8" else DIM // 2
        count: tl.constexpr = (DIM + 15) // 16 if ELEMENT == "nvfp4" else (DIM + 31) // 32
        above = scales
        if ELEMENT == "nvfp4":
            above = scales + row
        store_grouped(y + row * stride, above, groups + row * count, values, inside, ELEMENT, DIM, CONVERTS)
    elif ELEMENT != "":
        y += row * DIM
        scales += row
        largest = largest_of(ELEMENT)
        scale = scale_of(tl.max(magnitudes(values), axis=1), largest)[:, None]
        tl.store(scales, scale, mask=inside)
        store_rounded(y, d, values, scale, largest, mask, ELEMENT, False, False, RECIPROCAL, CONVERTS)
    else:
        tl.store(y + row * DIM + d, values, mask=mask)


@triton.jit
def rope_append_any(
    q, k, v, cos, sin, q_norm, k_norm, q_scale, slots, rotated, keys, values, key_scales, value_scales, key_groups,
    value_groups, stride_q, stride_k, stride_v, block, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BATCH: tl.constexpr,
    NORM: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, SCALED: tl.constexpr,
    ELEMENT: tl.constexpr, OVERLAP: tl.constexpr, LATE: tl.constexpr,
    RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """``rope_append`` for what few families do. Grid and arguments as there, and:

    Args:
        cos, sin: ``[T, ROTATED]``: the angle of pair i in columns i and i + ROTATED / 2.
        q_norm, k_norm: float32 ``[DIM]``, or, for NORM "width", ``[HEADS * DIM]`` and ``[KV_HEADS * DIM]``.
        q_scale: float32 ``[T]``: what queries are multiplied by, if SCALED.
        key_groups, value_groups: uint8 ``[blocks, KV_HEADS, block, groups]``: scales of groups (``grouped.py``), for
            which keys and values are as wide as bytes are.
        WIDTH: DIM rounded up to a power of two.
        NORM: "none"; of each head before it is rotated ("head") or behind that ("head-behind"); or of all heads
            together before that ("width").
        ROTATED: how many dimensions, the first ones, are rotated; 0: none.
        INTERLEAVED: neighbours are rotated with each other, and not halves.
    """
    Q_PROGRAMS: tl.constexpr = (HEADS + BATCH - 1) // BATCH
    KV_PROGRAMS: tl.constexpr = (KV_HEADS + BATCH - 1) // BATCH
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if OVERLAP:
        wait(LATE)
    cos += token * ROTATED
    sin += token * ROTATED
    if program < Q_PROGRAMS:
        head = program * BATCH + tl.arange(0, BATCH)[:, None]
        inside = head < HEADS
        query = _turned(
            q + token * stride_q, head, q_norm, cos, sin, eps, inside, NORM, HEADS, DIM, WIDTH, ROTATED, INTERLEAVED
        )
        if SCALED:
            query = (query.to(tl.float32) * tl.load(q_scale + token)).to(query.dtype)
        _store_turned(
            rotated, key_scales, key_groups, token * HEADS + head, query, inside, "", DIM, WIDTH, False, False
        )
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            head = (program - Q_PROGRAMS) % KV_PROGRAMS * BATCH + tl.arange(0, BATCH)[:, None]
            inside = head < KV_HEADS
            row = ((slot // block) * KV_HEADS + head) * block + slot % block
            if program < Q_PROGRAMS + KV_PROGRAMS:
                key = _turned(
                    k + token * stride_k, head, k_norm, cos, sin, eps, inside, NORM, KV_HEADS, DIM, WIDTH, ROTATED,
                    INTERLEAVED,
                )  # fmt: skip
                _store_turned(keys, key_scales, key_groups, row, key, inside, ELEMENT, DIM, WIDTH, RECIPROCAL, CONVERTS)
            else:
                d = tl.arange(0, WIDTH)[None, :]
                value = tl.load(v + token * stride_v + head * DIM + d, mask=inside & (d < DIM), other=0.0)
                _store_turned(
                    values, value_scales, value_groups, row, value, inside, ELEMENT, DIM, WIDTH, RECIPROCAL, CONVERTS
                )
