"""What stands before latent attention: queries and keys rotated, latents normed, and both put into the cache."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.grouped import store_grouped
from isobit.kernels.gpu.triton.law import magnitudes, scale_of, store_rounded
from isobit.kernels.gpu.triton.pdl import wait


@triton.jit
def _rotated(x, cos, sin, inside, ROTATED: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both halves ``[N, HALF]`` of the parts at the pointers ``x [N, 1]``, of which some are inside: rotated.

    Neighbours that are rotated with each other (INTERLEAVED) come out as halves.
    """
    i = tl.arange(0, HALF)
    real = i < ROTATED // 2
    mask = inside & real[None, :]
    if INTERLEAVED:
        near, far = 2 * i, 2 * i + 1
    else:
        near, far = i, ROTATED // 2 + i
    first = tl.load(x + near[None, :], mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x + far[None, :], mask=mask, other=0.0).to(tl.float32)
    cos_low = tl.load(cos + i, mask=real, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + ROTATED // 2 + i, mask=real, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + i, mask=real, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + ROTATED // 2 + i, mask=real, other=0.0).to(tl.float32)[None, :]
    dtype: tl.constexpr = x.dtype.element_ty
    return (first * cos_low - second * sin_low).to(dtype), (second * cos_high + first * sin_high).to(dtype)


@triton.jit
def _scale_for(peak, scales, qmax):
    """The scale of what has magnitude bits ``peak`` at most, stored."""
    scale = scale_of(peak, qmax)
    tl.store(scales, scale)
    return scale


@triton.jit
def _store_row(
    y, scales, groups, slot, values, ELEMENT: tl.constexpr, DIM: tl.constexpr, CONVERTS: tl.constexpr
):  # fmt: skip
    """Stores ``values [1, WIDTH]`` as a row of codes whose groups have scales."""
    size: tl.constexpr = 16 if ELEMENT == "nvfp4" else 32
    stride: tl.constexpr = DIM if ELEMENT == "mxfp8" else DIM // 2
    one = slot + tl.zeros((1, 1), tl.int64)
    above = scales
    if ELEMENT == "nvfp4":
        above = scales + one
    count: tl.constexpr = (DIM + size - 1) // size
    store_grouped(y + one * stride, above, groups + one * count, values, one >= 0, ELEMENT, DIM, CONVERTS)


@triton.jit
def latent_append(
    q, kv, cos, sin, weight, slots, turned, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
    stride_q, stride_kv, eps, qmax,
    HEADS: tl.constexpr, PLAIN: tl.constexpr, ROTATED: tl.constexpr, RANK: tl.constexpr, HALF: tl.constexpr,
    WIDTH: tl.constexpr, BATCH: tl.constexpr, INTERLEAVED: tl.constexpr, ELEMENT: tl.constexpr, OVERLAP: tl.constexpr,
    LATE: tl.constexpr, RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    """Rotates queries; norms latents, rotates keys, and puts both into the cache. Grid: (T, ceil(HEADS / BATCH) + 1).

    Args:
        q: ``[T, HEADS * (PLAIN + ROTATED)]``, kv: ``[T, RANK + ROTATED]``, with so many elements from token to token.
        cos, sin: ``[T, ROTATED]`` of each token's position, of one floating-point dtype, by halves.
        weight: float32 ``[RANK]``: of the norm of latents, with its ``eps``.
        slots: int64 ``[T]``: where in the cache; -1: nowhere.
        turned: ``[T, HEADS, ROTATED]``: the rotated parts of the queries.
        latents, keys: ``[blocks, 1, block, RANK]`` and ``[.., ROTATED]``, of the dtype of q or codes.
        latent_scales, key_scales: float32 ``[blocks, 1, block]``, of codes.
        latent_groups, key_groups: uint8 ``[blocks, 1, block, groups]``, of codes whose groups have scales.
        qmax: largest value of the format of codes.
        HALF: ROTATED / 2, and WIDTH: RANK, rounded up to powers of two.
        BATCH: heads of a program.
        INTERLEAVED: see ``_rotated``. ELEMENT, LATE, RECIPROCAL, CONVERTS: as for ``rope_append``.
    """
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if OVERLAP:
        wait(LATE)
    cos += token * ROTATED
    sin += token * ROTATED
    i = tl.arange(0, HALF)[None, :]
    if program < (HEADS + BATCH - 1) // BATCH:
        head = program * BATCH + tl.arange(0, BATCH)[:, None]
        of = q + token * stride_q + head * (PLAIN + ROTATED) + PLAIN
        first, second = _rotated(of, cos, sin, head < HEADS, ROTATED, HALF, INTERLEAVED)
        to = turned + (token * HEADS + head) * ROTATED + i
        mask = (head < HEADS) & (i < ROTATED // 2)
        tl.store(to, first, mask=mask)
        tl.store(to + ROTATED // 2, second, mask=mask)
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            d = tl.arange(0, WIDTH)
            values = tl.load(kv + token * stride_kv + d, mask=d < RANK, other=0.0)
            wide = values.to(tl.float32)
            factor = tl.rsqrt(tl.sum(wide * wide, axis=0) / RANK + eps)
            values = (wide * factor * tl.load(weight + d, mask=d < RANK, other=0.0)).to(values.dtype)
            one = tl.zeros((1, 1), tl.int32)
            first, second = _rotated(
                kv + token * stride_kv + RANK + one, cos, sin, one == 0, ROTATED, HALF, INTERLEAVED
            )
            to = keys + slot * ROTATED + i
            if ELEMENT == "":
                tl.store(latents + slot * RANK + d, values, mask=d < RANK)
                tl.store(to, first, mask=i < ROTATED // 2)
                tl.store(to + ROTATED // 2, second, mask=i < ROTATED // 2)
            elif ELEMENT == "mxfp8" or ELEMENT == "mxfp4" or ELEMENT == "nvfp4":
                both = tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (1, 2 * HALF))
                _store_row(latents, latent_scales, latent_groups, slot, values[None, :], ELEMENT, RANK, CONVERTS)
                _store_row(keys, key_scales, key_groups, slot, both, ELEMENT, ROTATED, CONVERTS)
            else:
                scale = _scale_for(tl.max(magnitudes(values), axis=0), latent_scales + slot, qmax)
                store_rounded(
                    latents + slot * RANK, d, values, scale, qmax, d < RANK, ELEMENT, False, False, RECIPROCAL, CONVERTS
                )
                peak = tl.maximum(tl.max(magnitudes(first)), tl.max(magnitudes(second)))
                scale = _scale_for(peak, key_scales + slot, qmax)
                store_rounded(to, 0, first, scale, qmax, i < ROTATED // 2, ELEMENT, False, False, RECIPROCAL, CONVERTS)
                store_rounded(
                    to, ROTATED // 2, second, scale, qmax, i < ROTATED // 2, ELEMENT, False, False, RECIPROCAL, CONVERTS
                )
