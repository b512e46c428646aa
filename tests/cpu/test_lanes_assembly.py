"""The assembly of ``lanes_assembly.py``, instruction by instruction, against float64."""

from __future__ import annotations

import re

import numpy as np
import ptx
import pytest
import torch

pytest.importorskip("triton")

from isobit.formats import codec
from isobit.kernels.gpu.compile.build import compile_request
from isobit.kernels.gpu.compile.request import specialize
from isobit.kernels.gpu.rows import variant
from isobit.kernels.gpu.triton import lanes_assembly as assembly
from isobit.targets.table import target

WORDS = 4 * ptx.LANES  # a lane's four words are neighbours
TEXTS = {
    "hardware": assembly.HARDWARE,
    "e4m3fn": assembly.E4M3,
    "e5m2": assembly.E5M2,
    "f16": assembly.F16,
    "bf16": assembly.BF16,
}
BY_FLOATS = {  # (element, dtype of activations): the text, and what its decoder leaves to be multiplied
    ("hardware", "f16"): (assembly.HARDWARE_F16, 1.0),
    ("e4m3fn", "f16"): (assembly.E4M3_F16, 256.0),
    ("e4m3fn", "bf16"): (assembly.E4M3_BF16, 1.0),
    ("int8", "f16"): (assembly.INT8_F16, 1.0),
    ("int8", "bf16"): (assembly.INT8_BF16, 64.0),
}
NIBBLES = {  # (dtype of activations, zero points, sums of a unit)
    ("f16", False, 2): assembly.NIBBLES_F16,
    ("bf16", False, 2): assembly.NIBBLES_BF16,
    ("f16", True, 2): assembly.ZEROS_F16,
    ("bf16", True, 2): assembly.ZEROS_BF16,
    ("f16", False, 4): assembly.QUARTERS_F16,
    ("bf16", False, 4): assembly.QUARTERS_BF16,
}


def _operands(*rows: np.ndarray) -> list[np.ndarray]:
    """Registers of a warp for rows of 128 words."""
    return [row.reshape(ptx.LANES, 4)[:, word] for row in rows for word in range(4)]


_LANE = np.arange(ptx.LANES)
_OWN = _LANE % 4 == _LANE // 8  # the lanes that have elements of the diagonal


def _sums(registers: ptx.Registers) -> tuple[float, float]:
    """Sums of both rows, as ``lanes.row_sums`` finds them."""
    total = np.stack([registers[f"${i}"].view(np.float32) for i in range(4)], axis=1).astype(np.float64)
    odd = _LANE[_OWN] // 4 % 2
    return float(total[_OWN, odd].sum()), float(total[_OWN, 2 + odd].sum())


def _values(words: np.ndarray, element: str) -> np.ndarray:
    if element in ("f16", "bf16"):
        return ptx.halves(words, element).reshape(-1)
    if element == "int8":
        return words.view(np.int8).astype(np.float64)
    codes = torch.from_numpy(words.view(np.uint8).copy())
    return codec.decode(codes, "e5m2" if element == "e5m2" else "e4m3fn").double().numpy()


def _random_words(element: str, rng: np.random.Generator) -> np.ndarray:
    if element in ("f16", "bf16"):
        values = torch.from_numpy(rng.standard_normal(2 * WORDS))
        kind = torch.float16 if element == "f16" else torch.bfloat16
        return values.to(kind).view(torch.int16).numpy().view(np.uint32)
    codes = rng.integers(0, 256, 4 * WORDS, dtype=np.uint8)
    if element != "int8":
        codes[codes & 0x7C == 0x7C] &= 0xBF  # neither NaN nor infinity
    return codes.view(np.uint32)


@pytest.mark.parametrize("element", TEXTS)
def test_two_rows_by_activations(element: str) -> None:
    rng = np.random.default_rng(1)
    first, second, x = (_random_words(element, rng) for _ in range(3))
    before = [np.full(ptx.LANES, 0.25, np.float32).view(np.uint32)] * 4
    nothing = [np.zeros(ptx.LANES, np.uint32)] * 4
    text = TEXTS[element].value
    sums = _sums(ptx.run(text, nothing + _operands(first, second, x) + before))
    gain = 65536.0 if element == "e4m3fn" else 1.0
    for row, found in zip((first, second), sums, strict=True):
        exact = (_values(row, element) * _values(x, element)).sum()
        assert abs((found - 8 * 0.25) * gain - exact) <= 1e-5 * abs(exact)  # eight lanes began with 0.25


