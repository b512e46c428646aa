"""What both attention kernels do with a tile of keys: addresses in the cache, scores, sums.

Scores are in powers of two (times log2 e), so that one ``exp2`` is a weight. Everything is summed in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_of_keys(table, at, last, block, head, KV_HEADS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows of the cache (int64 ``[BLOCK_N]``) of positions ``at`` and on; those behind ``last`` are that one's.

    Args:
        table: the blocks of this sequence, in order.
        at, last: first position, and the last one that is there.
        block: tokens of a block.
        head: of keys and values.
        WHOLE: the positions lie in one block.
    """
    if WHOLE:
        first = at // block
        base = (tl.load(table + first).to(tl.int64) * KV_HEADS + head) * block - first * block
        return base + tl.minimum(at + tl.arange(0, BLOCK_N), last)
    else:
        position = tl.minimum(at + tl.arange(0, BLOCK_N), last)
        blocks = tl.load(table + position // block).to(tl.int64)
        return (blocks * KV_HEADS + head) * block + position % block


@triton.jit
def scores(query, key, gain, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """``query [M, D]`` by ``key [N, D]``; scaled and capped if SOFTCAP, to minus one up to one.

    Args:
        gain: what products are multiplied by before the cap: the scale over the cap.
    """
    products = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    if SOFTCAP:
        # tanh; its error of some 1e-7 is no more than that of the products in float32
        products = 1.0 - 2.0 / (tl.exp2(products * (gain * (2.0 * _LOG2_E))) + 1.0)
    return products


@triton.jit
def add_values(weights, value, total, PRECISION: tl.constexpr):
    """``total [M, D]`` plus ``weights [M, N]`` by ``value [N, D]``.

    bfloat16 keeps 8 bits of a weight, which would be the largest error of all: such weights are two numbers, of which
    the second is what the first leaves.
    """
    if value.dtype == tl.bfloat16:
        high = weights.to(tl.bfloat16)
        low = (weights - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(high, value, tl.dot(low, value, total))
    else:
        return tl.dot(weights.to(value.dtype), value, total, input_precision=PRECISION)


@triton.jit
def add_tile(products, factor, value, peak, weight, total, PRECISION: tl.constexpr, MASKED: tl.constexpr):
    """One more tile of keys in a sum of exponents: the new largest exponent, sum of weights, and weighted values.

    What is fused is written so, for masked tiles and whole ones to give the same bits.

    Args:
        products: ``[M, N]``, minus infinity where a query does not see a key (MASKED).
        factor: what makes exponents of two of products; positive.
        value: ``[N, D]``.
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
    total = add_values(weights, value, total * less[:, None], PRECISION)
    return higher, weight, total
