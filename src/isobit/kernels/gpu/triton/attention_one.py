"""Attention of sequences with one new token: rotation, the new key and value into the cache, and the sum, in one go.

Old keys and values were stored by earlier steps. So their first tiles are asked for before the kernel in front has
ended, which makes the newest ones; behind the wait stand only the queries and what is new, which is never read back.

Products are ordinary arithmetic in float32: a key's numbers go from memory to the threads that multiply them, and
nothing is exchanged between warps before all keys are added up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.attention import oldest_seen
from isobit.kernels.gpu.triton.attention_few import parts_of
from isobit.kernels.gpu.triton.newest import append, capped, gain_of, newest_of, numbers_of
from isobit.kernels.gpu.triton.pdl import let_next_start, wait_for_last

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _words(place, PACKED: tl.constexpr):
    """The words at ``place``, if they are read so."""
    return place.to(tl.pointer_type(tl.int32), bitcast=True) if PACKED else place


@triton.jit
def _numbers(read, DTYPE: tl.constexpr, PACKED: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr):
    """What ``_tile`` read of keys or values, as ``numbers_of`` has them.

    Args:
        DTYPE: what the cache has.
    """
    if not PACKED:
        return numbers_of(read, ELEMENT, ASM)
    elif DTYPE == tl.float32:
        return read.to(tl.float32, bitcast=True)
    elif DTYPE == tl.bfloat16:  # the upper half of a float32
        low, high = (read << 16).to(tl.float32, bitcast=True), (read & -65536).to(tl.float32, bitcast=True)
        return tl.reshape(tl.join(low, high), (read.shape[0], 2 * read.shape[1]))
    elif DTYPE == tl.float16:
        low, high = read.to(tl.int16).to(DTYPE, bitcast=True), (read >> 16).to(tl.int16).to(DTYPE, bitcast=True)
        return tl.reshape(tl.join(low, high), (read.shape[0], 2 * read.shape[1])).to(tl.float32)
    else:
        first, second = read.to(tl.int8), (read >> 8).to(tl.int8)
        third, fourth = (read >> 16).to(tl.int8), (read >> 24).to(tl.int8)
        codes = tl.join(tl.join(first, third), tl.join(second, fourth))
        codes = tl.reshape(codes, (read.shape[0], 4 * read.shape[1])).to(DTYPE, bitcast=True)
        return numbers_of(codes, ELEMENT, ASM)


@triton.jit
def _tile(
    cache, table, at, end, block, head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, DEEP: tl.constexpr,
    BLOCK: tl.constexpr, PACKED: tl.constexpr, ELEMENT: tl.constexpr,
):  # fmt: skip
    """Keys and values ``[DEEP * SLOTS, WIDTH]`` of positions ``at`` and on, and the scales of codes ``[DEEP * SLOTS]``.

    From ``end`` on they are zeros, and nothing is read. PACKED, they are int32 words of the cache's numbers, which are
    taken apart where they are used: a number of 16 or 8 bits has a register of its own while it waits for its turn.
    """
    keys, values, key_scales, value_scales = cache
    n = tl.arange(0, DEEP * SLOTS)
    there = at + n < end
    if BLOCK == 0:  # all of a sequence
        base, rows = (tl.load(table).to(tl.int64) * KV_HEADS + head) * block + at, n
    elif BLOCK % (SLOTS * DEEP) == 0:  # tiles lie in one block each
        held = tl.load(table + tl.minimum(at, tl.maximum(end - 1, 0)) // BLOCK).to(tl.int64)
        base, rows = (held * KV_HEADS + head) * BLOCK + at % BLOCK, n
    else:
        held = tl.load(table + (at + n) // BLOCK, mask=there, other=0).to(tl.int64)
        base, rows = tl.full((), 0, tl.int64), (held * KV_HEADS + head) * BLOCK + (at + n) % BLOCK
    EACH: tl.constexpr = 32 // keys.dtype.element_ty.primitive_bitwidth if PACKED else 1
    d = tl.arange(0, WIDTH // EACH)[None, :]
    mask = there[:, None]
    if DIM != WIDTH:
        mask = mask & (d < DIM // EACH)
    place = rows[:, None] * (DIM // EACH) + d
    key = tl.load(_words(keys + base * DIM, PACKED) + place, mask=mask, other=0)
    value = tl.load(_words(values + base * DIM, PACKED) + place, mask=mask, other=0)
    if ELEMENT == "":
        return key, value, 1.0, 1.0
    else:
        key_scale = tl.load(key_scales + base + rows, mask=there, other=0.0)
        return key, value, key_scale, tl.load(value_scales + base + rows, mask=there, other=0.0)


@triton.jit
def _add(
    query, tile, at, begin, end, gain, factor, sums,
    DTYPE: tl.constexpr, SLOTS: tl.constexpr, DEEP: tl.constexpr, PACKED: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """One more tile in the sums of SLOTS sums of exponents, each of which has DEEP of its keys.

    Args:
        query: float32 ``[SLOTS, WIDTH]``, all of them the same.
        tile: what ``_tile`` gives at position ``at``.
        begin, end: the positions that are seen.
        sums: peak ``[SLOTS]``, weight ``[SLOTS]``, total ``[SLOTS, WIDTH]``: see ``attention.add_tile``.
    """
    key, value, key_scale, value_scale = tile
    peak, weight, total = sums
    # Rows that are SLOTS apart are one thread's, one behind the other.
    numbers = tl.reshape(_numbers(key, DTYPE, PACKED, ELEMENT, ASM), (DEEP, SLOTS, total.shape[1]))
    products = tl.sum(numbers * query[None, :, :], axis=2)
    if ELEMENT != "":
        products = products * tl.reshape(gain_of(key_scale, ELEMENT), (DEEP, SLOTS))
    products = capped(products, gain, SOFTCAP)
    position = at + tl.reshape(tl.arange(0, DEEP * SLOTS), (DEEP, SLOTS))
    seen = position < end
    if WINDOW or CHUNK:
        seen = seen & (position >= begin)
    products = tl.where(seen, products, float("-inf"))
    higher = tl.maximum(peak, tl.max(products, axis=0) * factor)
    origin = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(tl.fma(products, tl.full(products.shape, factor, tl.float32), -origin[None, :]))
    less = tl.exp2(peak - origin)
    weight = tl.fma(weight, less, tl.sum(weights, axis=0))
    if ELEMENT != "":
        weights = weights * tl.reshape(gain_of(value_scale, ELEMENT), (DEEP, SLOTS))
    numbers = tl.reshape(_numbers(value, DTYPE, PACKED, ELEMENT, ASM), (DEEP, SLOTS, total.shape[1]))
    added = tl.sum(numbers * weights[:, :, None], axis=0)
    return higher, weight, tl.fma(total, tl.broadcast_to(less[:, None], total.shape), added)


@triton.jit
def _together(sums):
    """Peak, weight and total ``[WIDTH]`` of what ``_add`` gives."""
    peaks, weights, totals = sums
    peak = tl.max(peaks, axis=0)
    share = tl.exp2(peaks - tl.where(peak == float("-inf"), 0.0, peak))
    return peak, tl.sum(weights * share, axis=0), tl.sum(totals * share[:, None], axis=0)


@triton.jit
def _leave(out, peak, weight, total, sink, DIM: tl.constexpr, SINKS: tl.constexpr):
    """Stores the result of sums at ``out [DIM]``; ``sink``: see ``attention.with_sink``."""
    if SINKS:
        score = tl.load(sink) * _LOG2_E
        higher = tl.maximum(peak, score)
        less = tl.exp2(peak - higher)
        weight, total = tl.fma(weight, less, tl.exp2(score - higher)), total * less
    d = tl.arange(0, total.shape[0])
    mixed = total / tl.where(weight == 0.0, 1.0, weight)
    tl.store(out + d, mixed.to(out.dtype.element_ty), mask=d < DIM)


@triton.jit
def _leave_part(work, stats, place, peak, weight, total):
    """Stores the sums of one part."""
    tl.store(stats + 2 * place, peak)
    tl.store(stats + 2 * place + 1, weight)
    tl.store(work + place * total.shape[0] + tl.arange(0, total.shape[0]), total)


@triton.jit
def _count(counter, parts):
    """How many parts were there before this one; the last one leaves the counter ready for the next launch."""
    tl.debug_barrier()  # all threads have stored before one of them says so
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    if before == parts - 1:
        tl.store(counter, 0)
    return before


@triton.jit
def _merged(work, stats, first, last, WIDTH: tl.constexpr, MOST: tl.constexpr):
    """Peak, weight and total ``[WIDTH]`` of one head's parts, always in one order, whoever was the last.

    Args:
        first: place of the first part.
        last: the last part. Counted down from there, addresses are not known before all parts are: else the compiler
            makes them where a program begins, and has no registers left.
    """
    part = last - tl.arange(0, MOST)
    there = part >= 0
    place = first + part
    peaks = tl.load(stats + 2 * place, mask=there, other=float("-inf"), cache_modifier=".cg")
    weights = tl.load(stats + 2 * place + 1, mask=there, other=0.0, cache_modifier=".cg")
    d = tl.arange(0, WIDTH)[None, :]
    totals = tl.load(work + place[:, None] * WIDTH + d, mask=there[:, None], other=0.0, cache_modifier=".cg")
    return _together((peaks, weights, totals))


@triton.jit
def _sums(
    fixed, token, head, at, seen, end, is_last,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    SLOTS: tl.constexpr, DEEP: tl.constexpr, AHEAD: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, ELEMENT: tl.constexpr,
    ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """What one part of the keys gives: old ones from ``at`` to ``end - 1``, and the newest if it ``is_last``.

    Returns:
        peak, weight and total ``[WIDTH]``; and what is new, for ``append``.
    """
    q, k, v, cos, sin, norms, strides, cache, table, block, eps, gain, factor = fixed
    TILE: tl.constexpr = SLOTS * DEEP
    own = head // (HEADS // KV_HEADS)  # the head of keys
    DTYPE: tl.constexpr = k.dtype.element_ty if ELEMENT == "" else cache[0].dtype.element_ty
    ahead = ()
    for i in tl.static_range(AHEAD):
        tile = _tile(
            cache, table, at + i * TILE, end, block, own, KV_HEADS, DIM, WIDTH, SLOTS, DEEP, BLOCK, PACKED, ELEMENT
        )  # fmt: skip
        ahead = ahead + (tile,)  # type: ignore[assignment]  # as many as AHEAD
    if OVERLAP:  # in further parts nothing is left to wait for
        wait_for_last()
    query, sums, new = newest_of(
        q, k, v, cos, sin, norms, strides, token, head, own, eps, gain, factor, is_last, cache[0], cache[1], ROWS,
        SLOTS, NORM, DIM, WIDTH, SOFTCAP, ELEMENT,
    )  # fmt: skip
    for now in range(at, end, TILE):
        tile = _tile(
            cache, table, now + AHEAD * TILE, end, block, own, KV_HEADS, DIM, WIDTH, SLOTS, DEEP, BLOCK, PACKED, ELEMENT
        )  # fmt: skip
        sums = _add(
            query, ahead[0], now, seen, end, gain, factor, sums, DTYPE, SLOTS, DEEP, PACKED, WINDOW, CHUNK, SOFTCAP,
            ELEMENT, ASM,
        )  # fmt: skip
        ahead = (tile,) if AHEAD == 1 else (ahead[1], tile)  # type: ignore[assignment]
    peak, weight, total = _together(sums)
    return peak, weight, total, new


@triton.jit
def attention_one(
    q, k, v, cos, sin, q_norm, k_norm, slots, keys, values, key_scales, value_scales, sinks, starts, lengths, table,
    out, work, stats, counters, stride_q, stride_k, stride_v, columns, room, block, window, eps, gain, factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    SLOTS: tl.constexpr, DEEP: tl.constexpr, AHEAD: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
    PART: tl.constexpr, ONE: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr, ELEMENT: tl.constexpr,
    ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of one new token; the others are left alone. Grid: (programs, HEADS, B).

    Before it waits it reads ``starts``, ``lengths``, ``table``, ``slots``, and what earlier steps stored. No kernel
    that lets others start early may write these: between two steps, and between a step and what moves blocks, stands an
    ordinary launch, which begins when all before it has ended.

    Args:
        q, k, v: ``[T, heads * DIM]`` as linears leave them, with so many elements from token to token.
        cos, sin, q_norm, k_norm, slots, NORM: as for ``rope_append``.
        keys, values, key_scales, value_scales: the cache, as for ``rope_append``: the new tokens are stored there.
        sinks, starts, lengths, table, out, columns, room, window, gain, factor, WIDTH, PART, ONE, MOST: as for
            ``attention_few``. Where heads of queries share one of keys, each reads it for itself.
        work, stats: float32 ``[B, HEADS, room, WIDTH]`` and ``[.., 2]``: sums of the parts of a sequence. The program
            that is the last of a head's to end adds them up.
        counters: int32 ``[B, HEADS]``, zeros, which they are left as.
        ROWS: rows that a new key or value is read as: SLOTS, so that every thread has what it multiplies; of codes no
            more than threads have a number each: it is rounded once, and goes from there to all.
        SLOTS, DEEP: keys of a tile: so many sums, each of so many; their product divides PART.
        AHEAD: tiles that are asked for ahead, one or two.
        PACKED: whether a head's keys are whole words of 32 bits, and are read so.
        SPLIT: whether a sequence may have more than one part.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    head, b = tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    if new == 1:
        token = begin.to(tl.int64)
        slot = tl.load(slots + token).to(tl.int32)  # no cache has room for 2**31 tokens
        oldest, size, parts = parts_of(length, 1, window, SLOTS * DEEP, PART, ONE, MOST, WINDOW, CHUNK)
        seen = oldest
        if WINDOW or CHUNK:
            seen = tl.maximum(oldest_seen(length - 1, window, WINDOW, CHUNK), 0)
        cache = keys, values, key_scales, value_scales
        fixed = (
            q, k, v, cos, sin, (q_norm, k_norm), (stride_q, stride_k, stride_v), cache,
            table + b.to(tl.int64) * columns, block, eps, gain, factor,
        )  # fmt: skip
        if SPLIT:
            for part in tl.range(tl.program_id(0), parts, tl.num_programs(0), disable_licm=True):
                at = oldest + part * size
                is_last = (part == parts - 1) & (length > 0)
                peak, weight, total, news = _sums(
                    fixed, token, head, at, seen, tl.minimum(at + size, length - 1), is_last, HEADS, KV_HEADS, DIM,
                    WIDTH, ROWS, SLOTS, DEEP, AHEAD, PACKED, BLOCK, NORM, WINDOW, CHUNK, SOFTCAP, ELEMENT, ASM, OVERLAP,
                )  # fmt: skip
                first = (b * HEADS + head).to(tl.int64) * room
                if parts == 1:
                    _leave(out + (token * HEADS + head) * DIM, peak, weight, total, sinks + head, DIM, SINKS)
                else:
                    _leave_part(work, stats, first + part, peak, weight, total)
                if is_last & (slot >= 0) & (head % GROUP == 0):  # the first of those that share a head of keys
                    append(news, cache, slot, block, head // GROUP, KV_HEADS, DIM, WIDTH, ROWS, BLOCK, ELEMENT)
                if parts > 1:
                    before = _count(counters + b * HEADS + head, parts)
                    if before == parts - 1:
                        peak, weight, total = _merged(work, stats, first, before, WIDTH, MOST)
                        _leave(out + (token * HEADS + head) * DIM, peak, weight, total, sinks + head, DIM, SINKS)
        else:
            is_last = length > 0
            peak, weight, total, news = _sums(
                fixed, token, head, oldest, seen, length - 1, is_last, HEADS, KV_HEADS, DIM, WIDTH, ROWS, SLOTS,
                DEEP, AHEAD, PACKED, BLOCK, NORM, WINDOW, CHUNK, SOFTCAP, ELEMENT, ASM, OVERLAP,
            )  # fmt: skip
            _leave(out + (token * HEADS + head) * DIM, peak, weight, total, sinks + head, DIM, SINKS)
            if is_last & (slot >= 0) & (head % GROUP == 0):  # the first of those that share a head of keys
                append(news, cache, slot, block, head // GROUP, KV_HEADS, DIM, WIDTH, ROWS, BLOCK, ELEMENT)
    if OVERLAP:  # for what follows this kernel: that it has ended says that the one before has, too
        wait_for_last()
