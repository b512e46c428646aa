"""The torch codec against the law of spec.py, exhaustively, and against torch's own float8 dtypes."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from isobit.errors import FormatError
from isobit.formats import codec
from isobit.formats.pack import code_dtype
from isobit.formats.spec import Element
from isobit.formats.table import ELEMENTS

INVENTED = [
    Element("e1m4", "float", 6, 1, 4, 0, True, "finite"),
    Element("e4m1", "float", 6, 4, 1, 7, True, "fn"),
    Element("e4m3", "float", 8, 4, 3, 7, True, "ieee"),
    Element("e4m4u", "float", 8, 4, 4, 7, False, "finite"),
    Element("int5", "int", 5, 0, 4, 0, True, "finite"),
]
EVERY = [*ELEMENTS.values(), *INVENTED]
ROWS = pytest.mark.parametrize("row", EVERY, ids=[row.name for row in EVERY])


def bits(x: torch.Tensor) -> torch.Tensor:
    """Float32 bit patterns with all NaNs alike, so that equality also compares the sign of zero."""
    return torch.where(x.isnan(), torch.full_like(x, math.nan), x).view(torch.int32)


def every_code(row: Element) -> torch.Tensor:
    return torch.tensor(list(row.codes), dtype=torch.int16).to(code_dtype(row))


def edge_values(row: Element) -> torch.Tensor:
    """Values, midpoints, their float32 neighbours, zeros, float32 subnormals, overflow and infinities."""
    points = torch.tensor([*row.grid, *row.midpoints, 0.0, 1e-45, 1e-40, 2.0**-126, 1.0, 1e30, 3.4e38])
    around = [points, torch.nextafter(points, torch.tensor(math.inf)), torch.nextafter(points, torch.tensor(0.0))]
    positive = torch.cat([*around, torch.tensor([row.max * 1.03 if row.max < 1e38 else 3e38, math.inf])])
    return positive[positive >= 0] if row.specials == "scale" else torch.cat([positive, -positive])


@ROWS
def test_every_code_decodes_as_the_law(row: Element) -> None:
    law = torch.tensor(row.values, dtype=torch.float64).float()
    assert torch.equal(bits(codec.decode(every_code(row), row)), bits(law))


@ROWS
def test_every_edge_encodes_as_the_law(row: Element) -> None:
    x = edge_values(row)
    assert codec.encode(x, row).tolist() == [row.encode(value) for value in x.tolist()]


@ROWS
def test_bulk_and_single_elements_agree(row: Element) -> None:
    """Vectorised loops and their scalar remainders give the same codes, whatever the length and offset."""
    x = edge_values(row)
    whole = codec.encode(x, row)
    assert torch.equal(whole, torch.cat([codec.encode(one, row) for one in x.split(1)]))
    assert torch.equal(whole[3:], codec.encode(x[3:], row))
    back = codec.decode(whole, row)
    assert torch.equal(bits(back), torch.cat([bits(codec.decode(one, row)) for one in whole.split(1)]))


@ROWS
def test_nan_is_kept_or_refused(row: Element) -> None:
    x = torch.tensor([1.0, math.nan, 2.0])
    if row.nan_code is None:
        with pytest.raises(FormatError, match="has no NaN"):
            codec.encode(x, row)
    else:
        assert codec.encode(x, row).tolist() == [row.encode(1.0), row.nan_code, row.encode(2.0)]
        assert codec.round_to(x, row).isnan().tolist() == [False, True, False]
        assert codec.encode(-x[1:2] if row.signed else x[1:2], row).tolist() == [row.nan_code]


def all_upper_halves() -> torch.Tensor:
    """A float32 for each pattern of its upper 16 bits, with the lower half at 0, 1 and all ones: 196,608 numbers.

    No midpoint of a format of 8 bits needs more than 7 mantissa bits, so these meet every case of rounding.
    """
    upper = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    return torch.cat([upper, upper | 1, upper | 0xFFFF]).view(torch.float32)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_float8_equals_the_search_and_the_torch_dtype_over_all_upper_halves(name: str) -> None:
    row = ELEMENTS[name]
    x = all_upper_halves()
    ours = codec.encode(x, row)
    by_search = torch.empty_like(ours)
    codec._encode_search(x, row, by_search)
    assert torch.equal(ours, by_search)
    assert row.torch_name is not None
    theirs = x.clamp(row.min, row.max).to(getattr(torch, row.torch_name)).float()
    assert torch.equal(bits(codec.decode(ours, row)), bits(theirs))


@pytest.mark.parametrize("row", [row for row in ELEMENTS.values() if row.torch_name], ids=lambda row: row.name)
def test_torch_dtype_stores_exactly_these_codes(row: Element) -> None:
    assert row.torch_name is not None
    theirs = every_code(row).view(getattr(torch, row.torch_name)).float()
    assert torch.equal(bits(theirs), bits(codec.decode(every_code(row), row)))


def test_torch_casts_alone_do_not_saturate() -> None:
    """Why the codec clamps before it casts."""
    assert torch.tensor(1e6).to(torch.float8_e5m2).float().isinf()
    assert codec.round_to(torch.tensor(1e6), "e5m2") == 57344


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_casts_are_exact_without_the_widest_vector_units(capability: str) -> None:
    """The cast path on the code torch runs on older processors."""
    script = (
        "import torch; from isobit.formats import codec; from isobit.formats.table import ELEMENTS\n"
        "u = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16\n"
        "x = torch.cat([u, u | 1, u | 0xFFFF]).view(torch.float32)\n"
        "for row in (ELEMENTS['e4m3fn'], ELEMENTS['e5m2']):\n"
        "    out = torch.empty(x.shape, dtype=torch.uint8); codec._encode_search(x, row, out)\n"
        "    assert torch.equal(codec.encode(x, row), out), row.name\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("row", EVERY, ids=[row.name for row in EVERY])
def test_widening_is_exact_where_it_is_allowed(row: Element) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        exact = torch.tensor(row.values, dtype=torch.float64)
        fits = torch.equal(exact.to(dtype).double().nan_to_num(nan=0.1), exact.nan_to_num(nan=0.1))
        assert codec.widens_exactly(row, dtype) == fits
        if fits:
            assert torch.equal(bits(codec.decode(every_code(row), row, dtype).float()), bits(exact.float()))
        else:
            with pytest.raises(FormatError, match="cannot hold every value"):
                codec.decode(every_code(row), row, dtype)
    assert codec.widens_exactly("e4m3fn", torch.float16) and codec.widens_exactly("e4m3fn", torch.bfloat16)
    assert not codec.widens_exactly("e8m0", torch.float16)


def test_decoding_survives_flushing_of_subnormals() -> None:
    """Some libraries switch it on for the whole process; e4m3fn subnormals must not vanish."""
    plain = codec.decode(every_code(ELEMENTS["e4m3fn"]), "e4m3fn")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        flushed = codec.decode(every_code(ELEMENTS["e4m3fn"]), "e4m3fn")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(bits(plain), bits(flushed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_widened_first(dtype: torch.dtype) -> None:
    x = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    assert torch.equal(codec.encode(x, "e4m3fn"), codec.encode(x.float(), "e4m3fn"))


def test_shapes_strides_and_wrong_dtypes() -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(x.t(), "e2m1"), codec.encode(x, "e2m1").t())
    assert codec.encode(torch.empty(0, 3), "int8").shape == (0, 3)
    assert codec.decode(torch.empty(0, 3, dtype=torch.uint8), "e4m3fn").shape == (0, 3)
    with pytest.raises(FormatError, match="not torch.float64"):
        codec.encode(x.double(), "e4m3fn")
    with pytest.raises(FormatError, match="codes are torch.uint8"):
        codec.decode(torch.zeros(3, dtype=torch.int8), "e4m3fn")
    with pytest.raises(FormatError, match="positive scales only"):
        codec.encode(-x.abs(), "e8m0")


def test_chunks_join_without_seams() -> None:
    x = torch.randn(codec._CHUNK * 2 + 17, generator=torch.Generator().manual_seed(1)) * 50
    codes = codec.encode(x, "e4m3fn")
    middle = slice(codec._CHUNK - 20, codec._CHUNK + 20)
    assert torch.equal(codes[middle], codec.encode(x[middle], "e4m3fn"))
    assert torch.equal(codec.decode(codes, "e4m3fn")[middle], codec.decode(codes[middle], "e4m3fn"))
