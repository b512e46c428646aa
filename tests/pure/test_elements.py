"""The law of element formats: limits, code points and rounding, against tables and independent oracles."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest

from isobit.errors import FormatError
from isobit.formats.spec import Element
from isobit.formats.table import ALIASES, ELEMENTS, element

FLOATS = [row for row in ELEMENTS.values() if row.kind == "float" and row.specials != "scale"]
INTS = [row for row in ELEMENTS.values() if row.kind == "int"]
INVENTED = [
    Element("e1m4", "float", 6, 1, 4, 0, True, "finite"),
    Element("e4m1", "float", 6, 4, 1, 7, True, "fn"),
    Element("e3m0", "float", 4, 3, 0, 3, True, "finite"),
    Element("e4m3", "float", 8, 4, 3, 7, True, "ieee"),
    Element("e3m4", "float", 8, 3, 4, 3, True, "ieee"),
    Element("e4m4u", "float", 8, 4, 4, 7, False, "finite"),
    Element("int5", "int", 5, 0, 4, 0, True, "finite"),
]
EVERY = [*ELEMENTS.values(), *INVENTED]

ML_DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
}
GFLOAT = {
    "e4m3fn": gfloat.formats.format_info_ocp_e4m3,
    "e5m2": gfloat.formats.format_info_ocp_e5m2,
    "e2m1": gfloat.formats.format_info_ocp_e2m1,
    "e3m2": gfloat.formats.format_info_ocp_e3m2,
    "e2m3": gfloat.formats.format_info_ocp_e2m3,
    "e8m0": gfloat.formats.format_info_ocp_e8m0,
}


def ids(rows: list[Element]) -> list[str]:
    return [row.name for row in rows]


def same(a: float, b: float) -> bool:
    """Equal, the sign of zero included; NaN equals NaN."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


def probes(row: Element) -> list[float]:
    """Every value and midpoint, the float32 neighbours of both, and points beyond the limits; both signs."""
    beyond = [row.max * factor for factor in (1.03, 1.5, 300) if row.max * factor < 3e38]
    points = np.array([*row.grid, *row.midpoints, *beyond], dtype=np.float32)
    around = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    around = around[np.isfinite(around)]
    if row.specials == "scale":
        return [float(x) for x in around if x > 0]
    return [float(x) for x in np.concatenate([around, -around])]


# Limits as the standards print them (OFP8 1.0 table 1, MX 1.0 sections 5.3, arXiv 2206.02915 table 1).
LIMITS = {
    #            max      min       smallest subnormal, smallest normal, NaN, inf, -0
    "e4m3fn": (448.0, -448.0, 2**-9, 2**-6, True, False, True),
    "e5m2": (57344.0, -57344.0, 2**-16, 2**-14, True, True, True),
    "e4m3fnuz": (240.0, -240.0, 2**-10, 2**-7, True, False, False),
    "e5m2fnuz": (57344.0, -57344.0, 2**-17, 2**-15, True, False, False),
    "e2m1": (6.0, -6.0, 0.5, 1.0, False, False, True),
    "e3m2": (28.0, -28.0, 2**-4, 2**-2, False, False, True),
    "e2m3": (7.5, -7.5, 2**-3, 1.0, False, False, True),
    "e8m0": (2.0**127, 2.0**-127, None, 2.0**-127, True, False, False),
    "int8": (127.0, -128.0, None, None, False, False, False),
    "int4": (7.0, -8.0, None, None, False, False, False),
    "uint4": (15.0, 0.0, None, None, False, False, False),
    "int3": (3.0, -4.0, None, None, False, False, False),
    "int2": (1.0, -2.0, None, None, False, False, False),
}


def test_limits() -> None:
    assert set(LIMITS) == set(ELEMENTS)
    for name, expected in LIMITS.items():
        row = ELEMENTS[name]
        found = (row.max, row.min, row.smallest_subnormal, row.smallest_normal)
        assert found + (row.has_nan, row.has_inf, row.has_negative_zero) == expected, name


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_decodes_as_ml_dtypes(name: str) -> None:
    row = next(row for row in EVERY if row.name == name)
    oracle = np.arange(row.num_codes, dtype=np.uint8).view(ML_DTYPES[name]).astype(np.float64)
    assert all(same(ours, float(theirs)) for ours, theirs in zip(row.values, oracle, strict=True))


@pytest.mark.parametrize("name", GFLOAT)
def test_every_code_decodes_as_gfloat(name: str) -> None:
    row = ELEMENTS[name]
    for code in row.codes:
        assert same(row.decode(code), float(gfloat.decode_float(GFLOAT[name], code).fval)), code


