"""The choice of experts, and the order in which their linears take the pairs: one launch, two where tokens are many.

What ``routing.py`` does in three launches and with the same bits at any number of tokens. A program chooses for a block
of tokens at a time; which experts are chosen, and the order of pairs, follow from the logits alone: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.experts import NOTHING
from isobit.kernels.gpu.triton.pdl import wait
from isobit.kernels.gpu.triton.routing import sparsely_mixed

_LOG2_E = tl.constexpr(1.4426950408889634)
_NONE = tl.constexpr(-0x80000000)  # below every key


@triton.jit
def _keys(values):
    """Integers that order as floats do, with one zero; NaN with a plus sign is above all."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.maximum(bits ^ ((bits >> 31) & 0x7FFFFFFF), _NONE + 1)


@triton.jit
def _of_keys(keys):
    """The floats of keys."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _best(keys, numbers, LAST: tl.constexpr):
    """The largest key of each row, and its number: of equal ones the lowest."""
    best = tl.max(keys, axis=1)
    return best, tl.minimum(tl.min(tl.where(keys == best[:, None], numbers, LAST), axis=1), LAST)


@triton.jit
def _in_good_groups(
    keys, number, EXPERTS: tl.constexpr, GROUPS: tl.constexpr, BEST_GROUPS: tl.constexpr, BY_TWO: tl.constexpr,
    GROUP_PAD: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Which experts are in the best groups: those of the best expert (or best two) each."""
    group = number // (EXPERTS // GROUPS)
    groups = tl.arange(0, GROUP_PAD)[None, :]
    quality = tl.full((BLOCK_T, GROUP_PAD), _NONE, tl.int32)
    for one in range(GROUPS):
        mine = tl.where(group == one, keys, _NONE)
        best, place = _best(mine, number, EXPERTS - 1)
        if BY_TWO:
            second, _ = _best(tl.where(number == place[:, None], _NONE, mine), number, EXPERTS - 1)
            best = _keys(_of_keys(best) + _of_keys(second))
        quality = tl.where(groups == one, best[:, None], quality)
    good = keys < _NONE
    for _ in range(BEST_GROUPS):
        _, chosen = _best(quality, groups, GROUPS - 1)
        good = good | (group == chosen[:, None])
        quality = tl.where(groups == chosen[:, None], _NONE, quality)
    return good


@triton.jit
def _scored(scores, real, SCORES: tl.constexpr):
    """The scores of logits."""
    if SCORES == "softmax":
        powers = tl.exp2((scores - tl.max(scores, axis=1)[:, None]) * _LOG2_E)
        scores = tl.where(real, powers / tl.sum(powers, axis=1)[:, None], float("-inf"))
    elif SCORES == "sigmoid":
        scores = tl.where(real, 1.0 / (1.0 + tl.exp2(-scores * _LOG2_E)), float("-inf"))
    return scores


