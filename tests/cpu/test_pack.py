"""Packing: the bit stream by definition, and compressed-tensors' layout."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from isobit.errors import FormatError
from isobit.formats import pack as packing
from isobit.formats.pack import code_dtype, pack, unpack, words_per_row
from isobit.formats.spec import Element
from isobit.formats.table import ELEMENTS

SIGNED = [Element(f"int{bits}", "int", bits, 0, bits - 1, 0, True, "finite") for bits in range(1, 9)]
OTHERS = [ELEMENTS["uint4"], ELEMENTS["e2m1"], ELEMENTS["e3m2"], Element("e1m4", "float", 6, 1, 4, 0, True, "finite")]
COLUMNS = [1, 7, 8, 31, 32, 33, 64, 100, 321]


def random_codes(row: Element, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(row.bits)
    return torch.randint(row.codes.start, row.codes.stop, shape, generator=generator).to(code_dtype(row))


@pytest.mark.parametrize("row", [*SIGNED, *OTHERS], ids=lambda row: row.name)
def test_layout_by_definition(row: Element) -> None:
    """Code i of a row is bits i*b to (i+1)*b of one big little-endian number."""
    for k in COLUMNS:
        codes = random_codes(row, 3, k)
        words = pack(codes, row)
        assert words.shape == (3, words_per_row(k, row)) and words.dtype == torch.int32
        for line, stored in zip(codes.tolist(), words.tolist(), strict=True):
            number = sum((code + row.packing_offset) << (i * row.bits) for i, code in enumerate(line))
            expected = number.to_bytes(4 * len(stored), "little")
            assert b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in stored) == expected
        assert torch.equal(unpack(words, row, k), codes)


@pytest.mark.parametrize("row", SIGNED, ids=lambda row: row.name)
@pytest.mark.parametrize("k", COLUMNS)
def test_equal_to_compressed_tensors(row: Element, k: int) -> None:
    codes = random_codes(row, 5, k)
    words = pack(codes, row)
    assert torch.equal(words, pack_to_int32(codes, row.bits))
    assert torch.equal(unpack(words, row, k), unpack_from_int32(words, row.bits, codes.shape))


def test_unsigned_codes_have_the_same_bits_as_shifted_signed_ones() -> None:
    """compressed-tensors stores asymmetric int4 as codes -8..7; our 0..15 are the same stored bits."""
    codes = random_codes(ELEMENTS["uint4"], 4, 40)
    assert torch.equal(pack(codes, "uint4"), pack((codes.to(torch.int8) - 8), "int4"))


def test_leading_axes_and_strides() -> None:
    codes = random_codes(ELEMENTS["int3"], 2, 3, 21)
    assert torch.equal(pack(codes, "int3")[1], pack(codes[1], "int3"))
    assert torch.equal(unpack(pack(codes, "int3"), "int3", 21), codes)
    turned = codes[0].t()
    assert torch.equal(pack(turned, "int3"), pack(turned.contiguous(), "int3"))


def test_parts_join_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(ELEMENTS["int3"], 50, 37)
    words = pack(codes, "int3")
    monkeypatch.setattr(packing, "_MOST_CODES_AT_ONCE", 100)
    assert torch.equal(pack(codes, "int3"), words)
    assert torch.equal(unpack(words, "int3", 37), codes)


def test_bad_input_is_refused() -> None:
    with pytest.raises(FormatError, match="lie between -8 and 7, these between -9"):
        pack(torch.tensor([[0, -9]], dtype=torch.int8), "int4")
    with pytest.raises(FormatError, match="codes are torch.int8"):
        pack(torch.zeros(1, 8, dtype=torch.uint8), "int4")
    with pytest.raises(FormatError, match="9 packed int4 codes are 2 int32 words, not 1"):
        unpack(torch.zeros(3, 1, dtype=torch.int32), "int4", 9)
    with pytest.raises(FormatError, match="int32 words"):
        unpack(torch.zeros(3, 2, dtype=torch.int64), "int4", 9)
