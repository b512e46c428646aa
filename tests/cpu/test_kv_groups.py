"""Key-value caches whose codes have scales of groups (MX and NV formats): the law against another in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hf_checkpoints import tiny_model
from torch import Tensor

from isobit.errors import Unsupported
from isobit.formats.caches import CACHE_FORMATS, CacheFormat, cache_format, kv_bytes
from isobit.formats.table import element
from isobit.kernels.cached import packed, rounded, unpacked
from isobit.models.cache.memory import new_layers
from isobit.models.config import Kept
from isobit.models.weights import load_model

GROUPED = [row for row in CACHE_FORMATS.values() if row.group]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(name: str) -> list[float]:
    """Numbers of a format from 0 on; where they stand is their code."""
    row = element(name)
    return [row.decode(code) for code in range(128 if row.bits == 8 else 8) if math.isfinite(row.decode(code))]


def nearest(value: float, numbers: list[float]) -> int:
    """Of numbers from 0 on the place of the nearest one, of two the even."""
    value = min(value, numbers[-1])
    best = min(range(len(numbers)), key=lambda i: (abs(numbers[i] - value), i % 2))
    return best


def float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).float())


def group_scale(amax: float, top: float, above: float | None) -> tuple[float, int]:
    """(scale, code) of a group by its largest magnitude: of a power of two, or under the scale of a head."""
    if above is None:
        exponent = math.frexp(amax)[1] - 1 if amax else -200
        exponent += amax >= 1.75 * 2.0**exponent
        exponent = max(exponent - math.floor(math.log2(top)), -100)
        return 2.0**exponent, exponent + 127
    code = nearest(float32(float32(amax / top) / above), grid("e4m3fn"))
    code = code or 0x20  # 2^-3
    return grid("e4m3fn")[code], code


def head(x: list[float], row: CacheFormat) -> tuple[list[int], list[int], float, list[float]]:
    """(codes, codes of scales, scale above, what they stand for) of one head of finite numbers."""
    numbers, above = grid(row.element), None
    if row.one_scale:
        above = max(float32(max(map(abs, x)) / (numbers[-1] * 448)), 2.0**-100)
    codes, scales, values = [], [], []
    for begin in range(0, len(x), row.group or 1):
        part = x[begin : begin + (row.group or 1)]
        scale, code = group_scale(max(map(abs, part)), numbers[-1], above)
        whole = scale if above is None else float32(scale * above)
        scales.append(code)
        for value in part:
            found = nearest(float32(abs(value) / whole), numbers)
            codes.append(found | element(row.element).sign_bit * (math.copysign(1, value) < 0))
            values.append(math.copysign(numbers[found] * scale * (above or 1.0), value))
    return codes, scales, above or 1.0, values


def heads_of_all_sizes(dim: int) -> Tensor:
    """Heads whose groups differ by much, at edges of the rounding of scales, subnormal, of zeros, of huge numbers."""
    x = normal(24, dim, seed=dim)
    x[1] *= torch.logspace(-8, 8, dim)
    x[2], x[3], x[4, dim // 2 :] = 0, -0.0, 0
    x[5], x[6], x[7] = 1.75, torch.nextafter(torch.tensor(1.75), torch.tensor(0.0)), x[7] * 1e-41
    x[8], x[9], x[10] = x[8] * 1e37, 1.6e38, x[10] * 2.0**-100
    x[11], x[12] = torch.arange(dim) * 0.25, -torch.arange(dim) / 6 * 0.5
    x[13, 0], x[14, -1] = 1e6, -1e-6
    return x


@pytest.mark.parametrize("dim", [64, 80, 22, 48])
@pytest.mark.parametrize("row", GROUPED, ids=lambda row: row.name)
def test_the_law_is_the_one_in_float64(row: CacheFormat, dim: int) -> None:
    """Bits of codes and of scales, also where the last group is smaller; and what is read of them."""
    x = heads_of_all_sizes(dim)
    (held,) = new_layers([Kept(1, dim, dim)], 1, len(x), torch.float32, None, row)
    held.store(torch.arange(len(x)), x[:, None], -x[:, None])
    read, negative = held.read((0,), len(x), torch.float32)
    part = held.parts[0]
    assert row.group and part.groups is not None and part.groups.shape[-1] == -(-dim // row.group)
    codes = unpacked(part.numbers) if row.packed else part.numbers
    for i, one in enumerate(x.tolist()):
        wanted, scales, above, values = head(one, row)
        assert part.groups[0, 0, i].tolist() == scales, i
        assert codes[0, 0, i].tolist() == wanted, i
        assert part.scales is None or float(part.scales[0, 0, i]) == above, i
        assert torch.allclose(
            read[0, i].double(), torch.tensor(values, dtype=torch.float64), rtol=2.0**-23, atol=1e-44
        ), i
    assert torch.equal(read, -negative)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("row", GROUPED, ids=lambda row: row.name)
def test_halves_are_rounded_as_the_same_numbers_in_float32(row: CacheFormat, dtype: torch.dtype) -> None:
    x = normal(6, 3, 96).to(dtype)
    for one, other in zip(rounded(x, row, dtype).tensors, rounded(x.float(), row, dtype).tensors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("row", GROUPED, ids=lambda row: row.name)
def test_what_is_no_number_makes_none_of_what_shares_its_scale(row: CacheFormat) -> None:
    """A group by itself; under a scale of the head all of it. Other heads and tokens do not notice."""
    x = normal(3, 2, 64)
    x[1, 0, 3], x[2, 1, 40] = float("inf"), float("nan")
    (held,) = new_layers([Kept(2, 64, 64)], 1, 3, torch.float32, None, row)
    held.store(torch.arange(3), x, x)
    nan = held.read((0,), 3, torch.float32)[0].isnan()
    wanted = torch.zeros(2, 3, 64, dtype=torch.bool)
    if row.one_scale:
        wanted[0, 1] = wanted[1, 2] = True
    else:
        wanted[0, 1, :32] = wanted[1, 2, 32:] = True
    assert torch.equal(nan, wanted)
    numbers = unpacked(held.keys) if row.packed else held.keys
    assert (numbers[0].reshape(2, 3, 64)[wanted] == 0).all()
    assert held.key_groups is not None and (held.key_groups[0, 0, 1, 0] == (0x20 if row.one_scale else 0xFF))


def test_two_codes_to_a_byte_are_a_half_of_a_head_apart() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    pairs = torch.stack((codes & 15, codes >> 4), dim=-1)
    assert torch.equal(packed(pairs)[:, 0], codes) and torch.equal(unpacked(codes[:, None]), pairs)
    eight = torch.arange(8, dtype=torch.uint8)
    assert packed(eight).tolist() == [0x40, 0x51, 0x62, 0x73]


def test_bytes_names_and_widths() -> None:
    assert [row.bytes(1, 128, "bfloat16") for row in GROUPED] == [132, 68, 76]
    assert [row.bytes(8, 80, "float32") for row in GROUPED] == [8 * 83, 8 * 43, 8 * 49]
    for row in GROUPED:
        (held,) = new_layers([Kept(3, 80, 64)], 2, 5, torch.float32, None, row)
        assert sum(part.nbytes for part in held.tensors) == 10 * (row.bytes(3, 80, "") + row.bytes(3, 64, ""))
        assert kv_bytes(3, 80, row.kv) == row.bytes(3, 80, "")
    assert cache_format("MXFP4") == cache_format("fp4_e2m1") == CACHE_FORMATS["mxfp4"]
    assert len({row.kv for row in CACHE_FORMATS.values()}) == len(CACHE_FORMATS)
    CACHE_FORMATS["mxfp8"].require_width(81)
    with pytest.raises(
        Unsupported, match=r"(?s)mxfp4 for heads of 81 numbers.*share a byte.*fp8, fp8-e5m2, int8, mxfp8"
    ):
        CACHE_FORMATS["mxfp4"].require_width(81)


def test_a_cache_that_grows_keeps_scales_of_groups(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "plain")
    for row in GROUPED:
        model = load_model(tmp_path / "plain", kv_cache=row.name)
        cache = model.paged_cache(2)
        for part in cache.memory(1).tensors:
            part.view(torch.uint8).copy_(torch.arange(part.nbytes).view(part.view(torch.uint8).shape) % 251)
        before = [part.clone() for part in cache.memory(1).tensors]
        cache.grow(4)
        for part, old in zip(cache.memory(1).tensors, before, strict=True):
            assert torch.equal(part[:2].view(torch.uint8), old.view(torch.uint8)) and len(part) == 4
        other = load_model(tmp_path / "plain", kv_cache="fp8")
        assert cache.key != other.paged_cache(1).key


def error(x: Tensor, row: CacheFormat) -> float:
    """Of what is read, against what was stored."""
    (held,) = new_layers([Kept(1, x.shape[-1], x.shape[-1])], 1, len(x), torch.float32, None, row)
    held.store(torch.arange(len(x)), x[:, None], x[:, None])
    found = held.read((0,), len(x), torch.float32)[0][0]
    return float((found.double() - x.double()).norm() / x.double().norm())


@pytest.mark.parametrize("row", GROUPED, ids=lambda row: row.name)
def test_no_size_of_keys_and_values_leaves_the_range_of_scales(row: CacheFormat) -> None:
    """A power of two moves scales alone, so errors are the same for keys of any size."""
    x = normal(50, 128)
    plain = error(x, row)
    assert plain == error(x * 2.0**20, row) == error(x * 2.0**-20, row) < (0.04 if row.element == "e4m3fn" else 0.15)
