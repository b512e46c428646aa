"""What is new of a sequence of one new token: its queries, rotated, and its key and value, as the cache has them."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.decode import to_f16
from isobit.kernels.gpu.triton.law import _code, magnitudes, scale_of
from isobit.kernels.gpu.triton.rope import largest_of

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def numbers_of(read, ELEMENT: tl.constexpr, ASM: tl.constexpr):
    """What was read from a cache in float32: of codes, less what ``gain_of`` puts to their scales."""
    if ELEMENT == "":
        return read.to(tl.float32)
    else:
        return to_f16(read, ELEMENT, ASM).to(tl.float32)


@triton.jit
def gain_of(scale, ELEMENT: tl.constexpr):
    return scale * 256.0 if ELEMENT == "e4m3fn" else scale


@triton.jit
def capped(score, gain, SOFTCAP: tl.constexpr):
    """As ``attention.scores`` caps them."""
    if SOFTCAP:
        return 1.0 - 2.0 / (tl.exp2(score * (gain * (2.0 * _LOG2_E))) + 1.0)
    else:
        return score


@triton.jit
def _row(x, d, SLOTS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Numbers ``d [1, WIDTH]`` behind ``x``, ``[SLOTS, WIDTH]``: every thread reads what it multiplies itself."""
    place = tl.broadcast_to(x + d, (SLOTS, WIDTH))
    if DIM == WIDTH:
        return tl.load(place)
    else:
        return tl.load(place, mask=tl.broadcast_to(tl.arange(0, WIDTH)[None, :] < DIM, (SLOTS, WIDTH)), other=0.0)


@triton.jit
def _turned(x, weight, cos, sin, eps, SLOTS: tl.constexpr, NORM: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The head at ``x``, normed if NORM, and rotated, as ``rope_append`` does it: ``[SLOTS, WIDTH]`` of its dtype."""
    dtype: tl.constexpr = x.dtype.element_ty
    d = tl.arange(0, WIDTH)[None, :]
    other = tl.where(d < DIM // 2, d + DIM // 2, d - DIM // 2)
    own = _row(x, d, SLOTS, DIM, WIDTH).to(tl.float32)
    turned = _row(x, other, SLOTS, DIM, WIDTH).to(tl.float32)
    c = _row(cos, d, SLOTS, DIM, WIDTH).to(tl.float32)
    s = _row(sin, d, SLOTS, DIM, WIDTH).to(tl.float32)
    if NORM:  # a norm's result is a value of the activations' dtype
        factor = tl.rsqrt(tl.sum(own * own, axis=1) / DIM + eps)[:, None]
        own = (own * factor * _row(weight, d, SLOTS, DIM, WIDTH)).to(dtype).to(tl.float32)
        turned = (turned * factor * _row(weight, other, SLOTS, DIM, WIDTH)).to(dtype).to(tl.float32)
    return (own * c + turned * s * tl.where(d < DIM // 2, -1.0, 1.0)).to(dtype)


@triton.jit
def _as_cached(x, CODES: tl.constexpr, ELEMENT: tl.constexpr):
    """A new key or value ``[SLOTS, WIDTH]`` as the cache has it.

    Returns:
        what is stored, and its scale ``[SLOTS]``; and what that stands for, in float32.
    """
    if ELEMENT == "":
        return x, 1.0, x.to(tl.float32)
    else:
        largest = largest_of(ELEMENT)
        scale = scale_of(tl.max(magnitudes(x), axis=1), largest)
        quotient = tl.div_rn(x.to(tl.float32), tl.broadcast_to(scale[:, None], x.shape))
        quotient = tl.where(scale[:, None] == scale[:, None], quotient, 0.0)
        code = _code(tl.minimum(tl.maximum(quotient, -largest), largest), ELEMENT).to(CODES)
        number = numbers_of(code, ELEMENT, False) * gain_of(scale, ELEMENT)[:, None]
        return code, scale, tl.max(number, axis=0)[None, :]


@triton.jit
def newest_of(
    q, k, v, cos, sin, norms, strides, token, head, kv_head, eps, gain, factor, is_last, keys, values,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, NORM: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    SOFTCAP: tl.constexpr, ELEMENT: tl.constexpr,
):  # fmt: skip
    """What the kernel in front has made of one head: the query, and the newest key and value.

    Args:
        head, kv_head: of queries, and the one of keys that it has.
        norms, strides: weights of the norms of queries and keys; elements from token to token of q, k and v.
        is_last: whether the newest key is seen.
        keys, values: of the cache.

    Returns:
        the query, float32 ``[SLOTS, WIDTH]``; sums (see ``attention_one``) of the newest key alone, or of none; and the
        new key and value with their scales, as ``_as_cached`` has them.
    """
    cos += token * DIM
    sin += token * DIM
    query = _turned(q + token * strides[0] + head * DIM, norms[0], cos, sin, eps, SLOTS, NORM, DIM, WIDTH)
    query = query.to(tl.float32)
    key = _turned(k + token * strides[1] + kv_head * DIM, norms[1], cos, sin, eps, ROWS, NORM, DIM, WIDTH)
    value = _row(v + token * strides[2] + kv_head * DIM, tl.arange(0, WIDTH)[None, :], ROWS, DIM, WIDTH)
    key, key_scale, new_key = _as_cached(key, keys.dtype.element_ty, ELEMENT)
    value, value_scale, new_value = _as_cached(value, values.dtype.element_ty, ELEMENT)
    first = (tl.arange(0, SLOTS) == 0) & is_last  # the first key of the first sum
    score = capped(tl.sum(query * new_key, axis=1), gain, SOFTCAP) * factor
    total = tl.where(first[:, None], new_value, 0.0)
    sums = tl.where(first, score, float("-inf")), tl.where(first, 1.0, 0.0), total
    return query, sums, (key, value, key_scale, value_scale)


@triton.jit
def append(
    new, cache, slot, block, head,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ELEMENT: tl.constexpr,
):  # fmt: skip
    """Stores the new key and value of ``newest_of``."""
    key, value, key_scale, value_scale = new
    keys, values, key_scales, value_scales = cache
    size = block if BLOCK == 0 else BLOCK
    row = ((slot // size).to(tl.int64) * HEADS + head) * size + slot % size
    own = tl.arange(0, ROWS) == 0
    d = tl.arange(0, WIDTH)[None, :]
    mask = own[:, None] & (d < DIM)
    place = row * DIM + tl.broadcast_to(d, (ROWS, WIDTH))
    tl.store(keys + place, key, mask=mask)
    tl.store(values + place, value, mask=mask)
    if ELEMENT != "":
        one = tl.zeros((ROWS,), tl.int32)
        tl.store(key_scales + row + one, key_scale, mask=own)
        tl.store(value_scales + row + one, value_scale, mask=own)