@pytest.mark.parametrize(("element", "dtype"), BY_FLOATS)
def test_two_rows_of_codes_by_floats(element: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    first, second = _random_words(element, rng), _random_words(element, rng)
    x = np.concatenate([_random_words(dtype, rng), _random_words(dtype, rng)])  # eight words of a lane are neighbours
    eight = x.reshape(ptx.LANES, 8)
    before = [np.full(ptx.LANES, 0.25, np.float32).view(np.uint32)] * 4
    nothing = [np.zeros(ptx.LANES, np.uint32)] * 4
    text, gain = BY_FLOATS[element, dtype]
    floats = [eight[:, word] for word in range(8)]
    sums = _sums(ptx.run(text.value, nothing + _operands(first, second) + floats + before))
    for row, found in zip((first, second), sums, strict=True):
        exact = (_values(row, element) * _values(x, dtype)).sum()
        assert abs((found - 8 * 0.25) * gain - exact) <= 1e-5 * abs(exact)


@pytest.mark.parametrize(("element", "dtype"), BY_FLOATS)
def test_every_code_by_floats(element: str, dtype: str) -> None:
    """One code in a row of zeros, times one: the decoders, exactly, subnormal and largest codes among them."""
    text, gain = BY_FLOATS[element, dtype]
    one = 0x3C003C00 if dtype == "f16" else 0x3F803F80
    nothing, floats = [np.zeros(ptx.LANES, np.uint32)] * 4, [np.full(ptx.LANES, one, np.uint32)] * 8
    for code in range(256):
        if element != "int8" and code & 0x7F == 0x7F:
            continue  # NaN: the row is poisoned
        row = np.zeros(4 * WORDS, np.uint8)
        row[code] = code
        words = row.view(np.uint32)
        sums = _sums(ptx.run(text.value, nothing + _operands(words, words) + floats + nothing))
        exact = float(_values(np.full(1, code, np.uint32), element)[0])
        assert [gain * found for found in sums] == [exact, exact], code


@pytest.mark.parametrize(("dtype", "zero", "parts"), NIBBLES)
def test_two_rows_of_nibbles_by_activations(dtype: str, zero: bool, parts: int) -> None:
    rng = np.random.default_rng(2)
    words = [rng.integers(0, 1 << 32, WORDS, dtype=np.uint64).astype(np.uint32) for _ in range(2)]
    quarters = [_random_words(dtype, rng) for _ in range(4)]
    zeros = rng.integers(0, 16, (4, ptx.LANES)).astype(np.uint32)  # of both rows, lower half, then upper half
    nothing = [np.zeros(ptx.LANES, np.uint32)] * (2 * parts)
    points = [point * 0x10001 for point in zeros] if zero else []
    registers = ptx.run(
        NIBBLES[dtype, zero, parts].value, nothing + _operands(*words, *quarters) + points
    )  # fmt: skip
    gain = 64.0 if dtype == "bf16" else 1.0
    for row in range(2):
        exact = np.zeros(parts)
        for quarter, x in enumerate(quarters):
            codes = words[row]
            nibbles = np.stack([codes >> 4 * quarter & 15, codes >> (16 + 4 * quarter) & 15], axis=1).astype(np.float64)
            origin = np.repeat(zeros[row + 2 * (quarter // 2)], 4)[:, None] if zero else 8
            exact[quarter * parts // 4] += ((nibbles - origin).reshape(-1) * ptx.halves(x, dtype).reshape(-1)).sum()
        for part, wanted in enumerate(exact):
            found = registers[f"${2 * part + row}"].view(np.float32)[_OWN].astype(np.float64).sum()
            assert abs(gain * found - wanted) <= 1e-5 * max(1.0, abs(wanted))


@pytest.mark.parametrize(
    ("name", "constants"),
    [("vector-e4m3fn-lanes", {}), ("vector-e4m3fn-lanes-bf16", {}), ("vector-block-lanes", {}),
     ("vector-int4-lanes-bf16", {}), ("vector-uint4-lanes-f16", {}),
     ("vector-int4-lanes-bf16", {"GROUP": 32, "UNIT": 128})],
)  # fmt: skip
@pytest.mark.parametrize("rows", [4, 8])
def test_the_compiler_gives_each_lane_four_neighbours(name: str, constants: dict[str, int], rows: int) -> None:
    row, machine = variant(name), target("sm_90")
    config = row.config(machine).with_constants(BLOCK_N=rows, **constants)
    aligned = tuple(arg for arg, kind in config.signature.items() if kind.startswith("*"))
    text = compile_request(specialize(row.entry, config, machine, (*aligned, "N", "K"))).asm["ttgir"]
    warps = config.num_warps
    operations = re.findall(rf"elementwise_inline_asm.*mma.*-> tensor<\d+x{128 * warps}xf32, #(\w+)>", text)
    assert operations
    for layout in operations:
        assert f"#{layout} = #ttg.blocked<{{sizePerThread = [1, 4], threadsPerWarp = [1, 32], " in text
        assert re.search(rf"#{layout} = .*warpsPerCTA = \[1, {warps}\], order = \[1, 0\]", text)
