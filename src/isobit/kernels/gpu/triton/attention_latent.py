"""Latent attention (MLA), absorbed: queries are taken to the latents, and what is found there to the heads' values.

All heads of a token read the same latent and the same rotated key, so they are the rows of a tile, and a tile of
latents is read once for both of its uses, as keys and as values. Matrices of the heads are multiplied in front of the
attention and behind it (``latent_product.py``). Sums of a row of a tile do not depend on the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.attention import add_values, block_of, dot_of, rows_of_keys, scales_of
from isobit.kernels.gpu.triton.decode import to_bf16, to_f16
from isobit.kernels.gpu.triton.grouped import grouped_part, grouped_tile, halves_of
from isobit.kernels.gpu.triton.pdl import let_next_start, wait, wait_for_last


@triton.jit
def _tile(
    memory, base, rows, first, DTYPE: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """``attention.tile_of`` of the WIDTH numbers from ``first`` on, of the DIM that a token has: all there if EVEN."""
    d = first + tl.arange(0, WIDTH)[None, :]
    place = memory + base * DIM + (rows[:, None] * DIM + d)
    if EVEN:
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
def _latent_halves(
    memory, groups, base, rows, at_own, DTYPE: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, APART: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Both halves of latents, that from ``at_own`` on first."""
    half: tl.constexpr = WIDTH // 2
    if ELEMENT == "mxfp4" or ELEMENT == "nvfp4":
        near, far = halves_of(memory, groups, base, rows, DTYPE, ELEMENT, DIM, ASM)
        if APART:
            near, far = tl.where(at_own == 0, near, far), tl.where(at_own == 0, far, near)
    elif ELEMENT == "mxfp8":
        near = grouped_part(memory, groups, base, rows, at_own, DTYPE, DIM, half, DIM == WIDTH, ASM)
        far = grouped_part(memory, groups, base, rows, half - at_own, DTYPE, DIM, half, DIM == WIDTH, ASM)
    else:
        near = _tile(memory, base, rows, at_own, DTYPE, ELEMENT, DIM, half, DIM == WIDTH, ASM)
        far = _tile(memory, base, rows, half - at_own, DTYPE, ELEMENT, DIM, half, DIM == WIDTH, ASM)
    return near, far


