"""How one number is stored: the element format as a frozen row, and the law of decoding and rounding.

Everything a format has (limits, code points, special values, rounding, the bit field used for packing) derives from
the fields of its row. This file is the one home of these laws; ``codec.py`` repeats them in torch and is proved equal.

A *code* is what is stored for one number. For float formats it is the bit pattern, ``0 <= code < 2**bits``; for
integer formats it is the integer itself (``-8 .. 7`` for ``int4``, ``0 .. 15`` for ``uint4``).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from isobit.errors import FormatError

Kind = Literal["float", "int"]
Specials = Literal["ieee", "fn", "fnuz", "finite", "scale"]

_KINDS = ("float", "int")
_SPECIALS = ("ieee", "fn", "fnuz", "finite", "scale")
_FLOAT32_MAX = float(2**128 - 2**104)
_FLOAT32_TINY = 2.0**-149


def words_of(k: int, bits: int) -> int:
    """How many int32 words hold ``k`` codes of so many bits, one dense bit stream."""
    return -(-k * bits // 32)


@dataclass(frozen=True)
class Element:
    """One element format.

    Attributes:
        name: canonical lower-case name, e.g. ``e4m3fn``.
        kind: ``float`` (sign, exponent, mantissa) or ``int`` (two's complement when signed).
        bits: total width of one code, 1 to 8.
        exponent_bits: width of the exponent field; 0 for integers.
        mantissa_bits: width of the mantissa field; for integers, the bits that are not the sign.
        bias: exponent bias, so that the exponent field ``e > 0`` means ``2**(e - bias)``; 0 for integers.
        signed: whether there is a sign bit.
        specials: which codes are not finite numbers:
            ``ieee``: the top exponent holds infinities (mantissa 0) and NaNs;
            ``fn``: finite, only the all-ones magnitude is NaN;
            ``fnuz``: finite, no negative zero, its code (sign bit alone) is the only NaN;
            ``finite``: every code is a number;
            ``scale``: exponent only, no sign, no zero, no subnormals; all ones is NaN.
        torch_name: the torch dtype that stores exactly these codes, or None.

    Raises:
        FormatError: the fields contradict each other, or a value would not be exact in float32.
    """

    name: str
    kind: Kind
    bits: int
    exponent_bits: int
    mantissa_bits: int
    bias: int
    signed: bool
    specials: Specials
    torch_name: str | None = None

    def __post_init__(self) -> None:
        problems = list(self._contradictions())
        if problems:
            raise FormatError(f"element format {self.name!r}: " + "; ".join(problems))
        low, high = self._exponent_range()
        if 2.0 ** (low - 1) < _FLOAT32_TINY or high > 127:
            raise FormatError(
                f"element format {self.name!r}: exponents from {low} to {high} exceed what float32 holds exactly"
            )

    def _contradictions(self) -> list[str]:
        """Every way in which the fields of this row disagree, as sentences."""
        rules = [
            (self.kind in _KINDS, f"kind {self.kind!r} is none of {', '.join(_KINDS)}"),
            (self.specials in _SPECIALS, f"specials {self.specials!r} is none of {', '.join(_SPECIALS)}"),
            (1 <= self.bits <= 8, f"{self.bits} bits: 1 to 8 are supported"),
            (min(self.exponent_bits, self.mantissa_bits) >= 0, "a field cannot have a negative width"),
            (
                self.signed + self.exponent_bits + self.mantissa_bits == self.bits,
                f"sign {int(self.signed)} + exponent {self.exponent_bits} + mantissa {self.mantissa_bits} bits"
                f" do not add up to {self.bits}",
            ),
        ]
        if self.kind == "int":
            rules += [
                (self.exponent_bits == 0 and self.bias == 0, "an integer has neither exponent nor bias"),
                (self.specials == "finite", "an integer has no special codes: specials must be 'finite'"),
            ]
        else:
            rules += [
                (self.exponent_bits >= 1, "a float needs an exponent"),
                (self.specials != "ieee" or self.mantissa_bits >= 1, "'ieee' needs mantissa bits to tell NaN from inf"),
                (self.specials != "ieee" or self.exponent_bits >= 2, "'ieee' needs an exponent besides the top one"),
                (self.specials != "fnuz" or self.signed, "'fnuz' puts NaN on negative zero and so needs a sign"),
                (
                    (self.specials == "scale") == (not self.signed and self.mantissa_bits == 0),
                    "'scale' and only 'scale' is an exponent with neither sign nor mantissa",
                ),
            ]
        return [message for holds, message in rules if not holds]

    def _exponent_range(self) -> tuple[int, int]:
        """Exponent of the smallest step and of the largest finite value."""
        if self.kind == "int":
            return 0, self.bits
        if self.specials == "scale":
            return -self.bias, 2**self.exponent_bits - 2 - self.bias
        return 1 - self.bias - self.mantissa_bits, 2**self.exponent_bits - 1 - self.bias

    # ------------------------------------------------------------------ code points

    @property
    def num_codes(self) -> int:
        """How many codes there are: ``2**bits``."""
        return 1 << self.bits

    @property
    def codes(self) -> range:
        """Every code, in the order of the stored bit field."""
        return range(-self.packing_offset, self.num_codes - self.packing_offset)

    @property
    def packing_offset(self) -> int:
        """What is added to a code to get its stored bit field (offset binary for signed integers, else 0)."""
        return 1 << (self.bits - 1) if self.kind == "int" and self.signed else 0

    def words(self, k: int) -> int:
        """How many int32 words hold ``k`` packed codes, one dense bit stream."""
        return words_of(k, self.bits)

    @property
    def sign_bit(self) -> int:
        """The bit that makes a float code negative; 0 where there is none."""
        return 1 << (self.bits - 1) if self.kind == "float" and self.signed else 0

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The number behind each code, in the order of ``codes``; NaN and infinities included."""
        return tuple(self.decode(code) for code in self.codes)

    def decode(self, code: int) -> float:
        """The number that ``code`` stands for, exact.

        Raises:
            FormatError: ``code`` is not a code of this format.
        """
        if code not in self.codes:
            raise FormatError(f"{code} is not a code of {self.name} ({self.codes.start} to {self.codes.stop - 1})")
        if self.kind == "int":
            return float(code)
        magnitude = self._decode_magnitude(code & ~self.sign_bit)
        if not code & self.sign_bit:
            return magnitude
        if self.specials == "fnuz" and magnitude == 0.0:
            return math.nan
        return -magnitude

    def _decode_magnitude(self, code: int) -> float:
        """Value of a float code without its sign bit."""
        exponent, mantissa = divmod(code, 2**self.mantissa_bits)
        top = exponent == 2**self.exponent_bits - 1
        if self.specials == "scale":
            return math.nan if top else 2.0 ** (exponent - self.bias)
        if top and self.specials == "ieee":
            return math.nan if mantissa else math.inf
        if top and self.specials == "fn" and mantissa == 2**self.mantissa_bits - 1:
            return math.nan
        if exponent == 0:
            return math.ldexp(mantissa, 1 - self.bias - self.mantissa_bits)
        return math.ldexp(2**self.mantissa_bits + mantissa, exponent - self.bias - self.mantissa_bits)

    # ------------------------------------------------------------------ limits

    @property
    def max(self) -> float:
        """Largest finite value."""
        return max(value for value in self.values if math.isfinite(value))

    @property
    def min(self) -> float:
        """Most negative finite value; for unsigned formats the smallest one."""
        return min(value for value in self.values if math.isfinite(value))

    @property
    def smallest_subnormal(self) -> float | None:
        """Smallest positive subnormal, or None where there are none."""
        if self.kind == "int" or self.specials == "scale" or self.mantissa_bits == 0:
            return None
        return math.ldexp(1, 1 - self.bias - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float | None:
        """Smallest positive normal value; None for integers."""
        if self.kind == "int":
            return None
        return math.ldexp(1, -self.bias if self.specials == "scale" else 1 - self.bias)

    @property
    def has_nan(self) -> bool:
        """Whether a code means NaN."""
        return any(math.isnan(value) for value in self.values)

    @property
    def has_inf(self) -> bool:
        """Whether a code means infinity. (Rounding never produces it: it saturates.)"""
        return any(math.isinf(value) for value in self.values)

    @property
    def has_zero(self) -> bool:
        """Whether zero can be stored."""
        return 0.0 in self.values

    @property
    def has_negative_zero(self) -> bool:
        """Whether zero keeps its sign."""
        return any(value == 0.0 and math.copysign(1.0, value) < 0 for value in self.values)

    @property
    def nan_code(self) -> int | None:
        """The code that NaN is stored as: positive, all mantissa bits set; None where there is no NaN."""
        if not self.has_nan:
            return None
        if self.specials == "fnuz":
            return self.sign_bit
        return self.num_codes - 1 - self.sign_bit

    # ------------------------------------------------------------------ rounding

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """The finite values that rounding chooses from, ascending: magnitudes for signed floats, else all values.

        The code of ``grid[i]`` is ``i + grid_first_code``; it is even exactly where the last stored bit is 0.
        """
        return tuple(self.values[i] for i in range(self.num_codes) if self._on_grid(i))

    def _on_grid(self, field: int) -> bool:
        return math.isfinite(self.values[field]) and not field & self.sign_bit

    @property
    def grid_first_code(self) -> int:
        """Code of ``grid[0]``."""
        return self.codes.start

    @cached_property
    def midpoints(self) -> tuple[float, ...]:
        """Where rounding changes from ``grid[i]`` to ``grid[i + 1]``; each is exact in float32."""
        return tuple((low + high) / 2 for low, high in zip(self.grid, self.grid[1:], strict=False))

    def encode(self, x: float) -> int:
        """The code nearest to ``x``: ties to the even code, saturating, NaN kept. This is the law of rounding.

        Values beyond the largest finite one, infinities included, become the largest finite one with their sign.
        A zero keeps its sign where the format has a negative zero.

        Raises:
            FormatError: ``x`` is NaN and the format has none, or ``x`` is negative and this is a scale format.
        """
        if math.isnan(x):
            if self.nan_code is None:
                raise FormatError(f"NaN cannot be stored as {self.name}, which has no NaN")
            return self.nan_code
        if self.specials == "scale" and x < 0:
            raise FormatError(f"{x} cannot be stored as {self.name}, which holds positive scales only")
        target = abs(x) if self.sign_bit else x
        index = bisect_left(self.midpoints, target)  # how many midpoints lie below
        if index < len(self.midpoints) and self.midpoints[index] == target and (self.grid_first_code + index) % 2:
            index += 1  # a tie, and the lower code is odd
        code = self.grid_first_code + index
        if self.sign_bit and math.copysign(1.0, x) < 0 and not (self.specials == "fnuz" and code == 0):
            code |= self.sign_bit
        return code

    def round(self, x: float) -> float:
        """The value nearest to ``x``: ``decode(encode(x))``."""
        return self.decode(self.encode(x))
