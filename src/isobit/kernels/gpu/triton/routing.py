"""Which experts tokens go to, the pairs of both in the order in which linears take them, and what experts give, added.

Everything is decided on the device, and in an order that follows from the tokens alone: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.after import plus
from isobit.kernels.gpu.triton.experts import NOTHING
from isobit.kernels.gpu.triton.pdl import wait

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def router_many(
    x, weight, bias, logits, M, K, EXPERTS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Logits in tiles of tokens, which do not meet. Grid: (ceil(M / BLOCK_M), ceil(EXPERTS / BLOCK_N)).

    Args:
        x: ``[M, K]`` of any float.
        weight, bias: float32 ``[EXPERTS, K]``, ``[EXPERTS]``.
        logits: float32 ``[M, EXPERTS]``.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = weight + tl.minimum(n, EXPERTS - 1)[:, None] * K
    tokens = x + m.to(tl.int64)[:, None] * K
    column = tl.arange(0, BLOCK_K)
    if OVERLAP:
        wait()
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = (begin + column)[None, :]
        values = tl.load(tokens + k, mask=(m < M)[:, None] & (k < K), other=0.0).to(tl.float32)
        weights = tl.load(rows + k, mask=k < K, other=0.0)
        total = tl.dot(values, tl.trans(weights), total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < EXPERTS, other=0.0)[None, :]
    place = m.to(tl.int64)[:, None] * EXPERTS + n[None, :]
    tl.store(logits + place, total, mask=(m < M)[:, None] & (n < EXPERTS)[None, :])


@triton.jit
def _best(values, numbers, left, LAST: tl.constexpr):
    """The largest of the values that are ``left``, and its number: of equal ones the lowest; LAST where none is."""
    best = tl.max(tl.where(left, values, float("-inf")), axis=0)
    return best, tl.minimum(tl.min(tl.where(left & (values == best), numbers, LAST), axis=0), LAST)


@triton.jit
def _in_good_groups(
    choice, numbers, real, EXPERTS: tl.constexpr, GROUPS: tl.constexpr, BEST_GROUPS: tl.constexpr, BY_TWO: tl.constexpr,
    GROUP_PAD: tl.constexpr,
):  # fmt: skip
    """Which experts are in the best groups: those of the best expert (or best two) each."""
    SIZE: tl.constexpr = EXPERTS // GROUPS
    group = numbers // SIZE
    groups = tl.arange(0, GROUP_PAD)
    quality = tl.full((GROUP_PAD,), float("-inf"), tl.float32)
    for one in range(GROUPS):
        mine = real & (group == one)
        first, place = _best(choice, numbers, mine, EXPERTS - 1)
        if BY_TWO:
            second, _ = _best(choice, numbers, mine & (numbers != place), EXPERTS - 1)
            first += second
        quality = tl.where(groups == one, first, quality)
    good = real & (numbers < 0)
    left = groups < GROUPS
    for _ in range(BEST_GROUPS):
        _, chosen = _best(quality, groups, left, GROUPS - 1)
        good = good | (group == chosen)
        left = left & (groups != chosen)
    return good & real


@triton.jit
def sparsely_mixed(scores, left, own, tolerance, AXIS: tl.constexpr):
    """SparseMixer's weight of an expert whose logit is ``own``, of a token, or of each of several.

    Args:
        scores: logits, experts along AXIS; left: those that count.
        own: of a shape that they broadcast with.
    """
    logits = tl.where(left, scores, own)
    size = tl.maximum(tl.abs(logits), own)
    far = tl.div_rn(own - logits, tl.where(size == 0.0, 1.0, size)) > tolerance
    powers = tl.where(left & (far == 0), tl.exp2((logits - own) * _LOG2_E), 0.0)
    return 1.0 / tl.sum(powers, axis=AXIS)


@triton.jit
def choose_experts(
    logits, correction, ids, weights, least_sum, scale, tolerance,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, ACTIVE: tl.constexpr, SLOTS: tl.constexpr, SCORES: tl.constexpr,
    CORRECTED: tl.constexpr, GROUPS: tl.constexpr, BEST_GROUPS: tl.constexpr, BY_TWO: tl.constexpr,
    GROUP_PAD: tl.constexpr, RENORMALIZE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The ACTIVE experts of a token, the best first, and their weights. Grid: (T,).

    Args:
        logits: float32 ``[T, EXPERTS]``.
        correction: float32 ``[EXPERTS]``, if CORRECTED: added to the scores for the choice.
        ids, weights: int32 and float32 ``[T, ACTIVE]``.
        least_sum, scale: what weights are divided by at least (RENORMALIZE), and what they are multiplied by.
        tolerance: of "sparsemixer".
        WIDTH, SLOTS, GROUP_PAD: EXPERTS, ACTIVE and GROUPS rounded up to powers of two.
        SCORES: as of ``models/feed_forward.Router``.
        BEST_GROUPS: groups that take part, of GROUPS; BY_TWO: by the two best of each.
    """
    token = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, WIDTH)
    real = number < EXPERTS
    slot = tl.arange(0, SLOTS)
    if OVERLAP:
        wait()
    scores = tl.load(logits + token * EXPERTS + number, mask=real, other=float("-inf"))
    if SCORES == "softmax":
        powers = tl.exp2((scores - tl.max(scores, axis=0)) * _LOG2_E)
        scores = tl.where(real, powers / tl.sum(powers, axis=0), float("-inf"))
    elif SCORES == "sigmoid":
        scores = tl.where(real, 1.0 / (1.0 + tl.exp2(-scores * _LOG2_E)), float("-inf"))
    choice = scores
    if CORRECTED:
        choice = scores + tl.load(correction + number, mask=real, other=0.0)
    left = real
    if GROUPS > 1:
        good = _in_good_groups(choice, number, real, EXPERTS, GROUPS, BEST_GROUPS, BY_TWO, GROUP_PAD)
        choice = tl.where(good, choice, float("-inf"))
    found = tl.zeros((SLOTS,), tl.float32)
    total = 0.0
    for at in range(ACTIVE):
        _, expert = _best(choice, number, left, EXPERTS - 1)
        value = tl.sum(tl.where(number == expert, scores, 0.0), axis=0)
        if SCORES == "sparsemixer":
            value = sparsely_mixed(scores, left, value, tolerance, 0)
        left = left & (number != expert)
        total += value
        found = tl.where(slot == at, value, found)
        tl.store(ids + token * ACTIVE + at, expert)
    if SCORES == "softmax-behind":
        inside = slot < ACTIVE
        powers = tl.exp2((found - tl.max(tl.where(inside, found, float("-inf")), axis=0)) * _LOG2_E)
        powers = tl.where(inside, powers, 0.0)
        total = tl.sum(powers, axis=0)
        found = powers / total
        if RENORMALIZE:
            total = tl.sum(found, axis=0)
    if RENORMALIZE:
        found = tl.div_rn(found, tl.zeros((SLOTS,), tl.float32) + tl.where(total < least_sum, least_sum, total))
    tl.store(weights + token * ACTIVE + slot, found * scale, mask=slot < ACTIVE)


