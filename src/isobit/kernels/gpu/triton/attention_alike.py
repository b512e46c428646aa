"""Attention whose bits do not depend on how many tokens are new: one for a few new tokens, one for many, and a merge.

A query's keys are in parts that begin at fixed positions, whatever is new and however long the sequence will be. The
sums of a part go over tiles of keys that begin at multiples of BLOCK_N, in order; the parts are added in order. A few
new tokens share the parts among programs and add them up afterwards, many add each to those before as they go: the
operations of a query are the same. Tiles and parts of which it sees nothing change no bit of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.attention import (
    block_of,
    oldest_seen,
    rows_of_keys,
    scales_of,
    scores,
    tile_of,
    with_sink,
)
from isobit.kernels.gpu.triton.pdl import let_next_start, wait_for_last

_SUMS = tl.constexpr(8)  # columns of the narrowest product


@triton.jit
def part_size(position, PART: tl.constexpr):
    """Keys of the part that holds a position, which begins at a multiple of them.

    Parts are longer far from the beginning, so that a long sequence does not have too many: of PART keys up to 32 of
    them, of four times as many up to 128 times PART, and so on.
    """
    size = tl.where(position >= 32 * PART, 4 * PART, PART)
    size = tl.where(position >= 128 * PART, 16 * PART, size)
    return tl.where(position >= 512 * PART, 64 * PART, size)


@triton.jit
def part_number(position, PART: tl.constexpr):
    """Which part holds a position."""
    number = tl.where(position >= 32 * PART, 24 + position // (4 * PART), position // PART)
    number = tl.where(position >= 128 * PART, 48 + position // (16 * PART), number)
    return tl.where(position >= 512 * PART, 72 + position // (64 * PART), number)


@triton.jit
def part_begin(number, PART: tl.constexpr):
    """The first position of a part."""
    begin = tl.where(number >= 32, (number - 24) * (4 * PART), number * PART)
    begin = tl.where(number >= 56, (number - 48) * (16 * PART), begin)
    return tl.where(number >= 80, (number - 72) * (64 * PART), begin)


@triton.jit
def add_part(peak, weight, total, more_peak, more_weight, more_total):
    """The sums of some parts, and of one more behind them: ``peak``, ``weight`` and ``total`` as of ``_add_tile``.

    Nothing is left to be fused: tiles and single rows give the same bits. To no parts one is added as it is.
    """
    higher = tl.maximum(peak, more_peak)
    origin = tl.where(higher == float("-inf"), 0.0, higher)
    less, share = tl.exp2(peak - origin), tl.exp2(more_peak - origin)
    weight = tl.fma(weight, less, more_weight * share)
    if len(total.shape) == 2:
        less, share = less[:, None], share[:, None]
    total = tl.fma(total, tl.broadcast_to(less, total.shape), more_total * share)
    return higher, weight, total


@triton.jit
def _halves(weights, DTYPE: tl.constexpr):
    """Weights as two numbers of a dtype, of which the second is what the first leaves; see ``attention.add_values``."""
    high = weights.to(DTYPE)
    return high, (weights - high.to(tl.float32)).to(DTYPE)


@triton.jit
def _add_values(weights, value, scale, seen, ones, sums, total, ELEMENT: tl.constexpr, PRECISION: tl.constexpr):
    """``sums [M, 8]`` plus the sum of ``weights [M, N]``, and ``total [M, D]`` plus those by ``value [N, D]``.

    As ``attention.add_values``, but that float16 has scales relative to the largest of those that a query sees
    (``seen``): what lies behind it in a tile is of no account. The unit adds up the weights, too, as products by
    ``ones [N, 8]``: so their order is that of the unit, whichever threads hold them.
    """
    if value.dtype == tl.bfloat16:
        high, low = _halves(weights, tl.bfloat16)
        sums = tl.dot(high, ones, tl.dot(low, ones, sums))
        if ELEMENT != "":
            high, low = _halves(weights * scale[None, :], tl.bfloat16)
        return sums, tl.dot(high, value, tl.dot(low, value, total))
    elif ELEMENT != "" and value.dtype == tl.float16:
        sums = tl.dot(weights.to(tl.float16), ones, sums)
        scale = tl.where(seen, scale[None, :], 0.0)
        largest = tl.max(scale, axis=1)
        weights = weights * (scale / tl.where(largest == 0.0, 1.0, largest)[:, None])
        added = tl.dot(weights.to(tl.float16), value)
        return sums, tl.fma(added, tl.broadcast_to(largest[:, None], added.shape), total)
    else:
        sums = tl.dot(weights.to(value.dtype), ones, sums, input_precision=PRECISION)
        if ELEMENT != "":
            weights = weights * scale[None, :]
        return sums, tl.dot(weights.to(value.dtype), value, total, input_precision=PRECISION)


@triton.jit
def _steps(
    query, keys, values, key_scales, value_scales, key_groups, value_groups,
    table, first, end, length, newest, block, head, gain, factor, window,
    peak, weight, total,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr,
    ASM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with the keys of positions ``first`` to ``end - 1`` added, which all queries see, or not (MASKED).

    Args:
        peak: ``[M]``: the largest exponent so far.
        weight: ``[M, 8]``: the sum of weights relative to it, in every column.
        total: ``[M, WIDTH]``: the values by their weights.
    """
    dtype: tl.constexpr = query.dtype
    OVER: tl.constexpr = "" if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" else ELEMENT
    grouped: tl.constexpr = ELEMENT == "mxfp8" or ELEMENT == "mxfp4" or ELEMENT == "nvfp4"
    ones = tl.full((BLOCK_N, _SUMS), 1.0, tl.bfloat16 if grouped and dtype == tl.float16 else dtype)
    held = block_of(table, first, length - 1, block, WHOLE)
    for at in range(first, end, BLOCK_N):
        base, rows = rows_of_keys(table, held, at, length - 1, block, head, KV_HEADS, WHOLE, MASKED, BLOCK_N)
        held = block_of(table, at + BLOCK_N, length - 1, block, WHOLE)
        key = tile_of(keys, key_groups, base, rows, dtype, ELEMENT, DIM, WIDTH, ASM)
        value = tile_of(values, value_groups, base, rows, dtype, ELEMENT, DIM, WIDTH, ASM)
        key_scale = scales_of(key_scales, base, rows, dtype, OVER)
        value_scale = scales_of(value_scales, base, rows, dtype, OVER)
        products = scores(query, key, key_scale, gain, OVER, SOFTCAP, PRECISION)
        seen = tl.full(products.shape, True, tl.int1)
        if MASKED:
            position = (at + tl.arange(0, BLOCK_N))[None, :]
            seen = position <= newest[:, None]
            if WINDOW or CHUNK:
                seen = seen & (position >= oldest_seen(newest, window, WINDOW, CHUNK)[:, None])
            products = tl.where(seen, products, float("-inf"))
        # What is fused is written so, for masked tiles and whole ones to give the same bits.
        higher = tl.maximum(peak, tl.max(products, axis=1) * factor)
        origin = higher
        if MASKED:  # a query that has seen nothing yet
            origin = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(tl.fma(products, tl.full(products.shape, factor, tl.float32), -origin[:, None]))
        less = tl.exp2(peak - origin)
        weight, total = _add_values(
            weights, value, value_scale, seen, ones, weight * less[:, None], total * less[:, None], OVER, PRECISION
        )  # fmt: skip
        peak = higher
    return peak, weight, total