@triton.jit
def _turned_keys(
    memory, groups, base, rows, DTYPE: tl.constexpr, ELEMENT: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """The rotated keys."""
    if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" or ELEMENT == "nvfp4":
        return grouped_tile(memory, groups, base, rows, DTYPE, ELEMENT, DIM, WIDTH, ASM)
    else:
        return _tile(memory, base, rows, 0, DTYPE, ELEMENT, DIM, WIDTH, DIM == WIDTH, ASM)


@triton.jit
def _products(
    own, rest, turned, near, far, key, scale, key_scale, ELEMENT: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Rows by keys: of both halves of the latents, and of the rotated parts. The arguments of ``_steps``.

    They are added behind the products: one behind the other they would wait for each other.
    """
    products = dot_of(turned, key, PRECISION)
    found = dot_of(own, near, PRECISION)
    found += dot_of(rest, far, PRECISION)
    if ELEMENT == "":
        return found + products
    else:
        return tl.fma(found, tl.broadcast_to(scale[None, :], found.shape), products * key_scale[None, :])


@triton.jit
def _steps(
    own, rest, turned, at_own, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
    table, first, end, length, newest, block,
    factor, peak, weight, near_sum, far_sum,
    RANK: tl.constexpr, ROTATED: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr, BLOCK_N: tl.constexpr,
    APART: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The sums with the positions ``first`` to ``end - 1`` added, which all rows see, or not (MASKED).

    Latents are two halves, each a tile of its own: in one, registers spill.

    Args:
        own, rest: ``[ROWS, WIDTH / 2]``: both halves of the queries; turned: ``[ROWS, TURN]``.
        at_own: where the first of these halves begins: 0, or WIDTH / 2 for the other way round.
        newest: ``[ROWS]``: the last position that each row sees.
        peak, weight: ``[ROWS]``: the largest exponent so far, and the sum of weights relative to it.
        near_sum, far_sum: ``[ROWS, WIDTH / 2]``: weighted sums of both halves of the latents.
        APART: of the first of them alone: another program has the other, as its own.
    """
    dtype: tl.constexpr = own.dtype
    OVER: tl.constexpr = "" if ELEMENT == "mxfp8" or ELEMENT == "mxfp4" else ELEMENT
    held = block_of(table, first, length - 1, block, WHOLE)
    for at in range(first, end, BLOCK_N):
        base, rows = rows_of_keys(table, held, at, length - 1, block, 0, 1, WHOLE, MASKED, BLOCK_N)
        held = block_of(table, at + BLOCK_N, length - 1, block, WHOLE)
        near, far = _latent_halves(latents, latent_groups, base, rows, at_own, dtype, ELEMENT, RANK, WIDTH, APART, ASM)
        key = _turned_keys(keys, key_groups, base, rows, dtype, ELEMENT, ROTATED, TURN, ASM)
        scale = scales_of(latent_scales, base, rows, dtype, OVER)
        key_scale = scales_of(key_scales, base, rows, dtype, OVER)
        products = _products(own, rest, turned, near, far, key, scale, key_scale, OVER, PRECISION)
        if MASKED:
            position = (at + tl.arange(0, BLOCK_N))[None, :]
            products = tl.where((position < end) & (position <= newest[:, None]), products, float("-inf"))
        # As ``attention.add_tile``: what is fused is written so, for masked tiles and whole ones to give the same bits.
        higher = tl.maximum(peak, tl.max(products, axis=1) * factor)
        origin = higher
        if MASKED:  # a row that has seen nothing yet
            origin = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(tl.fma(products, tl.full(products.shape, factor, tl.float32), -origin[:, None]))
        less = tl.exp2(peak - origin)
        weight = tl.fma(weight, less, tl.sum(weights, axis=1))
        near_sum = add_values(weights, near, scale, near_sum * less[:, None], OVER, PRECISION)
        if not APART:
            far_sum = add_values(weights, far, scale, far_sum * less[:, None], OVER, PRECISION)
        peak = higher
    return peak, weight, near_sum, far_sum


@triton.jit
def _half(x, place, first, real, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """Half of the rows of ``x [.., RANK]`` at ``place [ROWS, 1]``, zeros of those that are not ``real``."""
    d = first + tl.arange(0, WIDTH // 2)[None, :]
    return tl.load(x + place * RANK + d, mask=real & (d < RANK), other=0.0)


@triton.jit
def _store_half(y, values, place, first, real, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """The same the other way round."""
    d = first + tl.arange(0, WIDTH // 2)[None, :]
    tl.store(y + place * RANK + d, values.to(y.dtype.element_ty), mask=real & (d < RANK))


@triton.jit
def _mixed(sums, weight):
    """Weighted sums over the sums of their weights; zeros where nothing was seen."""
    return sums / tl.where(weight == 0.0, 1.0, weight)[:, None]


@triton.jit
def _parts(length, PART: tl.constexpr, ONE: tl.constexpr, MOST: tl.constexpr):
    """Keys of a part of a sequence of that length, and how many parts."""
    size = tl.maximum(tl.cdiv(length, PART * MOST), 1) * PART
    size = tl.where(length <= ONE, ONE, size)
    return size, tl.maximum(tl.cdiv(length, size), 1)


@triton.jit
def latent_few(
    q, turned, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
    starts, lengths, table, out, work, stats, columns, room,
    block, factor,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROTATED: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, APART: tl.constexpr, PART: tl.constexpr, ONE: tl.constexpr,
    MOST: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of one new token; the others are left alone. Grid: (programs, ceil(HEADS / ROWS), B), or twice as many
    tiles of heads if APART.

    Args:
        q: ``[T, HEADS, RANK]``: queries, taken to the latents.
        turned, latents, keys, latent_scales, key_scales, latent_groups, key_groups: of ``latent_append``,
            the new tokens among them.
        starts, lengths, table, columns, block: as for ``attention_few``, and so is how sequences are parted.
        out: ``[T, HEADS, RANK]``, of sequences with one part; zeros where the length is 0.
        work, stats: float32 ``[B, HEADS, room, WIDTH]`` and ``[.., 2]``: the sums of the parts of others.
        room: parts that there is room for.
        factor: what makes exponents of two of products.
        WIDTH, TURN: RANK and ROTATED rounded up to powers of two.
        ROWS: heads of a tile.
        APART: a program sums one half of the latents; see ``_steps``.
    """
    b = tl.program_id(2)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    size, parts = _parts(length, PART, ONE, MOST)
    if OVERLAP:
        wait_for_last()
    if new == 1:
        at_own, tile = 0, tl.program_id(1)
        if APART:
            at_own, tile = tile % 2 * (WIDTH // 2), tile // 2
        head = tile * ROWS + tl.arange(0, ROWS)
        e = tl.arange(0, TURN)[None, :]
        place = (begin.to(tl.int64) * HEADS + head)[:, None]
        real = (head < HEADS)[:, None]
        own = _half(q, place, at_own, real, RANK, WIDTH)
        rest = _half(q, place, WIDTH // 2 - at_own, real, RANK, WIDTH)
        rotated = tl.load(turned + place * ROTATED + e, mask=real & (e < ROTATED), other=0.0)
        newest = tl.zeros((ROWS,), tl.int32) + length - 1
        for part in range(tl.program_id(0), parts, tl.num_programs(0)):
            peak = tl.full((ROWS,), float("-inf"), tl.float32)
            weight = tl.zeros((ROWS,), tl.float32)
            near = tl.zeros((ROWS, WIDTH // 2), tl.float32)
            far = tl.zeros((ROWS, WIDTH // 2), tl.float32)
            peak, weight, near, far = _steps(
                own, rest, rotated, at_own, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
                table + b.to(tl.int64) * columns,
                part * size, tl.minimum((part + 1) * size, length), length, newest, block, factor, peak, weight, near,
                far, RANK, ROTATED, WIDTH, TURN, BLOCK_N, APART, WHOLE, PRECISION, ELEMENT, ASM, True,
            )  # fmt: skip
            if parts == 1:
                _store_half(out, _mixed(near, weight), place, at_own, real, RANK, WIDTH)
                if not APART:
                    _store_half(out, _mixed(far, weight), place, WIDTH // 2, real, RANK, WIDTH)
            else:
                at = (b.to(tl.int64) * HEADS + head) * room + part
                tl.store(stats + 2 * at, peak, mask=head < HEADS)
                tl.store(stats + 2 * at + 1, weight, mask=head < HEADS)
                _store_half(work, near, at[:, None], at_own, real, WIDTH, WIDTH)
                if not APART:
                    _store_half(work, far, at[:, None], WIDTH // 2, real, WIDTH, WIDTH)


@triton.jit
def latent_merge(
    starts, lengths, out, work, stats, room,
    HEADS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, ONE: tl.constexpr,
    MOST: tl.constexpr, AT_ONCE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Adds the parts that ``latent_few`` left, AT_ONCE at a time. Grid: (HEADS, B); arguments as there."""
    head, b = tl.program_id(0), tl.program_id(1)
    if OVERLAP:
        let_next_start()
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    _, parts = _parts(tl.load(lengths + b), PART, ONE, MOST)
    if OVERLAP:
        wait_for_last()
    if (new == 1) & (parts > 1):
        first = (b.to(tl.int64) * HEADS + head) * room
        part = tl.arange(0, MOST)
        peaks = tl.load(stats + 2 * (first + part), mask=part < parts, other=float("-inf"))
        sums = tl.load(stats + 2 * (first + part) + 1, mask=part < parts, other=0.0)
        peak = tl.max(peaks, axis=0)
        weight = tl.sum(tl.exp2(peaks - peak) * sums, axis=0)
        d = tl.arange(0, WIDTH)
        mixed = tl.zeros((WIDTH,), tl.float32)
        for begins in range(0, parts, AT_ONCE):
            some = begins + tl.arange(0, AT_ONCE)
            share = tl.exp2(tl.load(stats + 2 * (first + some), mask=some < parts, other=float("-inf")) - peak)
            place = work + (first + some)[:, None] * WIDTH + d[None, :]
            mixed += tl.sum(tl.load(place, mask=(some < parts)[:, None], other=0.0) * share[:, None], axis=0)
        mixed = mixed / tl.where(weight == 0.0, 1.0, weight)
        token = begin.to(tl.int64) * HEADS + head
        tl.store(out + token * RANK + d, mixed.to(out.dtype.element_ty), mask=d < RANK)


@triton.jit
def _sequence(starts, sequences, tile, HEADS: tl.constexpr, ROWS: tl.constexpr):
    """The sequence that a tile of rows is one of, and which of its tiles; as in ``attention_many``, of heads' rows."""
    low, high = tl.full((), 0, tl.int32), sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) * HEADS // ROWS + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (tl.load(starts + low) * HEADS // ROWS + low)


@triton.jit
def latent_many(
    q, turned, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
    starts, lengths, table, out, sequences, columns, block, factor,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROTATED: tl.constexpr, WIDTH: tl.constexpr, TURN: tl.constexpr,
    NEW: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, APART: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, ELEMENT: tl.constexpr, ASM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Sequences of more than NEW new tokens; the others are left alone. Grid: (T * HEADS // ROWS + B, 2 if APART).

    A row is a head of a token: those of a token follow each other. A row's sums go over tiles of keys that begin at
    multiples of BLOCK_N, and tiles of which it sees nothing change no bit of them.

    Args:
        q, turned, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
        starts, lengths, table, out, columns, block, factor: as for
            ``latent_few``.
        sequences: B.
    """
    if OVERLAP:
        wait()
    # The last tiles of a prompt see the most keys: they begin first.
    b, tile = _sequence(starts, sequences, tl.num_programs(0) - 1 - tl.program_id(0), HEADS, ROWS)
    begin = tl.load(starts + b)
    new = tl.load(starts + b + 1) - begin
    length = tl.load(lengths + b)
    at_own = 0
    if APART:
        at_own = tl.program_id(1) * (WIDTH // 2)
    row = tile * ROWS + tl.arange(0, ROWS)
    if (new > NEW) & (tile * ROWS < new * HEADS):
        e = tl.arange(0, TURN)[None, :]
        place = (begin.to(tl.int64) * HEADS + row)[:, None]
        real = (row < new * HEADS)[:, None]
        own = _half(q, place, at_own, real, RANK, WIDTH)
        rest = _half(q, place, WIDTH // 2 - at_own, real, RANK, WIDTH)
        rotated = tl.load(turned + place * ROTATED + e, mask=real & (e < ROTATED), other=0.0)
        newest = length - new + row // HEADS
        oldest = length - new + tile * ROWS // HEADS
        end = tl.minimum(length - new + (tile * ROWS + ROWS - 1) // HEADS + 1, length)
        diagonal = (oldest + 1) // BLOCK_N * BLOCK_N
        blocks = table + b.to(tl.int64) * columns
        peak = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        near = tl.zeros((ROWS, WIDTH // 2), tl.float32)
        far = tl.zeros((ROWS, WIDTH // 2), tl.float32)
        peak, weight, near, far = _steps(
            own, rest, rotated, at_own, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
            blocks, 0, diagonal, length, newest,
            block, factor, peak, weight, near, far, RANK, ROTATED, WIDTH, TURN, BLOCK_N, APART, WHOLE, PRECISION,
            ELEMENT, ASM, False,
        )  # fmt: skip
        peak, weight, near, far = _steps(
            own, rest, rotated, at_own, latents, keys, latent_scales, key_scales, latent_groups, key_groups,
            blocks, diagonal, end, length, newest,
            block, factor, peak, weight, near, far, RANK, ROTATED, WIDTH, TURN, BLOCK_N, APART, WHOLE, PRECISION,
            ELEMENT, ASM, True,
        )  # fmt: skip
        _store_half(out, _mixed(near, weight), place, at_own, real, RANK, WIDTH)
        if not APART:
            _store_half(out, _mixed(far, weight), place, WIDTH // 2, real, RANK, WIDTH)