@triton.jit
def count_pairs(ids, counts, pairs, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """How many pairs each expert has. Grid: (experts,).

    Args:
        ids: int32 ``[pairs]``: the expert of each.
        counts: int32 ``[experts]``.
    """
    expert = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    if OVERLAP:
        wait()
    found = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, pairs, BLOCK):
        at = begin + column
        found += (tl.load(ids + at, mask=at < pairs, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, axis=0))


@triton.jit
def place_pairs(
    ids, counts, order, experts, pairs, tiles,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Puts the pairs of each expert into tiles of its own, in their order. Grid: (EXPERTS,).

    Args:
        ids, counts: as ``count_pairs`` reads and leaves them.
        order: int32 ``[tiles * TILE]``, see ``experts.py``.
        experts: int32 ``[tiles]``, likewise.
        tiles: that there is room for: enough for any choice.
        WIDTH: EXPERTS rounded up to a power of two.
    """
    expert = tl.program_id(0)
    number = tl.arange(0, WIDTH)
    column = tl.arange(0, BLOCK)
    if OVERLAP:
        wait()
    needed = (tl.load(counts + number, mask=number < EXPERTS, other=0) + (TILE - 1)) // TILE
    first = tl.sum(tl.where(number < expert, needed, 0), axis=0)
    mine = tl.sum(tl.where(number == expert, needed, 0), axis=0)
    for begin in range(0, mine * TILE, BLOCK):  # what pairs do not fill
        at = begin + column
        tl.store(order + first * TILE + at, tl.full((BLOCK,), NOTHING, tl.int32), mask=at < mine * TILE)
    for begin in range(0, mine, BLOCK):
        at = begin + column
        tl.store(experts + first + at, tl.zeros((BLOCK,), tl.int32) + expert, mask=at < mine)
    if expert == EXPERTS - 1:
        for begin in range(first + mine, tiles, BLOCK):
            at = begin + column
            tl.store(experts + at, tl.full((BLOCK,), -1, tl.int32), mask=at < tiles)
    tl.debug_barrier()  # pairs are written over what was just stored
    before = first * TILE
    for begin in range(0, pairs, BLOCK):
        at = begin + column
        own = tl.load(ids + at, mask=at < pairs, other=-1) == expert
        rank = tl.cumsum(own.to(tl.int32), axis=0)
        tl.store(order + before + rank - 1, at, mask=own)
        before += tl.sum(own.to(tl.int32), axis=0)


@triton.jit
def add_experts(
    results, weights, residual, y, K, ACTIVE: tl.constexpr, WEIGHTED: tl.constexpr, ADD: tl.constexpr,
    BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """What the experts of a token give, weighted, added in the order of their slots. Grid: (T, ceil(K / BLOCK_K)).

    Args:
        results: float32 ``[T, ACTIVE, K]``.
        weights: float32 ``[T, ACTIVE]``, if WEIGHTED.
        residual, y: ``[T, K]`` of any float; the residual if ADD: the sum is a value of that dtype before it is added.
    """
    token = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    if OVERLAP:
        wait()
    total = tl.zeros((BLOCK_K,), tl.float32)
    for at in tl.static_range(ACTIVE):
        part = tl.load(results + (token * ACTIVE + at) * K + k, mask=k < K, other=0.0)
        if WEIGHTED:
            part = part * tl.load(weights + token * ACTIVE + at)
        total += part
    values = total.to(y.dtype.element_ty)
    if ADD:
        values = plus(values, residual, token * K + k, k < K)
    tl.store(y + token * K + k, values, mask=k < K)


@triton.jit
def weigh_inputs(x, weights, y, K, ACTIVE: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr):
    """A token once for each of its experts, times their weights. Grid: (T * ACTIVE, ceil(K / BLOCK_K)).

    Args:
        x: ``[T, K]`` of any float; y: ``[T * ACTIVE, K]`` of the same.
        weights: float32 ``[T, ACTIVE]``.
    """
    pair = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    if OVERLAP:
        wait()
    values = tl.load(x + pair // ACTIVE * K + k, mask=k < K, other=0.0)
    values = values.to(tl.float32) * tl.load(weights + pair)
    tl.store(y + pair * K + k, values.to(y.dtype.element_ty), mask=k < K)


@triton.jit
def gate_by(x, weight, y, out, K, N, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr):
    """``y`` times the sigmoid of a token's product with a vector. Grid: (T,).

    Args:
        x: ``[T, K]``; weight: float32 ``[K]``.
        y, out: ``[T, N]``.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    if OVERLAP:
        wait()
    total = tl.zeros((BLOCK_K,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + column
        values = tl.load(x + token * K + k, mask=k < K, other=0.0).to(tl.float32)
        total += values * tl.load(weight + k, mask=k < K, other=0.0)
    share = 1.0 / (1.0 + tl.exp2(-tl.sum(total, axis=0) * _LOG2_E))
    for begin in range(0, N, BLOCK_K):
        n = begin + column
        values = tl.load(y + token * N + n, mask=n < N, other=0.0)
        tl.store(out + token * N + n, (values.to(tl.float32) * share).to(values.dtype), mask=n < N)
