"""``y = x W^T`` of very many tokens of experts on Hopper: a warp that has tiles copied, and two groups that multiply.

In Gluon, because Triton's own pipeline has the warps that multiply ask for their tiles, and wait for each other. Here a
warp has TMA copy tiles into a ring; each group of warps multiplies half of a tile's tokens as its tiles come, and while
one adds up what came out of its matrix unit, the other's products run. Programs stay on their multiprocessors and walk
over tiles, so that tiles of the next come while results leave. (An H200: float8 with full sums at 1.0 to 1.1 Pflop/s,
where ``linear_matrix`` reaches 0.75; dev/LOG.md, 2026-11-29.)

Tokens lie sorted by expert, as ``order`` has them (``experts.py``), padding included: that is what TMA can copy.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

# Gluon's names changed between Triton 3.6 and 3.9.
_copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared

_LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _next(slot, phase, DEPTH: gl.constexpr):
    """The slot of a ring behind one, and the phase that is waited for there."""
    last = slot == DEPTH - 1
    return gl.where(last, 0, slot + 1), gl.where(last, 1 - phase, phase)


@gluon.jit
def _tile(at, tiles_n, tiles_m, SWIZZLE: gl.constexpr):
    """Tile indices (n, m): ``SWIZZLE`` tiles along N share tokens in the cache, as in ``linear_matrix``."""
    band = at // (SWIZZLE * tiles_m)
    height = gl.minimum(tiles_n - band * SWIZZLE, SWIZZLE)
    inside = at % (SWIZZLE * tiles_m)
    return band * SWIZZLE + inside % height, inside // height


@gluon.jit
def _ask(
    x, w, experts, x_ring, w_ring, full, free, M, N, K,
    BLOCK_N: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_K: gl.constexpr, DEPTH: gl.constexpr, SWIZZLE: gl.constexpr,
    OVERLAP: gl.constexpr,
):  # fmt: skip
    """Has TMA copy the tiles of this program, each as soon as its slot is free."""
    if OVERLAP:
        gdc_wait()
    tiles_n = gl.cdiv(N, BLOCK_N)
    slot = tiles_n * 0
    phase = slot + 1  # slots are free at first
    for at in range(gl.program_id(0), tiles_n * M, gl.num_programs(0)):
        tile_n, tile_m = _tile(at, tiles_n, M, SWIZZLE)
        expert = gl.load(experts + tile_m)
        if expert >= 0:
            row = expert * N + tile_n * BLOCK_N
            for k in range(0, K, BLOCK_K):
                mbarrier.wait(free.index(slot), phase)
                mbarrier.expect(full.index(slot), x.block_type.nbytes + w.block_type.nbytes)
                _copy(x, [tile_m * BLOCK_M, k], full.index(slot), x_ring.index(slot))
                _copy(w, [row, k], full.index(slot), w_ring.index(slot))
                slot, phase = _next(slot, phase, DEPTH)


@gluon.jit
def _gated(gate, up, ACTIVATION: gl.constexpr):
    """``activation(gate) * up`` in float32: see ``after.activated``."""
    g = gate.to(gl.float32)
    if ACTIVATION == "silu":
        active = g * (1.0 / (1.0 + gl.exp2(-g * _LOG2_E)))
    elif ACTIVATION == "gelu_tanh":
        active = g * (1.0 / (1.0 + gl.exp2(g * (1.0 + 0.044715 * g * g) * (-1.5957691216057308 * _LOG2_E))))
    else:
        gl.static_assert(ACTIVATION == "gelu", "an activation")
        active = g * (0.5 + 0.5 * gl.erf(g * 0.7071067811865476))
    return active * up.to(gl.float32)


@gluon.jit
def _factors(
    token_scale, scale, order, row, place, PAIRS, gain, HAS_TOKEN_SCALE: gl.constexpr, HAS_SCALE: gl.constexpr,
    SHARE: gl.constexpr, TOKENS: gl.constexpr, SUMS: gl.constexpr,
):  # fmt: skip
    """What sums are multiplied by: of the rows, and of the tokens from ``place`` on."""
    of_row = row.to(gl.float32)
    of_token = gl.full((TOKENS,), 1.0, gl.float32, gl.SliceLayout(1, SUMS))
    if HAS_SCALE:
        of_row = gl.load(scale + row) * gain
    if HAS_TOKEN_SCALE:
        token = place + gl.arange(0, TOKENS, gl.SliceLayout(1, SUMS))
        if SHARE > 0:
            token = gl.minimum(gl.load(order + token), PAIRS - 1) // SHARE
        of_token = gl.load(token_scale + token)
    return of_row, of_token


@gluon.jit
def _leave(
    total, of_row, of_token, bias, y, order, row, tile_n, place, PAIRS, N,
    HAS_TOKEN_SCALE: gl.constexpr, HAS_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr, AFTER: gl.constexpr,
    SORTED: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """Sums ``[tokens, BLOCK_N]`` of the tokens from ``place`` on, scaled and stored."""
    TOKENS: gl.constexpr = total.shape[0]
    WIDTH: gl.constexpr = BLOCK_N if AFTER == "" else BLOCK_N // 2
    OUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [gl.num_warps(), 1], [1, 0])
    values = total.to(gl.float32)
    if HAS_SCALE:
        values = values * of_row[None, :]
    if HAS_TOKEN_SCALE:
        values = values * of_token[:, None]
    if HAS_BIAS:
        values += gl.load(bias + row).to(gl.float32)[None, :]
    results = values.to(y.dtype.element_ty)
    width = N
    if AFTER != "":
        gates, ups = gl.split(gl.reshape(results, (TOKENS, WIDTH, 2)))
        results = _gated(gates, ups, AFTER).to(y.dtype.element_ty)
        width = N // 2
    results = gl.convert_layout(results, OUT)
    column = tile_n * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(0, OUT))
    of = place + gl.arange(0, TOKENS, gl.SliceLayout(1, OUT))
    inside = (column < width)[None, :]
    if not SORTED:
        of = gl.load(order + of)
        inside = inside & (of < PAIRS)[:, None]
        of = gl.minimum(of, PAIRS - 1)
    gl.store(y + of.to(gl.int64)[:, None] * width + column[None, :], results, mask=inside)


@gluon.jit
def _multiply(
    token_scale, scale, bias, y, experts, order, x_ring, w_ring, full, free, M, PAIRS, N, K, gain,
    SECOND: gl.constexpr, HAS_TOKEN_SCALE: gl.constexpr, HAS_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr,
    AFTER: gl.constexpr, PROMOTE: gl.constexpr, SORTED: gl.constexpr, SHARE: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_K: gl.constexpr, DEPTH: gl.constexpr, SWIZZLE: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """The first or the second half of the tokens of this program's tiles."""
    if OVERLAP:
        gdc_wait()
    HALF: gl.constexpr = BLOCK_M // 2
    FIRST: gl.constexpr = HALF if SECOND else 0
    dtype: gl.constexpr = gl.int32 if x_ring.dtype == gl.int8 else gl.float32
    DEEP: gl.constexpr = 256 // x_ring.dtype.primitive_bitwidth  # along K, of an instruction
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_N, DEEP])
    tiles_n = gl.cdiv(N, BLOCK_N)
    slot = tiles_n * 0
    phase = slot + 0
    for at in range(gl.program_id(0), tiles_n * M, gl.num_programs(0)):
        tile_n, tile_m = _tile(at, tiles_n, M, SWIZZLE)
        expert = gl.load(experts + tile_m)
        if expert >= 0:
            place = tile_m * BLOCK_M + FIRST
            row = gl.minimum(tile_n * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, SUMS)), N - 1)
            row = expert.to(gl.int64) * N + row
            # Asked for here, and not where they are needed: nothing would be multiplied while they come.
            of_row, of_token = _factors(
                token_scale, scale, order, row, place, PAIRS, gain, HAS_TOKEN_SCALE, HAS_SCALE, SHARE, HALF, SUMS
            )
            nothing = gl.zeros((HALF, BLOCK_N), dtype, SUMS)
            total = gl.zeros((HALF, BLOCK_N), dtype, SUMS)
            for _ in range(0, K, BLOCK_K):
                mbarrier.wait(full.index(slot), phase)
                left, right = x_ring.index(slot).slice(FIRST, HALF, 0), w_ring.index(slot).permute((1, 0))
                if PROMOTE:
                    part = warpgroup_mma(left, right, nothing, use_acc=False, is_async=True)
                    part = warpgroup_mma_wait(0, deps=[part])
                else:
                    total = warpgroup_mma(left, right, total, is_async=True)
                    total = warpgroup_mma_wait(0, deps=[total])
                mbarrier.arrive(free.index(slot), count=1)
                if PROMOTE:
                    total = total + part
                slot, phase = _next(slot, phase, DEPTH)
            _leave(
                total, of_row, of_token, bias, y, order, row, tile_n, place, PAIRS, N, HAS_TOKEN_SCALE, HAS_SCALE,
                HAS_BIAS, AFTER, SORTED, BLOCK_N,
            )  # fmt: skip


