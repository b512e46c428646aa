"""Attention of prompts where a warp group multiplies by itself (sm_90): the next products run under the last weights.

What ``attention_many`` does, with the bits that it gives. There a program multiplies, then weighs, then multiplies
again, and its matrix unit waits meanwhile. Here the scores of the next tile and the values of the last one are on the
matrix unit while weights are made of what came before; copies from the cache run two tiles ahead.

Written in Gluon, Triton's lower layer, for who waits for what is what this is about.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Gluon's names changed between Triton 3.6 and 3.9.
_sync = getattr(gl, "thread_barrier", None) or gl.barrier
_copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared

_LOG2_E = gl.constexpr(1.4426950408889634)
_HALVES = gl.constexpr(
    """{ .reg .b32 a, b;
cvt.rn.bf16x2.f32 $0, $3, $2;
shl.b32 a, $0, 16; and.b32 b, $0, 0xffff0000;
sub.f32 a, $2, a; sub.f32 b, $3, b;
cvt.rn.bf16x2.f32 $1, b, a; }"""
)


@gluon.jit
def _sequence(starts, sequences, tile, BLOCK_M: gl.constexpr):
    """The sequence that a tile is one of, and which of its tiles; see ``attention_many``."""
    low = sequences * 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        if gl.load(starts + middle) // BLOCK_M + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (gl.load(starts + low) // BLOCK_M + low)


@gluon.jit
def _oldest_seen(newest, window, CHUNK: gl.constexpr):
    """See ``attention.oldest_seen``."""
    if CHUNK:
        return newest // window * window
    else:
        return newest - window + 1


@gluon.jit
def _block_of(table, at, last, block):
    """The block that holds a position, or the last one there is."""
    return gl.load(table + gl.minimum(at, last) // block)


@gluon.jit
def _base_of(held, at, last, block, head, KV_HEADS: gl.constexpr):
    """The row of the cache where a tile begins, that of position ``at`` in block ``held``; int64."""
    return (held.to(gl.int64) * KV_HEADS + head) * block + gl.minimum(at, last) % block


@gluon.jit
def _copy_tile(smem, memory, base, at, last, DIM: gl.constexpr, BLOCK_N: gl.constexpr, LOAD: gl.constexpr):
    """Asks for keys or values of positions ``at`` and on; those behind ``last`` are that one, if it lies there."""
    rows = gl.maximum(gl.minimum(gl.arange(0, BLOCK_N, gl.SliceLayout(1, LOAD)), last - at), 0)
    place = rows[:, None] * DIM + gl.arange(0, DIM, gl.SliceLayout(0, LOAD))[None, :]
    _copy(smem, memory + base * DIM + place)


@gluon.jit
def _halves(weights, DTYPE: gl.constexpr):
    """Weights as numbers of DTYPE, and what that leaves of them, where it is bfloat16; see ``attention.add_values``."""
    if DTYPE == gl.bfloat16:
        return gl.inline_asm_elementwise(
            _HALVES, "=r,=r,r,r", [weights], dtype=(gl.bfloat16, gl.bfloat16), is_pure=True, pack=2
        )
    else:
        rounded = weights.to(DTYPE)
        return rounded, rounded


@gluon.jit
def _weigh(products, first, newest, window, gain, factor, peak,
           WINDOW: gl.constexpr, CHUNK: gl.constexpr, SOFTCAP: gl.constexpr, MASKED: gl.constexpr):  # fmt: skip
    """Weights of products ``[M, N]``, the new peak, and what all before is to be multiplied by.

    See ``attention.scores`` and ``attention.add_tile``.
    """
    SCORES: gl.constexpr = products.type.layout
    M: gl.constexpr = products.shape[0]
    N: gl.constexpr = products.shape[1]
    if SOFTCAP:
        products = 1.0 - 2.0 / (gl.exp2(products * (gain * (2.0 * _LOG2_E))) + 1.0)
    if MASKED:
        position = (first + gl.arange(0, N, gl.SliceLayout(0, SCORES)))[None, :]
        seen = position <= newest[:, None]
        if WINDOW or CHUNK:
            seen = seen & (position >= _oldest_seen(newest, window, CHUNK)[:, None])
        products = gl.where(seen, products, float("-inf"))
    higher = gl.maximum(peak, gl.max(products, 1) * factor)
    origin = higher
    if MASKED:
        origin = gl.where(higher == float("-inf"), 0.0, higher)
    less = gl.exp2(peak - origin)
    factors = gl.full([M, N], factor, gl.float32, SCORES)
    origins = gl.expand_dims(-origin, 1) + gl.zeros([M, N], gl.float32, SCORES)
    return gl.exp2(gl.fma(products, factors, origins)), higher, less


@gluon.jit
def _steps(
    left, keys, values, k_ring, v_ring, blocks, first, end, last, block, head, gain, factor, newest, window, slot, base,
    held, peak, weight, weights, total,
    KV_HEADS: gl.constexpr, DIM: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, DEPTH: gl.constexpr,
    WINDOW: gl.constexpr, CHUNK: gl.constexpr, SOFTCAP: gl.constexpr, LOAD: gl.constexpr, SCORES: gl.constexpr,
    SUMS: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Values of the tiles ``first`` to ``end - 1`` added, and weights of the next ones made.

    Args:
        left: queries.
        slot: of the rings, where the values of the first tile are; the keys of the next are in the next one.
        base: where the keys begin in the cache that were asked for last, whose values are asked for next.
        held: the block of the keys that are asked for next.
        weights: ``[M, N]`` of the first tile, relative to ``peak``.
    """
    ROWS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    dtype: gl.constexpr = keys.dtype.element_ty
    empty = gl.zeros((BLOCK_M, BLOCK_N), gl.float32, SCORES)
    for tile in range(first, end):
        high, low = _halves(weights, dtype)
        high, low = gl.convert_layout(high, ROWS), gl.convert_layout(low, ROWS)
        async_copy.wait_group(DEPTH - 1)
        _sync()
        after = gl.where(slot == DEPTH, 0, slot + 1)
        done = gl.where(slot == 0, DEPTH, slot - 1)  # the values of the tile before
        coming = warpgroup_mma(left, k_ring.index(after).permute((1, 0)), empty, use_acc=False, is_async=True)
        if dtype == gl.bfloat16:
            running = warpgroup_mma(low, v_ring.index(slot), total, is_async=True)
            running = warpgroup_mma(high, v_ring.index(slot), running, is_async=True)
        else:
            running = warpgroup_mma(high, v_ring.index(slot), total, is_async=True)
        at = (tile + 1 + DEPTH) * BLOCK_N
        _copy_tile(v_ring.index(done), values, base, at - BLOCK_N, last, DIM, BLOCK_N, LOAD)
        base = _base_of(held, at, last, block, head, KV_HEADS)
        _copy_tile(k_ring.index(slot), keys, base, at, last, DIM, BLOCK_N, LOAD)
        async_copy.commit_group()
        held = _block_of(blocks, at + BLOCK_N, last, block)
        if dtype == gl.bfloat16:
            products = warpgroup_mma_wait(2, deps=[coming])
        else:
            products = warpgroup_mma_wait(1, deps=[coming])
        weights, peak, less = _weigh(
            products, (tile + 1) * BLOCK_N, newest, window, gain, factor, peak, WINDOW, CHUNK, SOFTCAP, MASKED
        )
        weight = gl.fma(weight, less, gl.sum(weights, 1))
        total, weights = warpgroup_mma_wait(0, deps=[running, weights])  # not before the weights are made
        total = total * gl.expand_dims(gl.convert_layout(less, gl.SliceLayout(1, SUMS)), 1)
        slot = after
    return slot, base, held, peak, weight, weights, total