@triton.jit
def _weights(
    scores, own, total, least_sum, SCORES: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    """The weights of those chosen (``own``), whose scores add up to ``total [BLOCK_T]``; of others anything."""
    if SCORES == "softmax-behind":
        largest = tl.max(tl.where(own, scores, float("-inf")), axis=1)[:, None]
        powers = tl.where(own, tl.exp2((scores - largest) * _LOG2_E), 0.0)
        scores = powers / tl.sum(powers, axis=1)[:, None]
        total = tl.sum(scores, axis=1)
    if RENORMALIZE:
        least = tl.where(total < least_sum, least_sum, total)[:, None]
        scores = tl.div_rn(scores, tl.broadcast_to(least, scores.shape))
    return scores


@triton.jit
def _fill(order, begin, end, BLOCK: tl.constexpr):
    """No pair at the places from ``begin`` on."""
    column = tl.arange(0, BLOCK)
    for at in range(begin, end, BLOCK):
        tl.store(order + at + column, tl.full((BLOCK,), NOTHING, tl.int32), mask=at + column < end)


@triton.jit
def _tell(experts, needed, ends, tiles, begin, step, WIDTH: tl.constexpr):
    """The expert of each tile, of ``step`` programs the share of ``begin``; ``ends [WIDTH]``: tiles up to each."""
    number = tl.arange(0, WIDTH)
    for at in range(begin, tl.max(needed, axis=0), step):
        tl.store(experts + (ends - needed) + at, number, mask=at < needed)
    for at in range(tl.max(ends, axis=0) + begin * WIDTH, tiles, step * WIDTH):
        tl.store(experts + at + number, tl.full((WIDTH,), -1, tl.int32), mask=at + number < tiles)


@triton.jit
def choose_pairs(
    logits, correction, ids, weights, ranks, counts, order, experts, tokens, tiles, least_sum, scale,
    tolerance,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, ACTIVE: tl.constexpr, SCORES: tl.constexpr,
    CORRECTED: tl.constexpr, GROUPS: tl.constexpr, BEST_GROUPS: tl.constexpr, BY_TWO: tl.constexpr,
    GROUP_PAD: tl.constexpr, RENORMALIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_T: tl.constexpr,
    TILE: tl.constexpr, ALL: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The experts of BLOCK_T tokens, their weights, and where their pairs go. Grid: (ceil(T / BLOCK_T),).

    Args:
        logits: float32 ``[SPLITS, T, EXPERTS]``, of which the parts are added.
        correction, ids, weights, least_sum, scale, tolerance, WIDTH, GROUP_PAD, SCORES, BEST_GROUPS, BY_TWO: see
            ``routing.choose_experts``.
        order, experts, tiles: see ``routing.place_pairs``, if TILE; complete if ALL, and else places without a pair.
        ranks: int32 ``[T, ACTIVE]``: how many pairs of the block before have the same expert; TILE and not ALL only.
        counts: int32 ``[blocks, EXPERTS]``: the pairs of the block; likewise.
        TILE: tokens of a tile; 0 where pairs go into none.
        ALL: there is one program.
    """
    block = tl.program_id(0)
    token = (block * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    number = tl.arange(0, WIDTH)[None, :]
    there, real = token < tokens, number < EXPERTS
    if OVERLAP:
        wait()
    place = token.to(tl.int64) * EXPERTS + number
    scores = tl.load(logits + place, mask=there & real, other=0.0)
    for split in tl.static_range(1, SPLITS):
        scores += tl.load(logits + split * tokens * EXPERTS + place, mask=there & real, other=0.0)
    scores = _scored(tl.where(real, scores, float("-inf")), real, SCORES)
    keys = _keys(scores)
    if CORRECTED:
        keys = _keys(scores + tl.load(correction + number, mask=real, other=0.0))
    if GROUPS > 1:
        keys = tl.where(real, keys, _NONE)
        good = _in_good_groups(keys, number, EXPERTS, GROUPS, BEST_GROUPS, BY_TWO, GROUP_PAD, BLOCK_T)
        keys = tl.where(good, keys, _keys(tl.full((BLOCK_T, WIDTH), float("-inf"), tl.float32)))
    keys = tl.where(real, keys, _NONE)
    total = tl.zeros((BLOCK_T,), tl.float32)
    slots = tl.full((BLOCK_T, WIDTH), -1, tl.int32)  # of each expert of a token
    mixed = tl.zeros((BLOCK_T, WIDTH), tl.float32)
    for at in range(ACTIVE):
        best, expert = _best(keys, number, EXPERTS - 1)
        hit = number == expert[:, None]
        keys = tl.where(hit, _NONE, keys)
        if CORRECTED or GROUPS > 1:
            total += tl.sum(tl.where(hit, scores, 0.0), axis=1)
        else:
            total += _of_keys(best)
        if SCORES == "sparsemixer":
            logit = tl.sum(tl.where(hit, scores, 0.0), axis=1)[:, None]
            weight = sparsely_mixed(scores, real & (slots < 0), logit, tolerance, 1)
            mixed = tl.where(hit, weight[:, None], mixed)
        slots = tl.where(hit, at, slots)
    if SCORES == "sparsemixer":
        scores = mixed
        total = tl.sum(mixed, axis=1)
    scores = _weights(scores, slots >= 0, total, least_sum, SCORES, RENORMALIZE)
    own = there & (slots >= 0)
    pair = token * ACTIVE + slots
    tl.store(ids + pair, tl.broadcast_to(number, (BLOCK_T, WIDTH)), mask=own)
    tl.store(weights + pair, scores * scale, mask=own)
    if TILE > 0:
        marks = own.to(tl.int32)
        rank = tl.cumsum(marks, axis=0) - marks
        mine = tl.sum(marks, axis=0)
        if ALL:
            needed = (mine + (TILE - 1)) // TILE
            ends = tl.cumsum(needed, axis=0)
            _fill(order, 0, tiles * TILE, 1024)
            _tell(experts, needed, ends, tiles, 0, 1, WIDTH)
            tl.debug_barrier()  # pairs are written over what was just stored
            tl.store(order + ((ends - needed) * TILE)[None, :] + rank, pair, mask=own)
        else:
            share = tl.cdiv(tiles * TILE, tl.num_programs(0))
            _fill(order, block * share, tl.minimum(tiles * TILE, (block + 1) * share), 1024)
            tl.store(ranks + pair, rank, mask=own)
            only = tl.arange(0, WIDTH)
            tl.store(counts + block * EXPERTS + only, mine, mask=only < EXPERTS)


@triton.jit
def place_ranked(
    ids, ranks, counts, bases, order, experts, tokens, tiles,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, ACTIVE: tl.constexpr, BLOCK_T: tl.constexpr, PAIRS: tl.constexpr,
    TILE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Puts the pairs of BLOCK_T tokens into tiles, behind ``choose_pairs``. Grid: (ceil(T / BLOCK_T),).

    Args:
        ids, ranks, counts, order, experts, tokens, tiles: as ``choose_pairs`` leaves and takes them.
        bases: int32 ``[blocks, EXPERTS]``: room for where each expert's pairs of each block begin.
        PAIRS: BLOCK_T * ACTIVE rounded up to a power of two.
    """
    AT_ONCE: tl.constexpr = 16
    block, blocks = tl.program_id(0), tl.num_programs(0)
    number = tl.arange(0, WIDTH)
    row = tl.arange(0, AT_ONCE)[:, None]
    if OVERLAP:
        wait()
    every = tl.zeros((AT_ONCE, WIDTH), tl.int32)  # added up once, behind the loop: that goes through shared memory
    mine = tl.zeros((AT_ONCE, WIDTH), tl.int32)
    for begin in range(0, blocks, AT_ONCE):
        other = begin + row
        found = tl.load(
            counts + other * EXPERTS + number[None, :], mask=(other < blocks) & (number < EXPERTS)[None, :], other=0
        )  # fmt: skip
        every += found
        mine += tl.where(other < block, found, 0)
    before = tl.sum(mine, axis=0)
    needed = (tl.sum(every, axis=0) + (TILE - 1)) // TILE
    ends = tl.cumsum(needed, axis=0)
    tl.store(bases + block * EXPERTS + number, (ends - needed) * TILE + before, mask=number < EXPERTS)
    _tell(experts, needed, ends, tiles, block, blocks, WIDTH)
    tl.debug_barrier()  # what was just stored is read
    column = tl.arange(0, PAIRS)
    pair = block * (BLOCK_T * ACTIVE) + column
    real = (column < BLOCK_T * ACTIVE) & (pair < tokens * ACTIVE)
    expert = tl.load(ids + pair, mask=real, other=0)
    place = tl.load(bases + block * EXPERTS + expert, mask=real, other=0) + tl.load(ranks + pair, mask=real, other=0)
    tl.store(order + place, pair, mask=real)
