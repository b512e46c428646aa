"""Gates, ``activation(gate) * up``, and the rounding of what they give in the same kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from isobit.kernels.gpu.triton.after import activated, gated
from isobit.kernels.gpu.triton.law import (
    as_values_of,
    magnitudes,
    range_of_token,
    scale_of_token,
    store_narrowed,
    store_range,
    store_rounded,
)
from isobit.kernels.gpu.triton.pdl import wait


@triton.jit
def _limited(gate, up, LIMIT: tl.constexpr):
    """gpt-oss's gate, in float32."""
    g, u = gate.to(tl.float32), up.to(tl.float32)
    g = tl.where(g > LIMIT, LIMIT, g)  # what is no number stays so
    u = tl.where(u > LIMIT, LIMIT, tl.where(u < -LIMIT, -LIMIT, u))
    return (u + 1.0) * (g * (1.0 / (1.0 + tl.exp2(g * (-1.702 * 1.4426950408889634)))))


@triton.jit
def _results(
    gate, up, k, K, dtype: tl.constexpr, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, FORM: tl.constexpr,
    CONVERTS: tl.constexpr,
):  # fmt: skip
    """Results ``k`` of a token, as ``dtype``: zeros from K on.

    Args:
        gate, up: the token's; see ``gate``.
    """
    if FORM == "words":
        words = tl.load(gate + k, mask=k < K, other=0)
        if dtype == tl.bfloat16:
            gates = (words << 16).to(tl.float32, bitcast=True)
            ups = (words & -65536).to(tl.float32, bitcast=True)
        else:
            gates = words.to(tl.int16).to(dtype, bitcast=True)
            ups = (words >> 16).to(tl.int16).to(dtype, bitcast=True)
    else:
        STEP: tl.constexpr = 2 if FORM == "turns" else 1
        gates = tl.load(gate + k * STEP, mask=k < K, other=0.0)
        if FORM != "alone":
            ups = tl.load(up + k * STEP, mask=k < K, other=0.0)
    if FORM == "alone":
        wide = activated(gates, ACTIVATION)
    elif ACTIVATION == "limited":
        wide = _limited(gates, ups, LIMIT)
    else:
        wide = gated(gates, ups, ACTIVATION)
    return as_values_of(wide, dtype, CONVERTS)


@triton.jit
def gate(
    gate, up, y, peaks, K, stride_gate, stride_up, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, FORM: tl.constexpr,
    PEAKS: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_K: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """``activation(gate) * up``. Grid: (M, ceil(K / BLOCK_K)).

    Args:
        gate, up: ``[M, K]``, with so many elements from row to row.
        y: ``[M, K]``.
        peaks: int32 ``[M, ceil(K / BLOCK_K)]``, if PEAKS: the largest magnitudes, for ``quantize_parts``.
        ACTIVATION: as ``activated``, or "limited": gpt-oss's, with a LIMIT.
        FORM: how they lie: "apart"; by "turns", every second element; as "words", int32 ``[M, K]`` at ``gate``, of a
            gate of 16 bits and, above it, what it multiplies; or "alone": there is no ``up``.
        LATE: see ``pdl.wait``.
    """
    if OVERLAP:
        wait(LATE)
    m = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    dtype: tl.constexpr = y.dtype.element_ty
    values = _results(gate + m * stride_gate, up + m * stride_up, k, K, dtype, ACTIVATION, LIMIT, FORM, False)
    tl.store(y + m * K + k, values, mask=k < K)
    if PEAKS:
        tl.store(peaks + m * tl.num_programs(1) + tl.program_id(1), tl.max(magnitudes(values), axis=0))


@triton.jit
def gate_token(
    gate, up, codes, scales, static_scale, K, stride_gate, stride_up, qmax,
    DTYPE: tl.constexpr, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, FORM: tl.constexpr, ELEMENT: tl.constexpr,
    WIDE: tl.constexpr, STATIC: tl.constexpr, RECIPROCAL: tl.constexpr, CONVERTS: tl.constexpr, OVERLAP: tl.constexpr,
    HALVES: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """``gate`` and its rounding, or narrowing (ELEMENT "range"), a token in registers. Grid: (M,).

    Args:
        gate, up, ACTIVATION, LIMIT, FORM, LATE: as for ``gate``.
        codes, scales, static_scale, qmax, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS: as for ``quantize_token``.
        DTYPE: of the results, as torch calls it: they are rounded to it before they become codes.
        HALVES: whether the target converts to bfloat16 (``as_values_of``).
        FIRST, REST: values that are computed at once, and behind those; REST may be 0.
    """
    if OVERLAP:
        wait(LATE)
    dtype: tl.constexpr = tl.bfloat16 if DTYPE == "bfloat16" else tl.float16 if DTYPE == "float16" else tl.float32
    m = tl.program_id(0).to(tl.int64)
    gate += m * stride_gate
    up += m * stride_up
    k = tl.arange(0, FIRST)
    values = _results(gate, up, k, K, dtype, ACTIVATION, LIMIT, FORM, HALVES)
    peak = tl.max(magnitudes(values), axis=0)
    if REST > 0:
        after = FIRST + tl.arange(0, REST)
        others = _results(gate, up, after, K, dtype, ACTIVATION, LIMIT, FORM, HALVES)
        peak = tl.maximum(peak, tl.max(magnitudes(others), axis=0))
    codes += m * K
    if ELEMENT == "range":
        power = range_of_token(peak)
        store_range(scales, m, power)
        store_narrowed(codes, k, values, power, k < K, CONVERTS)
        if REST > 0:
            store_narrowed(codes, after, others, power, after < K, CONVERTS)
    else:
        scale = scale_of_token(peak, static_scale, qmax, STATIC)
        tl.store(scales + m, scale)
        store_rounded(codes, k, values, scale, qmax, k < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS)
        if REST > 0:
            store_rounded(codes, after, others, scale, qmax, after < K, ELEMENT, WIDE, STATIC, RECIPROCAL, CONVERTS)