@gluon.jit
def _fill(
    keys, values, k_ring, v_ring, blocks, tile, last, block, head,
    KV_HEADS: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr, DEPTH: gl.constexpr, LOAD: gl.constexpr,
):  # fmt: skip
    """Asks for the first tiles: the keys of ``tile``, then DEPTH times the values of a tile and the keys of the next.

    Returns:
        ``base`` and ``held`` of ``_steps``.
    """
    at = tile * BLOCK_N
    base = _base_of(_block_of(blocks, at, last, block), at, last, block, head, KV_HEADS)
    _copy_tile(k_ring.index(0), keys, base, at, last, DIM, BLOCK_N, LOAD)
    async_copy.commit_group()
    for ahead in gl.static_range(DEPTH):
        _copy_tile(v_ring.index(ahead), values, base, at, last, DIM, BLOCK_N, LOAD)
        at += BLOCK_N
        base = _base_of(_block_of(blocks, at, last, block), at, last, block, head, KV_HEADS)
        _copy_tile(k_ring.index(ahead + 1), keys, base, at, last, DIM, BLOCK_N, LOAD)
        async_copy.commit_group()
    return base, _block_of(blocks, at + BLOCK_N, last, block)


@gluon.jit
def _attend(
    query, keys, values, sinks, blocks, oldest_query, length, block, head, window, gain, factor,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, DIM: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    DEPTH: gl.constexpr, WINDOW: gl.constexpr, CHUNK: gl.constexpr, SINKS: gl.constexpr, SOFTCAP: gl.constexpr,
    LOAD: gl.constexpr,
):  # fmt: skip
    """The result of a tile of queries ``[BLOCK_M, DIM]``, of which the first stands at position ``oldest_query``."""
    WARPS: gl.constexpr = gl.num_warps()
    dtype: gl.constexpr = query.dtype
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, BLOCK_N, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, DIM, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    left = gl.allocate_shared_memory(dtype, [BLOCK_M, DIM], SHARED, query)
    fence_async_shared()
    k_ring = gl.allocate_shared_memory(dtype, [DEPTH + 1, BLOCK_N, DIM], SHARED)
    v_ring = gl.allocate_shared_memory(dtype, [DEPTH + 1, BLOCK_N, DIM], SHARED)
    last = length - 1
    newest = oldest_query + gl.arange(0, BLOCK_M, gl.SliceLayout(1, SCORES))
    end = gl.cdiv(gl.minimum(oldest_query + BLOCK_M, length), BLOCK_N)
    # tiles of keys: the first that a query sees, the first that all queries see, and the first that not all do
    first = oldest_query * 0
    whole = first
    if WINDOW or CHUNK:
        first = gl.maximum(_oldest_seen(oldest_query, window, CHUNK), 0) // BLOCK_N
        whole = gl.cdiv(gl.maximum(_oldest_seen(oldest_query + BLOCK_M - 1, window, CHUNK), 0), BLOCK_N)
    diagonal = gl.minimum((oldest_query + 1) // BLOCK_N, end)
    whole = gl.maximum(whole - 1, first)
    diagonal = gl.maximum(diagonal - 1, whole)
    kv_head = head // (HEADS // KV_HEADS)
    base, held = _fill(
        keys, values, k_ring, v_ring, blocks, first, last, block, kv_head, KV_HEADS, DIM, BLOCK_N, DEPTH, LOAD
    )
    async_copy.wait_group(DEPTH)
    _sync()
    empty = gl.zeros((BLOCK_M, BLOCK_N), gl.float32, SCORES)
    products = warpgroup_mma(left, k_ring.index(0).permute((1, 0)), empty, use_acc=False)
    peak = gl.full([BLOCK_M], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    weights, peak, less = _weigh(
        products, first * BLOCK_N, newest, window, gain, factor, peak, WINDOW, CHUNK, SOFTCAP, True
    )
    weight = gl.sum(weights, 1)
    total = gl.zeros((BLOCK_M, DIM), gl.float32, SUMS)
    slot = first * 0
    if WINDOW or CHUNK:
        slot, base, held, peak, weight, weights, total = _steps(
            left, keys, values, k_ring, v_ring, blocks, first, whole, last, block, kv_head, gain, factor, newest,
            window, slot, base, held, peak, weight, weights, total, KV_HEADS, DIM, BLOCK_M, BLOCK_N, DEPTH, WINDOW,
            CHUNK, SOFTCAP, LOAD, SCORES, SUMS, True,
        )  # fmt: skip
    slot, base, held, peak, weight, weights, total = _steps(
        left, keys, values, k_ring, v_ring, blocks, whole, diagonal, last, block, kv_head, gain, factor, newest,
        window, slot, base, held, peak, weight, weights, total, KV_HEADS, DIM, BLOCK_M, BLOCK_N, DEPTH, WINDOW,
        CHUNK, SOFTCAP, LOAD, SCORES, SUMS, False,
    )  # fmt: skip
    slot, base, held, peak, weight, weights, total = _steps(
        left, keys, values, k_ring, v_ring, blocks, diagonal, end - 1, last, block, kv_head, gain, factor, newest,
        window, slot, base, held, peak, weight, weights, total, KV_HEADS, DIM, BLOCK_M, BLOCK_N, DEPTH, WINDOW,
        CHUNK, SOFTCAP, LOAD, SCORES, SUMS, True,
    )  # fmt: skip
    ROWS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    high, low = _halves(weights, dtype)
    high, low = gl.convert_layout(high, ROWS), gl.convert_layout(low, ROWS)
    async_copy.wait_group(0)
    _sync()
    if dtype == gl.bfloat16:
        total = warpgroup_mma(low, v_ring.index(slot), total)
    total = warpgroup_mma(high, v_ring.index(slot), total)
    if SINKS:
        # ``attention.with_sink``, whose product and difference the compiler rounds once: so here.
        sink = gl.full([BLOCK_M], 0.0, gl.float32, gl.SliceLayout(1, SCORES)) + gl.load(sinks + head)
        higher = gl.maximum(peak, sink * _LOG2_E)
        less = gl.exp2(peak - higher)
        log2_e = gl.full([BLOCK_M], _LOG2_E, gl.float32, gl.SliceLayout(1, SCORES))
        weight = gl.fma(weight, less, gl.exp2(gl.fma(sink, log2_e, -higher)))
        total = total * gl.expand_dims(gl.convert_layout(less, gl.SliceLayout(1, SUMS)), 1)
    weight = gl.where(weight == 0.0, 1.0, weight)
    mixed = total / gl.expand_dims(gl.convert_layout(weight, gl.SliceLayout(1, SUMS)), 1)
    return gl.convert_layout(mixed.to(dtype), LOAD)


@gluon.jit
def attention_ahead(
    q, keys, values, sinks, starts, lengths, table, out, sequences, columns, block, window, gain, factor,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, DIM: gl.constexpr, NEW: gl.constexpr, BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr, DEPTH: gl.constexpr, WINDOW: gl.constexpr, CHUNK: gl.constexpr, SINKS: gl.constexpr,
    SOFTCAP: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """Sequences of more than ``NEW`` new tokens; the others are left alone. Grid: (HEADS, T // BLOCK_M + B).

    Args:
        q, keys, values, sinks, starts, lengths, table, out, sequences, columns, block, window, gain, factor, BLOCK_M,
            BLOCK_N: as for ``attention_many``; queries, keys and values have one dtype of 16 bits, and a block has
            whole tiles of keys.
        DEPTH: tiles that copies run ahead.
    """
    head = gl.program_id(0)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    # The last tiles of a prompt see the most keys: those of all heads begin first, so that short ones end it.
    b, tile = _sequence(starts, sequences, gl.num_programs(1) - 1 - gl.program_id(1), BLOCK_M)
    begin = gl.load(starts + b)
    new = gl.load(starts + b + 1) - begin
    length = gl.load(lengths + b)
    if (new > NEW) & (tile * BLOCK_M < new):
        LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [gl.num_warps(), 1], [1, 0])
        row = tile * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, LOAD))
        place = ((begin + row).to(gl.int64) * HEADS + head)[:, None] * DIM
        place += gl.arange(0, DIM, gl.SliceLayout(0, LOAD))[None, :]
        inside = (row < new)[:, None]
        if length > 0:
            query = gl.load(q + place, mask=inside, other=0.0)
            blocks = table + b.to(gl.int64) * columns
            result = _attend(
                query, keys, values, sinks, blocks, length - new + tile * BLOCK_M, length, block, head, window, gain,
                factor, HEADS, KV_HEADS, DIM, BLOCK_M, BLOCK_N, DEPTH, WINDOW, CHUNK, SINKS, SOFTCAP, LOAD,
            )  # fmt: skip
            gl.store(out + place, result, mask=inside)
        else:
            gl.store(out + place, gl.zeros((BLOCK_M, DIM), q.dtype.element_ty, LOAD), mask=inside)
