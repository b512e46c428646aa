"""What linears do with their results before they store them: a residual is added, or gates are applied.

A result is a value of the dtype of ``y`` first, as if it had been stored: so the bits do not depend on what is fused.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def plus(values, residual, place, inside):
    """``values`` plus what lies at ``place`` of ``residual``, in the dtype of the values."""
    more = tl.load(residual + place, mask=inside, other=0.0)
    return (values.to(tl.float32) + more.to(tl.float32)).to(values.dtype)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """An activation of numbers in any float, in float32; "only-" in front of its name is as if it were not there."""
    g = x.to(tl.float32)
    if ACTIVATION == "silu" or ACTIVATION == "only-silu":
        return g * (1.0 / (1.0 + tl.exp2(-g * _LOG2_E)))
    elif ACTIVATION == "gelu_tanh" or ACTIVATION == "only-gelu_tanh":
        # (1 + tanh z) / 2 is 1 / (1 + exp(-2 z)), with z = sqrt(2 / pi) (g + 0.044715 g^3)
        return g * (1.0 / (1.0 + tl.exp2(g * (1.0 + 0.044715 * g * g) * (-1.5957691216057308 * _LOG2_E))))
    elif ACTIVATION == "gelu" or ACTIVATION == "only-gelu":
        return g * (0.5 + 0.5 * tl.erf(g * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "relu2" or ACTIVATION == "only-relu2", "an activation")
        return tl.where(g > 0, g * g, tl.where(g == g, 0.0, g))


@triton.jit
def gated(gate, up, ACTIVATION: tl.constexpr):
    """``activation(gate) * up`` in float32, of numbers in any float."""
    return activated(gate, ACTIVATION) * up.to(tl.float32)


@triton.jit
def store_rows(y, residual, sums, n, N, token, AFTER: tl.constexpr):
    """Stores results of one token, float32 of any shape, for rows ``n`` of as many (of pairs in the last axis).

    Args:
        y: ``[M, N]``, or ``[M, N / 2]`` for gates.
        residual: as y, if AFTER is "add".
        token: int64: which.
        AFTER: "", "add", "only-" and an activation, or the activation of gates: rows 2 i and 2 i + 1 are gate and value
            i.
    """
    values = sums.to(y.dtype.element_ty)
    if AFTER == "":
        tl.store(y + token * N + n, values, mask=n < N)
    elif AFTER == "add":
        place = token * N + n
        tl.store(y + place, plus(values, residual, place, n < N), mask=n < N)
    elif AFTER == "only-silu" or AFTER == "only-gelu" or AFTER == "only-gelu_tanh" or AFTER == "only-relu2":
        tl.store(y + token * N + n, activated(values, AFTER).to(values.dtype), mask=n < N)
    else:
        gates, ups = tl.split(values)
        first, _ = tl.split(n)
        tl.store(y + token * (N // 2) + first // 2, gated(gates, ups, AFTER).to(values.dtype), mask=first < N)


@triton.jit
def store_tile(y, residual, tile, n, m, N, M, AFTER: tl.constexpr):
    """The same for a tile ``[rows, tokens]`` of rows ``n`` and tokens ``m``."""
    values = tile.to(y.dtype.element_ty)
    ONLY: tl.constexpr = (
        AFTER == "only-silu" or AFTER == "only-gelu" or AFTER == "only-gelu_tanh" or AFTER == "only-relu2"
    )
    if AFTER == "" or AFTER == "add" or ONLY:
        if ONLY:
            values = activated(values, AFTER).to(values.dtype)
        values = tl.trans(values)
        place = m.to(tl.int64)[:, None] * N + n[None, :]
        inside = (m < M)[:, None] & (n < N)[None, :]
        if AFTER == "add":
            values = plus(values, residual, place, inside)
        tl.store(y + place, values, mask=inside)
    else:
        HALF: tl.constexpr = tile.shape[0] // 2
        gates, ups = tl.split(tl.permute(tl.reshape(values, (HALF, 2, tile.shape[1])), (0, 2, 1)))
        pair = tl.min(tl.reshape(n, (HALF, 2)), axis=1) // 2
        result = tl.trans(gated(gates, ups, AFTER).to(values.dtype))
        inside = (m < M)[:, None] & (2 * pair < N)[None, :]
        tl.store(y + m.to(tl.int64)[:, None] * (N // 2) + pair[None, :], result, mask=inside)
