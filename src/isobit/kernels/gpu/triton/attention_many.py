"""Attention of sequences with more than a few new tokens: tiles of queries of one head, over the keys they see."""

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
from isobit.kernels.gpu.triton.pdl import wait


@triton.jit
def _sequence(starts, sequences, tile, BLOCK_M: tl.constexpr):
    """The sequence that a tile is one of, and which of its tiles.

    Sequence b has the numbers from ``starts[b] // BLOCK_M + b`` on: always enough for its tiles, sometimes one more.
    """
    low, high = tl.full((), 0, tl.int32), sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) // BLOCK_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(starts + low) // BLOCK_M + low)


@triton.jit
def _steps(
    query, keys, values, key_scales, value_scales, key_groups, value_groups,
    table, first, end, length, newest, block, head, gain, factor, window,
    peak, weight, total,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr,
    ASM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with the keys of positions ``first`` to ``end - 1`` added, which all queries see, or not (MASKED)."""
    dtype: tl.constexpr = query.dtype
    OVER: tl.constexpr = "" if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" else ELEMENT
    held = block_of(table, first, length - 1, block, WHOLE)
    for at in range(first, end, BLOCK_N):
        base, rows = rows_of_keys(table, held, at, length - 1, block, head, KV_HEADS, WHOLE, MASKED, BLOCK_N)
        held = block_of(table, at + BLOCK_N, length - 1, block, WHOLE)
        key = tile_of(keys, key_groups, base, rows, dtype, ELEMENT, DIM, WIDTH, ASM)
        value = tile_of(values, value_groups, base, rows, dtype, ELEMENT, DIM, WIDTH, ASM)
        key_scale = scales_of(key_scales, base, rows, dtype, OVER)
        value_scale = scales_of(value_scales, base, rows, dtype, OVER)
        products = scores(query, key, key_scale, gain, OVER, SOFTCAP, PRECISION)
        if MASKED:
            position = (at + tl.arange(0, BLOCK_N))[None, :]
            seen = position <= newest[:, None]
            if WINDOW or CHUNK:
                seen = seen & (position >= oldest_seen(newest, window, WINDOW, CHUNK)[:, None])
            products = tl.where(seen, products, float("-inf"))
        peak, weight, total = add_tile(
            products, factor, value, value_scale, peak, weight, total, OVER, PRECISION, MASKED
        )
    return peak, weight, total


@triton.jit
def attention_many(
    q, keys, values, key_scales, value_scales, key_groups, value_groups,
    sinks, starts, lengths, table, out, sequences, columns, block, window,
    gain, factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, NEW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr,
    SINKS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of more than ``NEW`` new tokens; the others are left alone. Grid: (T // BLOCK_M + B, HEADS).

    A query's sums go over tiles of keys that begin at multiples of BLOCK_N, and tiles of which it sees nothing change
    no bit of them: its result does not depend on which of its neighbours are new, too.

    Args:
        q, keys, values, key_scales, value_scales, key_groups, value_groups,
            sinks, starts, lengths, table, out, columns, block, window, gain,
            factor, ELEMENT, ASM: as for ``attention_few``.
        sequences: B.
        BLOCK_M: queries of a program; BLOCK_N: keys of a step.
    """
    head = tl.program_id(1)
    if OVERLAP:
        wait()
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
        first, whole = 0, 0  # where keys begin that a query sees, and that all queries see
        if WINDOW or CHUNK:
            first = tl.maximum(oldest_seen(oldest_query, window, WINDOW, CHUNK), 0) // BLOCK_N * BLOCK_N
            of_last = oldest_seen(oldest_query + BLOCK_M - 1, window, WINDOW, CHUNK)
            whole = tl.cdiv(tl.maximum(of_last, 0), BLOCK_N) * BLOCK_N
        diagonal = tl.maximum((oldest_query + 1) // BLOCK_N * BLOCK_N, first)
        whole = tl.minimum(tl.maximum(whole, first), diagonal)
        blocks = table + b.to(tl.int64) * columns
        kv_head = head // (HEADS // KV_HEADS)
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        weight = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M, WIDTH), tl.float32)
        if WINDOW or CHUNK:
            peak, weight, total = _steps(
                query, keys, values, key_scales, value_scales, key_groups, value_groups,
                blocks, first, whole, length, newest, block, kv_head,
                gain, factor, window, peak, weight, total, KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE, WINDOW, CHUNK,
                SOFTCAP, PRECISION, ELEMENT, ASM, True,
            )  # fmt: skip
        peak, weight, total = _steps(
            query, keys, values, key_scales, value_scales, key_groups, value_groups,
            blocks, whole, diagonal, length, newest, block, kv_head,
            gain, factor, window, peak, weight, total, KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE, WINDOW, CHUNK, SOFTCAP,
            PRECISION, ELEMENT, ASM, False,
        )  # fmt: skip
        peak, weight, total = _steps(
            query, keys, values, key_scales, value_scales, key_groups, value_groups,
            blocks, diagonal, end, length, newest, block, kv_head,
            gain, factor, window, peak, weight, total, KV_HEADS, DIM, WIDTH, BLOCK_N, WHOLE, WINDOW, CHUNK, SOFTCAP,
            PRECISION, ELEMENT, ASM, True,
        )  # fmt: skip
        if SINKS:
            sink = tl.full((BLOCK_M,), 0.0, tl.float32) + tl.load(sinks + head)
            weight, total = with_sink(peak, weight, total, sink)
        mixed = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
        tl.store(out + place, mixed.to(out.dtype.element_ty), mask=inside)
