"""Scheme names, the specs behind them, and their fit to shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isobit.errors import SchemeError
from isobit.formats.fitting import check_shape, group_sizes_that_divide
from isobit.formats.scales import POWERS, UNDER_ONE
from isobit.formats.schemes import (
    GROUPED,
    SCHEMES,
    ActSpec,
    Scheme,
    WeightSpec,
    scheme,
)

# Section 6 of the design, name by name.
NAMES = {
    "bf16": ["q0bf16"],
    "f16": ["q0f16"],
    "fp8": ["FP8_DYNAMIC"],
    "fp8-e5m2": ["e5m2_e5m2_f16"],
    "fp8-static": ["FP8", "e4m3_e4m3_f16"],
    "fp8-block": ["FP8_BLOCK", "fp8_e4m3fn_bf16_block_scale"],
    "fp8-w8a16": [],
    "int8": ["W8A8", "INT8"],
    "int8-w8a16": ["W8A16", "q8f16_1"],
    "int4": ["W4A16"],
    "int4-g32": ["q4f16_1"],
    "int4-asym": ["W4A16_ASYM", "q4f16_autoawq"],
    "w4a8": ["W4A8"],
    "int3": ["q3f16_1"],
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_and_alias(name: str) -> None:
    assert scheme(name) is SCHEMES[name]
    assert scheme(name.upper().replace("-", "_")).name == (name if name != "fp8" else "fp8-static")
    for alias in NAMES[name]:
        assert scheme(alias).name == name
        if alias != "FP8":
            assert scheme(alias.lower().replace("_", "-")).name == name
            assert scheme(alias.upper()).name == name


def test_only_the_exact_spelling_of_static_fp8_differs_by_case() -> None:
    assert scheme("FP8").name == "fp8-static"
    assert scheme("fp8").name == scheme("Fp8").name == "fp8"


def test_what_the_rows_say() -> None:
    expected = {
        "fp8": (WeightSpec("e4m3fn", "channel"), ActSpec("e4m3fn", "token")),
        "fp8-e5m2": (WeightSpec("e5m2", "channel"), ActSpec("e5m2", "token")),
        "fp8-static": (WeightSpec("e4m3fn", "tensor"), ActSpec("e4m3fn", "tensor", dynamic=False)),
        "fp8-block": (WeightSpec("e4m3fn", "block", block=(128, 128)), ActSpec("e4m3fn", "group", 128)),
        "fp8-w8a16": (WeightSpec("e4m3fn", "channel"), None),
        "int8": (WeightSpec("int8", "channel"), ActSpec("int8", "token")),
        "int8-w8a16": (WeightSpec("int8", "channel"), None),
        "int4": (WeightSpec("int4", "group", 128), None),
        "int4-g32": (WeightSpec("int4", "group", 32), None),
        "int4-asym": (WeightSpec("uint4", "group", 128, symmetric=False), None),
        "w4a8": (WeightSpec("int4", "group", 128), ActSpec("int8", "token")),
        "int3": (WeightSpec("int3", "group", 40), None),
        "int2": (WeightSpec("int2", "group", 32), None),
        "mxfp4": (WeightSpec("e2m1", "group", 32, scale=POWERS), ActSpec("e2m1", "group", 32, scale=POWERS)),
        "mxfp4-w16": (WeightSpec("e2m1", "group", 32, scale=POWERS), None),
        "mxfp8": (WeightSpec("e4m3fn", "group", 32, scale=POWERS), ActSpec("e4m3fn", "group", 32, scale=POWERS)),
        "mxfp8-w16": (WeightSpec("e4m3fn", "group", 32, scale=POWERS), None),
        "nvfp4": (WeightSpec("e2m1", "group", 16, scale=UNDER_ONE), ActSpec("e2m1", "group", 16, scale=UNDER_ONE)),
        "nvfp4-w16": (WeightSpec("e2m1", "group", 16, scale=UNDER_ONE), None),
        "bf16": (None, None),
        "f16": (None, None),
    }
    assert {name: (row.weights, row.activations) for name, row in SCHEMES.items()} == expected
    assert {name for name, row in SCHEMES.items() if row.needs_calibration} == {"fp8-static", "nvfp4"}
    assert SCHEMES["bf16"].dtype == "bfloat16" and SCHEMES["f16"].dtype == "float16"


@pytest.mark.parametrize(
    ("name", "canonical", "group"),
    [
        ("int4-g64", "int4-g64", 64),
        ("INT4_G64", "int4-g64", 64),
        ("int4-g128", "int4", 128),
        ("W4A16-g32", "int4-g32", 32),
        ("int3-g32", "int3-g32", 32),
        ("int3-g40", "int3", 40),
        ("int2-g32", "int2", 32),
        ("int4-asym-g64", "int4-asym-g64", 64),
        ("int8-w8a16-g128", "int8-w8a16-g128", 128),
        ("w4a8-g128", "w4a8", 128),
        ("W4A8-g32", "w4a8-g32", 32),
    ],
)
def test_group_sizes_in_names(name: str, canonical: str, group: int) -> None:
    found = scheme(name)
    assert (found.name, found.weights and found.weights.group) == (canonical, group)
    assert scheme(found.name) == found


def test_unknown_names_list_what_is_known() -> None:
    with pytest.raises(SchemeError, match="Did you mean int8") as error:
        scheme("int9")
    assert all(name in str(error.value) for name in [*SCHEMES, *GROUPED])
    assert scheme("w4a8-g32").activations == SCHEMES["w4a8"].activations
    assert scheme("w4a8-g32").note.startswith("4-bit weights, a scale per 32, ")
    for bad in ("fp8-g32", "int4-g", "", "int4-g0", "int4-g7", "bf16-g32"):
        with pytest.raises(SchemeError):
            scheme(bad)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: WeightSpec("int4", "group"), "'group' is given"),
        (lambda: WeightSpec("int4", "channel", 32), "'group' is given"),
        (lambda: WeightSpec("int4", "group", 20), "multiple of 8"),
        (lambda: WeightSpec("e4m3fn", "block"), "'block' is given"),
        (lambda: WeightSpec("e4m3fn", "row"), "none of tensor"),
        (lambda: WeightSpec("e8m0", "channel"), "no zero"),
        (lambda: WeightSpec("uint4", "group", 32), "need a zero point"),
        (lambda: WeightSpec("int4", "group", 32, symmetric=False), "symmetric"),
        (lambda: ActSpec("e4m3fn", "token", dynamic=False), "one per tensor"),
        (lambda: ActSpec("uint4", "token"), "signed format"),
        (lambda: ActSpec("int8", "channel"), "none of token"),
        (lambda: Scheme("x", None), "either weights or dtype"),
        (lambda: Scheme("x", None, ActSpec("int8", "token"), dtype="bfloat16"), "activations without weights"),
    ],
)
def test_contradictory_specs_cannot_exist(make, reason: str) -> None:
    with pytest.raises(SchemeError, match=reason):
        make()


def test_bits_per_weight() -> None:
    assert SCHEMES["fp8"].bits_per_weight(4096, 4096) == 8 + 16 / 4096
    assert SCHEMES["int4"].bits_per_weight(4096, 4096) == 4 + 16 / 128
    assert SCHEMES["int4-g32"].bits_per_weight(4096, 4096) == 4.5
    assert SCHEMES["int4-asym"].bits_per_weight(4096, 4096) == 4 + (16 + 4) / 128
    assert SCHEMES["int3"].bits_per_weight(640, 640) == pytest.approx(3.4)
    assert SCHEMES["fp8-block"].bits_per_weight(4096, 4096) == 8 + 16 / 128**2
    assert SCHEMES["bf16"].bits_per_weight() == 16
    assert WeightSpec("int3", "channel").bits_per_weight(1, 11) == (64 + 16) / 11  # padded to whole words


def test_group_sizes_that_divide() -> None:
    assert group_sizes_that_divide(4096) == (8, 16, 32, 64, 128, 256)
    assert group_sizes_that_divide(640) == (8, 16, 32, 40, 64, 80, 128, 160)
    assert group_sizes_that_divide(100) == ()


def test_shapes_that_fit() -> None:
    check_shape(SCHEMES["int4"].weights, 3, 256, "m")
    check_shape(SCHEMES["fp8-block"].weights, 200, 256, "m")  # N need not be a multiple
    check_shape(SCHEMES["int8"].weights, 1, 7, "m")


@pytest.mark.parametrize(
    ("name", "k", "parts"),
    [
        ("int3", 4096, ["model.layers.0.q_proj", "K = 4096", "group size 40", "8, 16, 32, 64", "Use int3-g32 instead"]),
        ("int4", 1088, ["Use int4-g64 instead"]),
        ("int4-asym", 96, ["Use int4-asym-g32 instead"]),
        ("int4", 40, ["sizes that divide it: 8, 40", "Use int4-g40 instead"]),
        ("int8-w8a16-g128", 64, ["Use int8-w8a16-g64 instead"]),
        ("int4", 100, ["no multiple of 8", "int8-w8a16"]),
        ("fp8-block", 200, ["block width 128", "fp8"]),
        ("w4a8", 1088, ["Use w4a8-g64 instead"]),
        ("w4a8", 100, ["no multiple of 8", "for example int8"]),
    ],
)
def test_shapes_that_do_not_fit_name_what_would(name: str, k: int, parts: list[str]) -> None:
    row = scheme(name)
    assert row.weights is not None
    with pytest.raises(SchemeError) as error:
        check_shape(row.weights, 64, k, "model.layers.0.q_proj", row.activations)
    assert all(part in str(error.value) for part in parts), str(error.value)
    if "Use " in str(error.value):  # the suggestion works
        instead = scheme(str(error.value).split("Use ")[1].split()[0])
        check_shape(instead.weights, 64, k, "m")  # type: ignore[arg-type]
        assert instead.activations == row.activations


def test_descriptions_need_no_torch() -> None:
    code = "import sys, isobit.formats.schemes, isobit.formats.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------- the table in docs/formats.md


def doc_row(row: Scheme) -> str:
    """The line of ``row`` in the scheme table of docs/formats.md."""
    weights = f"kept, as {row.dtype}"
    if row.weights is not None:
        size = row.weights.group or ("x".join(map(str, row.weights.block)) if row.weights.block else "")
        zero = "" if row.weights.symmetric else " with zero point"
        weights = f"{row.weights.element}, {row.weights.granularity} {size}".strip() + zero
    activations = "kept"
    if row.activations is not None:
        how = "dynamic" if row.activations.dynamic else "static"
        activations = f"{row.activations.element}, {row.activations.granularity} {row.activations.group or ''}".strip()
        activations += f", {how}"
    cells = [
        f"`{row.name}`",
        weights,
        activations,
        f"{row.bits_per_weight(4096, 5120):.3f}",
        ", ".join(f"`{alias}`" for alias in row.aliases),
    ]
    return "| " + " | ".join(cells) + " |"


def test_the_scheme_table_of_the_documentation_is_this_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    documented = [line for line in text.splitlines() if line.startswith(tuple(f"| `{name}` |" for name in SCHEMES))]
    documented = [line for line in documented if line.count("|") == 6]
    assert documented == [doc_row(row) for row in SCHEMES.values()]