@gluon.jit
def linear_experts(
    x, w, token_scale, scale, bias, y, experts, order, M, PAIRS, N, K, gain,
    HAS_TOKEN_SCALE: gl.constexpr, HAS_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr, AFTER: gl.constexpr,
    PROMOTE: gl.constexpr, SORTED: gl.constexpr, SHARE: gl.constexpr, OVERLAP: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_K: gl.constexpr, DEPTH: gl.constexpr, SWIZZLE: gl.constexpr,
):  # fmt: skip
    """Tokens of experts by their weights. Grid: as many programs as the machine has multiprocessors, or fewer.

    Args:
        x: descriptor of ``[M * BLOCK_M, K]`` in blocks ``[BLOCK_M, BLOCK_K]``: tokens as ``order`` has them.
        w: descriptor of ``[EXPERTS * N, K]`` in blocks ``[BLOCK_N, BLOCK_K]``, of the dtype of x.
        token_scale: float32, of rounded tokens: ``[PAIRS / SHARE]``, or ``[M * BLOCK_M]`` if SHARE is 0.
        scale: float32 ``[EXPERTS * N]``, if HAS_SCALE.
        bias: ``[EXPERTS * N]``, if HAS_BIAS.
        y: ``[M * BLOCK_M, N]`` if SORTED, where rows of no pair are anything, else ``[PAIRS, N]``; half of N behind
            gates.
        experts, order: see ``experts.py``.
        M: tiles of tokens.
        PAIRS: pairs of a token and an expert.
        gain: what the decoder left to be multiplied.
        AFTER: the activation of gates, which the rows of an expert are by turns with what they multiply; or nothing.
        PROMOTE: add the sum of each step along K to the total outside of the matrix unit (which rounds its sums).
        SHARE: pairs that have one input.
        OVERLAP: whether this may start before the kernel in front has ended.
        DEPTH: slots of the ring.
    """
    x_ring = gl.allocate_shared_memory(x.dtype, [DEPTH, BLOCK_M, BLOCK_K], x.layout)
    w_ring = gl.allocate_shared_memory(w.dtype, [DEPTH, BLOCK_N, BLOCK_K], w.layout)
    full = gl.allocate_shared_memory(gl.int64, [DEPTH, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [DEPTH, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(DEPTH):
        mbarrier.init(full.index(at), count=1)
        mbarrier.init(free.index(at), count=2)
    # Registers of a thread: 64 sums twice and what addresses take, without spills; the rest is not needed elsewhere.
    gl.warp_specialize(
        [
            (_multiply, (
                token_scale, scale, bias, y, experts, order, x_ring, w_ring, full, free, M, PAIRS, N, K, gain, False,
                HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS, AFTER, PROMOTE, SORTED, SHARE, BLOCK_N, BLOCK_M, BLOCK_K, DEPTH,
                SWIZZLE, OVERLAP,
            )),
            (_multiply, (
                token_scale, scale, bias, y, experts, order, x_ring, w_ring, full, free, M, PAIRS, N, K, gain, True,
                HAS_TOKEN_SCALE, HAS_SCALE, HAS_BIAS, AFTER, PROMOTE, SORTED, SHARE, BLOCK_N, BLOCK_M, BLOCK_K, DEPTH,
                SWIZZLE, OVERLAP,
            )),
            (_ask, (
                x, w, experts, x_ring, w_ring, full, free, M, N, K, BLOCK_N, BLOCK_M, BLOCK_K, DEPTH, SWIZZLE, OVERLAP,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
