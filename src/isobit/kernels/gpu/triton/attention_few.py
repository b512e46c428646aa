"""Attention of sequences with one new token, or a few: the keys are split among programs.

A part is a number of keys that follows from the length of the sequence alone, and the parts are added in one order. So
a token's result does not depend on the sequences beside it, nor on how many programs there are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.attention import (
    add_tile,
    block_of,
    oldest_seen,
    rows_of_keys,
    scales_of,
    scores,
    tile_of,
    with_sink,
)
from isobit.kernels.gpu.triton.pdl import let_next_start, wait_for_last

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def parts_of(
    length, new, window, BLOCK_N: tl.constexpr, PART: tl.constexpr, ONE: tl.constexpr, MOST: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The first key that one of the new tokens sees, and the step that it is in; keys of a part; how many parts."""
    oldest = 0
    if WINDOW or CHUNK:
        oldest = tl.maximum(oldest_seen(length - new, window, WINDOW, CHUNK), 0) // BLOCK_N * BLOCK_N
    size = tl.maximum(tl.cdiv(length - oldest, PART * MOST), 1) * PART
    size = tl.where(length - oldest <= ONE, ONE, size)
    return oldest, size, tl.maximum(tl.cdiv(length - oldest, size), 1)


@triton.jit
def _part(
    query, keys, values, key_scales, value_scales, key_groups, value_groups,
    table, first, end, length, newest, block, head, gain, factor, window,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    ELEMENT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """What the keys of positions ``first`` to ``end - 1`` give the queries: see ``add_tile``."""
    dtype: tl.constexpr = query.dtype
    OVER: tl.constexpr = "" if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" else ELEMENT
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    held = block_of(table, first, length - 1, block, WHOLE)
    for at in range(first, end, BLOCK_N):
        base, rows = rows_of_keys(table, held, at, length - 1, block, head, KV_HEADS, WHOLE, True, BLOCK_N)
        held = block_of(table, at + BLOCK_N, length - 1, block, WHOLE)
        key = tile_of(keys, key_groups, base, rows, dtype, ELEMENT, DIM, WIDTH, ASM)
        value = tile_of(values, value_groups, base, rows, dtype, ELEMENT, DIM, WIDTH, ASM)
        key_scale = scales_of(key_scales, base, rows, dtype, OVER)
        value_scale = scales_of(value_scales, base, rows, dtype, OVER)
        position = at + tl.arange(0, BLOCK_N)
        seen = (position < end)[None, :] & (position[None, :] <= newest[:, None])
        if WINDOW or CHUNK:
            seen = seen & (position[None, :] >= oldest_seen(newest, window, WINDOW, CHUNK)[:, None])
        products = scores(query, key, key_scale, gain, OVER, SOFTCAP, PRECISION)
        products = tl.where(seen, products, float("-inf"))
        peak, weight, total = add_tile(products, factor, value, value_scale, peak, weight, total, OVER, PRECISION, True)
    return peak, weight, total


@triton.jit
def attention_few(
    q, keys, values, key_scales, value_scales, key_groups, value_groups,
    sinks, starts, lengths, table, out, work, stats, columns, room, queries,
    block, window, gain, factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, NEW: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, PART: tl.constexpr, ONE: tl.constexpr, MOST: tl.constexpr,
    WHOLE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SINKS: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of up to ``NEW`` new tokens; the others are left alone. Grid: (programs, KV_HEADS, B).

    ``starts``, ``lengths`` and ``table`` are read before the kernel in front has ended: no kernel that lets others
    start early writes them.

    Args:
        q: ``[T, HEADS * DIM]``, rotated.
        keys, values: ``[blocks, KV_HEADS, block, DIM]``, of the dtype of q or codes, the new tokens' among them; codes
            of four bits are two to a byte.
        key_scales, value_scales: float32 ``[blocks, KV_HEADS, block]``, of codes.
        key_groups, value_groups: uint8 ``[blocks, KV_HEADS, block, groups]``, of codes whose groups have scales.
        sinks: float32 ``[HEADS]``, if SINKS; see ``with_sink``.
        starts, lengths, table: of ``kernels.sequences.Sequences``; ``table`` has ``columns`` columns.
        out: ``[T, HEADS * DIM]``, of sequences with one part; zeros where the length is 0.
        work, stats: float32 ``[B, KV_HEADS, room, queries, WIDTH]`` and ``[.., 2]``: the sums of the parts of others.
        room, queries: parts, and queries of each, that there is room for.
        window: latest tokens that a token sees, if WINDOW; of a chunk, of which it sees its own alone, if CHUNK.
        gain, factor: see ``scores`` and ``add_tile``.
        WIDTH: DIM rounded up to a power of two.
        ROWS: queries of a tile: new tokens times the heads that share a head of keys.
        BLOCK_N: keys of a step; divides PART.
        PART: keys of a part where there are at most MOST of them, which is a power of two.
        ONE: keys that are not worth more than one part; at least PART.
        ELEMENT: element format of codes, or what ``grouped.py`` calls theirs; empty where there are none.
        ASM: whether codes are decoded in inline assembly.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    head, b = tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    oldest, size, parts = parts_of(length, new, window, BLOCK_N, PART, ONE, MOST, WINDOW, CHUNK)
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
            first = oldest + part * size
            peak, weight, total = _part(
                query, keys, values, key_scales, value_scales, key_groups, value_groups,
                table + b.to(tl.int64) * columns, first,
                tl.minimum(first + size, length), length, newest, block, head, gain, factor, window, KV_HEADS, DIM,
                WIDTH, ROWS, BLOCK_N, WHOLE, WINDOW, CHUNK, SOFTCAP, PRECISION, ELEMENT, ASM,
            )  # fmt: skip
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
def attention_merge(
    sinks, starts, lengths, out, work, stats, room, queries, window,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, NEW: tl.constexpr,
    BLOCK_N: tl.constexpr, PART: tl.constexpr, ONE: tl.constexpr, MOST: tl.constexpr, WINDOW: tl.constexpr,
    CHUNK: tl.constexpr, SINKS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Adds the parts that ``attention_few`` left. Grid: (queries, KV_HEADS, B); arguments as there."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    row, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    _, _, parts = parts_of(tl.load(lengths + b), new, window, BLOCK_N, PART, ONE, MOST, WINDOW, CHUNK)
    if OVERLAP:
        wait_for_last()
    if (new <= NEW) & (row < new * GROUP) & (parts > 1):
        part = tl.arange(0, MOST)
        at = ((b * KV_HEADS + head).to(tl.int64) * room + part) * queries + row
        peaks = tl.load(stats + 2 * at, mask=part < parts, other=float("-inf"))
        sums = tl.load(stats + 2 * at + 1, mask=part < parts, other=0.0)
        d = tl.arange(0, WIDTH)
        totals = tl.load(work + at[:, None] * WIDTH + d[None, :], mask=(part < parts)[:, None], other=0.0)
        peak = tl.max(peaks, axis=0)
        if SINKS:
            sink = tl.load(sinks + head * GROUP + row % GROUP) * _LOG2_E
            peak = tl.maximum(peak, sink)
        share = tl.exp2(peaks - tl.where(peak == float("-inf"), 0.0, peak))
        weight = tl.sum(share * sums, axis=0)
        if SINKS:
            weight += tl.exp2(sink - peak)
        mixed = tl.sum(totals * share[:, None], axis=0) / tl.where(weight == 0.0, 1.0, weight)
        token = (begin + row // GROUP).to(tl.int64) * HEADS + head * GROUP + row % GROUP
        tl.store(out + token * DIM + d, mixed.to(out.dtype.element_ty), mask=d < DIM)
