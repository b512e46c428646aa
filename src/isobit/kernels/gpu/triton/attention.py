"""What both attention kernels do with a tile of keys: addresses in the cache, codes, scores, sums.

Scores are in powers of two (times log2 e), so that one ``exp2`` is a weight. Everything is summed in float32.

A cache of codes (ELEMENT) is read as docs/numerics.md, section 9, says: codes are multiplied as the numbers that they
are, the scale of a key is put to its scores, and that of a value to its weights. Where groups of a head share a scale,
codes are multiplied by it first (``grouped.py``), and only what stands above those (OVER) goes to scores and weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.decode import to_bf16, to_f16
from isobit.kernels.gpu.triton.grouped import grouped_tile

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def block_of(table, position, last, block, WHOLE: tl.constexpr):
    """The block that holds a position, or the last one there is. Where tiles are not WHOLE nobody asks for it.

    It is asked for a tile ahead: an address that is looked up when it is needed stops the loads behind it.
    """
    if WHOLE:
        return tl.load(table + tl.minimum(position, last) // block)
    else:
        return 0


@triton.jit
def rows_of_keys(
    table, held, at, last, block, head, KV_HEADS: tl.constexpr, WHOLE: tl.constexpr, CUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rows of the cache of positions ``at`` and on, as a first one (int64) and ``[BLOCK_N]`` from there.

    Args:
        table: the blocks of this sequence, in order.
        held: that of position ``at``, if WHOLE.
        at, last: first position, and the last one that is there.
        block: tokens of a block.
        head: of keys and values.
        WHOLE: the positions lie in one block.
        CUT: some may be behind ``last``: those are that one.
    """
    n = tl.arange(0, BLOCK_N)
    if WHOLE:
        base = (held.to(tl.int64) * KV_HEADS + head) * block + at % block
        return base, tl.minimum(n, last - at) if CUT else n
    else:
        position = tl.minimum(at + n, last)
        blocks = tl.load(table + position // block).to(tl.int64)
        return tl.full((), 0, tl.int64), (blocks * KV_HEADS + head) * block + position % block


@triton.jit
def tile_of(
    memory, groups, base, rows, DTYPE: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Keys or values ``[BLOCK_N, WIDTH]`` as numbers of DTYPE: of codes, less ``_gain``; zeros from DIM on.

    With scales of ``groups`` they are bfloat16 for float16, too.
    """
    if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" or ELEMENT == "nvfp4":
        return grouped_tile(memory, groups, base, rows, DTYPE, ELEMENT, DIM, WIDTH, ASM)
    else:
        d = tl.arange(0, WIDTH)[None, :]
        place = memory + base * DIM + (rows[:, None] * DIM + d)
        if DIM == WIDTH:
            read = tl.load(place)
        else:
            read = tl.load(place, mask=d < DIM, other=0)
        if ELEMENT == "":
            return read
        elif DTYPE == tl.bfloat16:
            return to_bf16(read, ELEMENT, ASM)
        else:
            return to_f16(read, ELEMENT, ASM).to(DTYPE)


@triton.jit
def dot_of(query, key, PRECISION: tl.constexpr):
    """``query [M, D]`` by ``key [N, D]``. A float16 query by bfloat16 keys is two numbers of bfloat16, exactly."""
    if query.dtype == tl.float16 and key.dtype == tl.bfloat16:
        high = query.to(tl.bfloat16)
        low = (query.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(high, tl.trans(key), tl.dot(low, tl.trans(key)))
    else:
        return tl.dot(query, tl.trans(key), input_precision=PRECISION)


@triton.jit
def scales_of(scales, base, rows, DTYPE: tl.constexpr, ELEMENT: tl.constexpr):
    """What the numbers of ``tile_of`` are to be multiplied by, float32 ``[BLOCK_N]``; 1 where there are no codes."""
    if ELEMENT == "":
        return 1.0
    elif ELEMENT == "e4m3fn" and DTYPE != tl.bfloat16:
        return tl.load(scales + base + rows) * 256.0
    else:
        return tl.load(scales + base + rows)


@triton.jit
def scores(query, key, scale, gain, ELEMENT: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """``query [M, D]`` by ``key [N, D]``; scaled and capped if SOFTCAP, to minus one up to one.

    Args:
        scale: of the keys, if they are codes.
        gain: what products are multiplied by before the cap: the scale over the cap.
    """
    products = dot_of(query, key, PRECISION)
    if ELEMENT != "":
        products = products * scale[None, :]
    if SOFTCAP:
        # tanh; its error of some 1e-7 is no more than that of the products in float32
        products = 1.0 - 2.0 / (tl.exp2(products * (gain * (2.0 * _LOG2_E))) + 1.0)
    return products


@triton.jit
def add_values(weights, value, scale, total, ELEMENT: tl.constexpr, PRECISION: tl.constexpr):
    """``total [M, D]`` plus ``weights [M, N]`` by ``value [N, D]``, whose codes have a ``scale [N]``.

    bfloat16 keeps 8 bits of a weight, which would be the largest error of all: such weights are two numbers, of which
    the second is what the first leaves. float16 has few exponents: there scales are relative to the tile's largest.
    """
    if value.dtype == tl.bfloat16:
        if ELEMENT != "":
            weights = weights * scale[None, :]
        high = weights.to(tl.bfloat16)
        low = (weights - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(high, value, tl.dot(low, value, total))
    elif ELEMENT != "" and value.dtype == tl.float16:
        largest = tl.max(scale, axis=0)
        weights = weights * (scale / largest)[None, :]
        added = tl.dot(weights.to(tl.float16), value)
        return tl.fma(added, tl.full(added.shape, largest, tl.float32), total)
    else:
        if ELEMENT != "":
            weights = weights * scale[None, :]
        return tl.dot(weights.to(value.dtype), value, total, input_precision=PRECISION)


@triton.jit
def add_tile(
    products, factor, value, scale, peak, weight, total, ELEMENT: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One more tile of keys in a sum of exponents: the new largest exponent, sum of weights, and weighted values.

    What is fused is written so, for masked tiles and whole ones to give the same bits.

    Args:
        products: ``[M, N]``, minus infinity where a query does not see a key (MASKED).
        factor: what makes exponents of two of products; positive.
        value: ``[N, D]``; scale: of its rows, if they are codes.
        peak, weight: ``[M]``: the largest exponent so far, and the sum of weights relative to it.
        total: ``[M, D]``.
    """
    higher = tl.maximum(peak, tl.max(products, axis=1) * factor)
    origin = higher
    if MASKED:  # a query that has seen nothing yet
        origin = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(tl.fma(products, tl.full(products.shape, factor, tl.float32), -origin[:, None]))
    less = tl.exp2(peak - origin)
    weight = tl.fma(weight, less, tl.sum(weights, axis=1))
    total = add_values(weights, value, scale, total * less[:, None], ELEMENT, PRECISION)
    return higher, weight, total


@triton.jit
def oldest_seen(newest, window, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first position that queries at ``newest`` see where there is a WINDOW or a CHUNK of ``window`` tokens."""
    if CHUNK:
        return newest // window * window
    else:
        return newest - window + 1


@triton.jit
def with_sink(peak, weight, total, sink):
    """What ``add_tile`` leaves, with one more score that takes part in the sum of weights and gives nothing.

    Args:
        peak, weight, total: ``[M]``, ``[M]``, ``[M, D]``.
        sink: ``[M]``: natural scores, as models hold them.
    """
    sink = sink * _LOG2_E
    higher = tl.maximum(peak, sink)
    less = tl.exp2(peak - higher)
    return tl.fma(weight, less, tl.exp2(sink - higher)), total * less[:, None]
