"""Every element format as one row. A new format is a new row: limits, rounding, packing and math derive from it."""

from __future__ import annotations

import difflib

from isobit.errors import FormatError
from isobit.formats.spec import Element, Specials


def _float(
    name: str, exponent_bits: int, mantissa_bits: int, bias: int, specials: Specials, torch_name: str | None = None
) -> Element:
    signed = specials != "scale"
    bits = signed + exponent_bits + mantissa_bits
    return Element(name, "float", bits, exponent_bits, mantissa_bits, bias, signed, specials, torch_name)


def _int(name: str, bits: int, signed: bool, torch_name: str | None = None) -> Element:
    return Element(name, "int", bits, 0, bits - signed, 0, signed, "finite", torch_name)


# Sources: OCP 8-bit floating point (OFP8) 1.0 for e4m3fn and e5m2; OCP Microscaling (MX) 1.0 for e2m1, e3m2, e2m3 and
# e8m0; "8-bit Numerical Formats for Deep Neural Networks" (arXiv 2206.02915) for the two fnuz formats.
_ROWS = (
    # name, exponent bits, mantissa bits, bias, special codes, torch dtype
    _float("e4m3fn", 4, 3, 7, "fn", "float8_e4m3fn"),
    _float("e5m2", 5, 2, 15, "ieee", "float8_e5m2"),
    _float("e4m3fnuz", 4, 3, 8, "fnuz", "float8_e4m3fnuz"),
    _float("e5m2fnuz", 5, 2, 16, "fnuz", "float8_e5m2fnuz"),
    _float("e2m1", 2, 1, 1, "finite"),
    _float("e3m2", 3, 2, 3, "finite"),
    _float("e2m3", 2, 3, 1, "finite"),
    _float("e8m0", 8, 0, 127, "scale", "float8_e8m0fnu"),
    # name, bits, signed, torch dtype
    _int("int8", 8, True, "int8"),
    _int("int4", 4, True),
    _int("uint4", 4, False),
    _int("int3", 3, True),
    _int("int2", 2, True),
)

ELEMENTS: dict[str, Element] = {row.name: row for row in _ROWS}

# Other spellings of the same rows, lower case.
ALIASES: dict[str, str] = {
    "fp8": "e4m3fn",
    "fp8_e4m3": "e4m3fn",
    "e4m3": "e4m3fn",
    "float8_e4m3fn": "e4m3fn",
    "fp8_e5m2": "e5m2",
    "float8_e5m2": "e5m2",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
    "fp4": "e2m1",
    "e2m1fn": "e2m1",
    "float4_e2m1fn": "e2m1",
    "e3m2fn": "e3m2",
    "float6_e3m2fn": "e3m2",
    "e2m3fn": "e2m3",
    "float6_e2m3fn": "e2m3",
    "e8m0fnu": "e8m0",
    "float8_e8m0fnu": "e8m0",
}


def element(name: str | Element) -> Element:
    """The element format called ``name``, in any of its spellings; an Element is returned as it is.

    Raises:
        FormatError: there is no such format; the message lists all names and the closest one.
    """
    if isinstance(name, Element):
        return name
    key = name.lower().replace("-", "_")
    row = ELEMENTS.get(ALIASES.get(key, key))
    if row is None:
        close = difflib.get_close_matches(key, [*ELEMENTS, *ALIASES], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise FormatError(f"unknown element format {name!r}; known are {', '.join(ELEMENTS)}.{hint}")
    return row
