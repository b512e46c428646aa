"""Which format holds all values of another one: proved by going through every code, never asserted.

A lowering may widen operands only along a proof made here. A value may be off by a power of two that is the same for
all codes (:attr:`Widening.exponent`), because such a factor moves into the scale without a rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from isobit.formats.table import ELEMENTS

# Mantissa bits, smallest and largest exponent of normal values (IEEE 754 binary16 and binary32; bfloat16).
_FLOATS = {"float16": (10, -14, 15), "bfloat16": (7, -126, 127), "float32": (23, -126, 127)}
_SUBNORMAL_STEPS = {name: bits for name, (bits, _, _) in _FLOATS.items()}

FLOATS = tuple(_FLOATS)


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
def widen(source: str, target: str) -> Widening | None:
    """How ``source`` fits into ``target``, or None when some number does not.

    Args:
        source: an element format, or ``float16``, ``bfloat16``, ``float32``.
        target: the same.
    """
    if source == target:
        return Widening(source, target, 0, True, _has_subnormals(source))
    if source in _FLOATS:
        return _widen_float(source, target)
    values = ELEMENTS[source].values
    finite = sorted({abs(value) for value in values if math.isfinite(value)} | _negatives(source))
    # Floats of fewer bits may differ from each other in nothing but the bias: then one power of two maps all of them.
    for exponent in (0,) if target in _FLOATS else (0, -1, 1):
        numbers = [math.ldexp(value, exponent) for value in finite]
        if all(_holds(target, value) for value in numbers):
            return Widening(
                source,
                target,
                exponent,
                _keeps_specials(source, target),
                any(_is_subnormal(target, v) for v in numbers),
            )
    return None


def _negatives(source: str) -> set[float]:
    return {value for value in ELEMENTS[source].values if value < 0 and math.isfinite(value)}


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


def exactly(name: str) -> Literal["integer", "float"]:
    """Whether sums of products of a format are whole numbers, which integer units add up without any rounding."""
    return "integer" if name in ELEMENTS and ELEMENTS[name].kind == "int" else "float"