@pytest.mark.parametrize("row", INTS, ids=ids(INTS))
def test_integer_codes_are_their_values(row: Element) -> None:
    assert row.values == tuple(float(code) for code in row.codes)
    assert len(row.codes) == row.num_codes == 2**row.bits


@pytest.mark.parametrize("row", EVERY, ids=ids(EVERY))
def test_every_finite_code_survives_a_round_trip(row: Element) -> None:
    for code, value in zip(row.codes, row.values, strict=True):
        if math.isfinite(value):
            assert row.encode(value) == code


@pytest.mark.parametrize("row", EVERY, ids=ids(EVERY))
def test_rounding_is_nearest_with_ties_to_even_in_exact_fractions(row: Element) -> None:
    """An independent definition: exact distances to every value, the even code among equals."""
    finite = [(code, value) for code, value in zip(row.codes, row.values, strict=True) if math.isfinite(value)]
    for x in probes(row):
        close = sorted(finite, key=lambda pair: abs(x - pair[1]))[:5]  # the rest is far beyond rounding errors
        distances = {code: abs(Fraction(x) - Fraction(value)) for code, value in close}
        nearest = [code for code, distance in distances.items() if distance == min(distances.values())]
        values = {row.decode(code) for code in nearest}
        wanted = {row.decode(code) for code in nearest if len(values) == 1 or code % 2 == 0}
        assert row.round(x) in wanted, x


@pytest.mark.parametrize("name", ML_DTYPES)
def test_rounding_equals_ml_dtypes(name: str) -> None:
    """Below the point where ml_dtypes overflows to NaN or infinity instead of saturating."""
    row = next(row for row in EVERY if row.name == name)
    points = [x for x in probes(row) if abs(x) <= row.max]
    if row.specials == "scale":  # ties: the test below; float32 subnormals: ml_dtypes rounds all of them up
        points = [x for x in points if x not in row.midpoints and x >= 2.0**-126]
    points = np.array(points, dtype=np.float32)
    oracle = points.astype(ML_DTYPES[name]).astype(np.float64)
    for x, theirs in zip(points, oracle, strict=True):
        assert same(row.round(float(x)), float(theirs)), float(x)


def test_ml_dtypes_rounds_ties_between_scales_up_and_we_to_even() -> None:
    row = ELEMENTS["e8m0"]
    ties = np.array(row.midpoints, dtype=np.float32)
    theirs = ties.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    assert theirs.tolist() == list(range(1, 255))
    assert [row.encode(float(x)) for x in ties] == [code - code % 2 for code in range(1, 255)]


@pytest.mark.parametrize("name", GFLOAT)
def test_rounding_equals_gfloat_saturating(name: str) -> None:
    row, info = ELEMENTS[name], GFLOAT[name]
    for x in probes(row):
        theirs = gfloat.round_float(info, x, gfloat.RoundMode.TiesToEven, sat=True)
        assert same(row.round(x), float(theirs)), x


@pytest.mark.parametrize("row", INTS, ids=ids(INTS))
def test_integer_rounding_equals_numpy_rint(row: Element) -> None:
    for x in probes(row):
        assert row.encode(x) == int(np.clip(np.rint(x), row.min, row.max))


# ---------------------------------------------------------------------- the edge cases, each by name


@pytest.mark.parametrize("row", FLOATS, ids=ids(FLOATS))
def test_zero_keeps_its_sign_where_the_format_has_negative_zero(row: Element) -> None:
    assert row.encode(0.0) == 0
    assert row.encode(-0.0) == (row.sign_bit if row.has_negative_zero else 0)
    tiny = -row.grid[1] / 4
    assert row.encode(tiny) == (row.sign_bit if row.has_negative_zero else 0)


@pytest.mark.parametrize("row", EVERY, ids=ids(EVERY))
def test_overflow_and_infinity_saturate(row: Element) -> None:
    for x in (row.max * 1.01, row.max * 2, 3e38, math.inf):
        assert row.round(x) == row.max
    if row.specials != "scale":
        for x in (-3e38, -math.inf):
            assert row.round(x) == row.min


@pytest.mark.parametrize("row", EVERY, ids=ids(EVERY))
def test_nan_is_kept_or_refused(row: Element) -> None:
    if row.has_nan:
        assert math.isnan(row.round(math.nan))
    else:
        with pytest.raises(FormatError, match="has no NaN"):
            row.encode(math.nan)