@triton.jit
def _oldest(newest, window, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """Where the tile begins that holds the first key that a query at ``newest`` sees."""
    if WINDOW or CHUNK:
        return tl.maximum(oldest_seen(newest, window, WINDOW, CHUNK), 0) // BLOCK_N * BLOCK_N
    else:
        return 0


@triton.jit
def attention_alike_few(
    q, keys, values, key_scales, value_scales, key_groups, value_groups,
    sinks, starts, lengths, table, out, work, stats, columns, room, queries,
    block, window, gain, factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, NEW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, WHOLE: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr,
    ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of up to ``NEW`` new tokens; the others are left alone. Grid: (programs, KV_HEADS, B).

    Args:
        q, keys, values, key_scales, value_scales, key_groups, value_groups,
            sinks, starts, lengths, table, out, work, stats, columns, room,
            queries, block, window, gain, factor, ELEMENT, ASM: as for ``attention_few``.
        ROWS: queries of a tile: new tokens times the heads that share a head of keys.
        BLOCK_N: keys of a step; divides PART, which is that of ``part_size``.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    head, b = tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    oldest = _oldest(length - new, window, BLOCK_N, WINDOW, CHUNK)
    before = part_number(oldest, PART)
    parts = part_number(tl.maximum(length - 1, 0), PART) - before + 1
    if OVERLAP:
        wait_for_last()
    if (new > 0) & (new <= NEW):
        row = tl.arange(0, ROWS)
        d = tl.arange(0, WIDTH)[None, :]
        place = ((begin + row // GROUP).to(tl.int64) * HEADS + head * GROUP + row % GROUP)[:, None] * DIM + d
        inside = (row < new * GROUP)[:, None] & (d < DIM)
        query = tl.load(q + place, mask=inside, other=0.0)
        newest = length - new + row // GROUP
        for part in range(tl.program_id(0), parts, tl.num_programs(0)):
            first = part_begin(before + part, PART)
            end = tl.minimum(first + part_size(first, PART), length)
            peak = tl.full((ROWS,), float("-inf"), tl.float32)
            sums = tl.zeros((ROWS, _SUMS), tl.float32)
            total = tl.zeros((ROWS, WIDTH), tl.float32)
            peak, sums, total = _steps(
                query, keys, values, key_scales, value_scales, key_groups, value_groups,
                table + b.to(tl.int64) * columns,
                tl.maximum(first, oldest), end, length, newest, block, head, gain, factor, window, peak, sums, total,
                KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE, WINDOW, CHUNK, SOFTCAP, PRECISION, ELEMENT, ASM, True,
            )  # fmt: skip
            weight = tl.max(sums, axis=1)
            if parts == 1:
                if SINKS:
                    sink = tl.load(sinks + head * GROUP + row % GROUP)
                    weight, total = with_sink(peak, weight, total, sink)
                mixed = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
                tl.store(out + place, mixed.to(out.dtype.element_ty), mask=inside)
            else:
                at = ((b * KV_HEADS + head).to(tl.int64) * room + part) * queries + row
                real = row < new * GROUP
                tl.store(stats + 2 * at, peak, mask=real)
                tl.store(stats + 2 * at + 1, weight, mask=real)
                tl.store(work + at[:, None] * WIDTH + d, total, mask=real[:, None])


@triton.jit
def attention_alike_merge(
    sinks, starts, lengths, out, work, stats, room, queries, window,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, NEW: tl.constexpr,
    BLOCK_N: tl.constexpr, PART: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr,
    OVERLAP: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Adds the parts that ``attention_alike_few`` left, in order. Grid: (queries, KV_HEADS, B); arguments as there.

    Args:
        AT_ONCE: parts that are read before the first of them is added.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    row, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    oldest = _oldest(length - new, window, BLOCK_N, WINDOW, CHUNK)
    parts = part_number(tl.maximum(length - 1, 0), PART) - part_number(oldest, PART) + 1
    if OVERLAP:
        wait_for_last()
    if (new <= NEW) & (row < new * GROUP) & (parts > 1):
        first = (b * KV_HEADS + head).to(tl.int64) * room * queries + row
        d = tl.arange(0, WIDTH)
        peak, weight = tl.full((1,), float("-inf"), tl.float32), tl.zeros((1,), tl.float32)
        total = tl.zeros((WIDTH,), tl.float32)
        none = tl.arange(0, 1)
        for part in range(0, parts, AT_ONCE):
            for other in tl.static_range(AT_ONCE):
                at = first + (part + other) * queries
                more_peak = tl.load(stats + 2 * at + none, mask=part + other + none < parts, other=float("-inf"))
                more_weight = tl.load(stats + 2 * at + 1 + none, mask=part + other + none < parts, other=0.0)
                more = tl.load(work + at * WIDTH + d, mask=part + other + 0 * d < parts, other=0.0)
                peak, weight, total = add_part(peak, weight, total, more_peak, more_weight, more)
        token = (begin + row // GROUP).to(tl.int64) * HEADS + head * GROUP + row % GROUP
        total = total[None, :]
        if SINKS:
            sink = tl.load(sinks + head * GROUP + row % GROUP + none)
            weight, total = with_sink(peak, weight, total, sink)
        mixed = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
        place = token * DIM + d[None, :]
        tl.store(out + place, mixed.to(out.dtype.element_ty), mask=d[None, :] < DIM)


@triton.jit
def _sequence(starts, sequences, tile, BLOCK_M: tl.constexpr):
    """The sequence that a tile is one of, and which of its tiles: see ``attention_many``."""
    low, high = tl.full((), 0, tl.int32), sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // BLOCK_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(starts + low) // BLOCK_M + low)


@triton.jit
def attention_alike_many(
    q, keys, values, key_scales, value_scales, key_groups, value_groups,
    sinks, starts, lengths, table, out, sequences, columns, block, window,
    gain, factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, NEW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, WHOLE: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr,
    ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of more than ``NEW`` new tokens; the others are left alone. Grid: (T // BLOCK_M + B, HEADS).

    Args:
        q, keys, values, key_scales, value_scales, key_groups, value_groups,
            sinks, starts, lengths, table, out, columns, block, window, gain,
            factor, ELEMENT, ASM, PART: as for ``attention_alike_few``.
        sequences: B.
        BLOCK_M: queries of a program; BLOCK_N: keys of a step.
    """
    head = tl.program_id(1)
    if OVERLAP:
        let_next_start()
        wait_for_last()
    # The last tiles of a prompt see the most keys: they begin first.
    b, tile = _sequence(starts, sequences, tl.num_programs(0) - 1 - tl.program_id(0), BLOCK_M)
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if (new > NEW) & (tile * BLOCK_M < new):
        d = tl.arange(0, WIDTH)[None, :]
        place = ((begin + row).to(tl.int64) * HEADS + head)[:, None] * DIM + d
        inside = (row < new)[:, None] & (d < DIM)
        query = tl.load(q + place, mask=inside, other=0.0)
        newest = length - new + row
        oldest_query = length - new + tile * BLOCK_M
        end = tl.minimum(oldest_query + BLOCK_M, length)
        first = _oldest(oldest_query, window, BLOCK_N, WINDOW, CHUNK)  # where keys begin that a query sees
        whole = first  # and where those begin that all queries see
        if WINDOW or CHUNK:
            of_last = oldest_seen(oldest_query + BLOCK_M - 1, window, WINDOW, CHUNK)
            whole = tl.cdiv(tl.maximum(of_last, 0), BLOCK_N) * BLOCK_N
        diagonal = tl.maximum((oldest_query + 1) // BLOCK_N * BLOCK_N, first)
        whole = tl.minimum(tl.maximum(whole, first), diagonal)
        blocks = table + b.to(tl.int64) * columns
        kv_head = head // (HEADS // KV_HEADS)
        peaks = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        weights = tl.zeros((BLOCK_M,), tl.float32)
        totals = tl.zeros((BLOCK_M, WIDTH), tl.float32)
        at = first
        while at < end:
            size = part_size(at, PART)
            then = tl.minimum(at // size * size + size, end)
            peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            sums = tl.zeros((BLOCK_M, _SUMS), tl.float32)
            total = tl.zeros((BLOCK_M, WIDTH), tl.float32)
            if WINDOW or CHUNK:
                peak, sums, total = _steps(
                    query, keys, values, key_scales, value_scales, key_groups, value_groups,
                    blocks, at, tl.minimum(whole, then), length, newest,
                    block, kv_head, gain, factor, window, peak, sums, total, KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE,
                    WINDOW, CHUNK, SOFTCAP, PRECISION, ELEMENT, ASM, True,
                )  # fmt: skip
            peak, sums, total = _steps(
                query, keys, values, key_scales, value_scales, key_groups, value_groups, blocks, tl.maximum(at, whole),
                tl.minimum(diagonal, then), length, newest, block, kv_head, gain, factor, window, peak, sums, total,
                KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE, WINDOW, CHUNK, SOFTCAP, PRECISION, ELEMENT, ASM, False,
            )  # fmt: skip
            peak, sums, total = _steps(
                query, keys, values, key_scales, value_scales, key_groups, value_groups,
                blocks, tl.maximum(at, diagonal), then, length, newest,
                block, kv_head, gain, factor, window, peak, sums, total, KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE, WINDOW,
                CHUNK, SOFTCAP, PRECISION, ELEMENT, ASM, True,
            )  # fmt: skip
            peaks, weights, totals = add_part(peaks, weights, totals, peak, tl.max(sums, axis=1), total)
            at = then
        if SINKS:
            sink = tl.full((BLOCK_M,), 0.0, tl.float32) + tl.load(sinks + head)
            weights, totals = with_sink(peaks, weights, totals, sink)
        mixed = totals / tl.where(weights == 0.0, 1.0, weights)[:, None]
        tl.store(out + place, mixed.to(out.dtype.element_ty), mask=inside)
