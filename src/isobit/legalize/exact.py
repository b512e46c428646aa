"""Which format holds all values of another one: proved by going through every code, never asserted.

A lowering may widen operands only along a proof made here. A value may be off by a power of two that is the same for
all codes (:attr:`Widening.exponent`), because such a factor moves into the scale without a rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from isobit.formats.spec import Element
from isobit.formats.table import ELEMENTS

# Mantissa bits, smallest and largest exponent of normal values (IEEE 754 binary16 and binary32; bfloat16).
_FLOATS = {"float16": (10, -14, 15), "bfloat16": (7, -126, 127), "float32": (23, -126, 127)}

FLOATS = tuple(_FLOATS)
_SMALLEST, _BEYOND = 2.0**-126, 2.0**128  # normal float32 numbers, which scales and weights are


@dataclass(frozen=True)
class Widening:
    """Proof that every number of one format is a number of another.

    Attributes:
        source, target: the formats.
        exponent: value in ``target`` = value in ``source`` times ``2**exponent``.
        keeps_specials: whether NaN and infinities survive too. Where they do not, codes that mean them must be refused.
        needs_subnormals: whether some number becomes a subnormal one, which a unit must not flush to zero.
    """

    source: str
    target: str
    exponent: int
    keeps_specials: bool
    needs_subnormals: bool


def bits(name: str) -> int:
    """Width of one number of a format or dtype."""
    return {"float16": 16, "bfloat16": 16, "float32": 32}.get(name) or ELEMENTS[name].bits


@lru_cache(maxsize=4096)
def widen(source: str, target: str, zero_points: bool = False, scales: str = "") -> Widening | None:
    """How ``source`` fits into ``target``, or None when some number does not.

    Args:
        source: an element format, or ``float16``, ``bfloat16``, ``float32``.
        target: the same.
        zero_points: the numbers are the differences of two codes, as in weights with a zero point.
        scales: the numbers are codes times scales in that element format, those that are normal float32; what is less
            or more than those is beyond any weight.
    """
    if scales:
        return _widen_scaled(source, target, scales)
    if source == target and not zero_points:
        return Widening(source, target, 0, True, _has_subnormals(source))
    if source in _FLOATS:
        return _widen_float(source, target)
    row = ELEMENTS[source]
    values = {a - b for a in row.values for b in row.values} if zero_points else set(row.values)
    finite = sorted(value for value in values if math.isfinite(value))
    for exponent in _exponents(row, target):
        numbers = [math.ldexp(value, exponent) for value in finite]
        if all(_holds(target, value) for value in numbers):
            subnormal = any(_is_subnormal(target, value) for value in numbers)
            return Widening(source, target, exponent, _keeps_specials(source, target), subnormal)
    return None


def _widen_scaled(source: str, target: str, scales: str) -> Widening | None:
    """All codes times all scales; into the 16-bit and 32-bit floats."""
    if target not in _FLOATS:
        return None
    codes, steps = ({abs(v) for v in ELEMENTS[name].values if math.isfinite(v) and v} for name in (source, scales))
    subnormal = False
    for number in sorted({code * step for code in codes for step in steps}, reverse=True):
        if not _SMALLEST <= number < _BEYOND:
            continue
        if not _holds(target, number):
            return None
        subnormal = subnormal or _is_subnormal(target, number)
    return Widening(source, target, 0, True, subnormal)


def _exponents(row: Element, target: str) -> tuple[int, ...]:
    """The powers of two worth trying: none for plain floats, and the one that leaves the bits of a code as they are."""
    other = ELEMENTS.get(target)
    if other is None:
        return (0,)
    if (row.exponent_bits, row.mantissa_bits, row.kind) == (other.exponent_bits, other.mantissa_bits, other.kind):
        return (row.bias - other.bias, 0)
    return (0, 1, -1)


def _widen_float(source: str, target: str) -> Widening | None:
    """Between plain floats, whose ranges of exponents and mantissas must nest (subnormals included)."""
    if target not in _FLOATS:
        return None
    (bits_a, low_a, high_a), (bits_b, low_b, high_b) = _FLOATS[source], _FLOATS[target]
    if bits_b < bits_a or high_b < high_a or low_b - bits_b > low_a - bits_a:
        return None
    return Widening(source, target, 0, True, low_a - bits_a < low_b)


def _holds(target: str, value: float) -> bool:
    if target not in _FLOATS:
        return value in ELEMENTS[target].values
    if value == 0.0:
        return True
    mantissa_bits, low, high = _FLOATS[target]
    fraction, exponent = math.frexp(abs(value))  # value = fraction * 2**exponent, 0.5 <= fraction < 1
    step = max(exponent - 1, low) - mantissa_bits
    return exponent - 1 <= high and math.ldexp(fraction, exponent - step).is_integer()


def _is_subnormal(target: str, value: float) -> bool:
    if target in _FLOATS:
        return 0.0 < abs(value) < 2.0 ** _FLOATS[target][1]
    smallest = ELEMENTS[target].smallest_normal
    return smallest is not None and 0.0 < abs(value) < smallest


def _has_subnormals(name: str) -> bool:
    return name in _FLOATS or ELEMENTS[name].smallest_subnormal is not None


def _keeps_specials(source: str, target: str) -> bool:
    row = ELEMENTS[source]
    if target in _FLOATS:
        return True
    other = ELEMENTS[target]
    return (other.has_nan or not row.has_nan) and (other.has_inf or not row.has_inf)