@pytest.mark.parametrize("row", FLOATS, ids=ids(FLOATS))
def test_subnormals_are_equally_spaced_and_round_to_even(row: Element) -> None:
    step = row.smallest_subnormal
    assert step is not None and row.smallest_normal == step * 2**row.mantissa_bits
    for i in range(2**row.mantissa_bits):
        assert row.decode(i) == i * step
        assert row.encode((i + 0.5) * step) == (i if i % 2 == 0 else i + 1)


def test_half_of_the_smallest_subnormal_rounds_to_zero() -> None:
    assert ELEMENTS["e4m3fn"].encode(2**-10) == 0
    assert ELEMENTS["e4m3fn"].encode(math.nextafter(2**-10, 1)) == 1


def test_scale_format_is_positive_only() -> None:
    row = ELEMENTS["e8m0"]
    assert row.encode(0.0) == 0 and row.decode(0) == 2.0**-127
    assert row.encode(1.0) == 127 and row.encode(math.inf) == 254
    with pytest.raises(FormatError, match="positive scales only"):
        row.encode(-1.0)


def test_codes_out_of_range_are_refused() -> None:
    for name, code in (("e4m3fn", 256), ("e2m1", 16), ("int4", 8), ("int4", -9), ("uint4", -1)):
        with pytest.raises(FormatError, match="is not a code of"):
            ELEMENTS[name].decode(code)


# ---------------------------------------------------------------------- rows that contradict themselves


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("x", "float", 8, 4, 4, 7, True, "fn"), "do not add up"),
        (("x", "float", 9, 5, 3, 15, True, "fn"), "1 to 8 are supported"),
        (("x", "int", 8, 4, 3, 7, True, "finite"), "neither exponent nor bias"),
        (("x", "int", 8, 0, 7, 0, True, "fn"), "no special codes"),
        (("x", "float", 8, 0, 7, 0, True, "finite"), "needs an exponent"),
        (("x", "float", 6, 5, 0, 15, True, "ieee"), "tell NaN from inf"),
        (("x", "float", 8, 4, 4, 8, False, "fnuz"), "needs a sign"),
        (("x", "float", 8, 4, 3, 7, True, "scale"), "neither sign nor mantissa"),
        (("x", "float", 8, 4, 3, 7, True, "odd"), "none of ieee"),
        (("x", "decimal", 8, 4, 3, 7, True, "fn"), "none of float"),
        (("x", "float", 8, 4, 3, 160, True, "fn"), "what float32 holds"),
    ],
)
def test_a_contradictory_row_cannot_exist(fields: tuple, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        Element(*fields)


def test_rows_are_frozen_and_usable_as_keys() -> None:
    with pytest.raises(AttributeError):
        ELEMENTS["e4m3fn"].bias = 8  # type: ignore[misc]
    assert len({row: row.name for row in ELEMENTS.values()}) == len(ELEMENTS)


def test_names_and_aliases() -> None:
    assert element("E4M3FN") is ELEMENTS["e4m3fn"]
    assert element(ELEMENTS["int4"]) is ELEMENTS["int4"]
    assert all(element(alias) is ELEMENTS[name] for alias, name in ALIASES.items())
    with pytest.raises(FormatError, match="Did you mean e4m3fnuz"):
        element("e4m3fnu")


# ---------------------------------------------------------------------- the table in docs/formats.md


def doc_row(row: Element) -> str:
    """The line of ``row`` in the element table of docs/formats.md."""
    layout = f"{int(row.signed)}/{row.exponent_bits}/{row.mantissa_bits}" if row.kind == "float" else "integer"
    special = [word for word, has in (("NaN", row.has_nan), ("inf", row.has_inf), ("-0", row.has_negative_zero)) if has]
    smallest = row.smallest_subnormal or row.smallest_normal
    cells = [
        f"`{row.name}`",
        str(row.bits),
        layout,
        str(row.bias) if row.kind == "float" else "",
        f"{row.max:g}" if row.max < 1e6 else f"2^{int(math.log2(row.max))}",
        f"{row.min:g}" if row.specials != "scale" else f"2^{int(math.log2(row.min))}",
        "" if smallest is None else f"2^{int(math.log2(smallest))}",
        ", ".join(special) or "none",
    ]
    return "| " + " | ".join(cells) + " |"


def test_the_element_table_of_the_documentation_is_this_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    documented = [line for line in text.splitlines() if line.startswith(tuple(f"| `{name}` |" for name in ELEMENTS))]
    documented = [line for line in documented if line.count("|") == 9]
    assert documented == [doc_row(row) for row in ELEMENTS.values()]
