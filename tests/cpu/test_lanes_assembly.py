"""The inline assembly of ``linear_lanes``, instruction by instruction, against float64."""

from __future__ import annotations

import re

import numpy as np
import ptx
import pytest
import torch

pytest.importorskip("triton")

from isobit.formats import codec
from isobit.kernels.proof.build import compile_request
from isobit.kernels.proof.request import specialize
from isobit.kernels.triton import linear_lanes as lanes
from isobit.kernels.variants import variant
from isobit.targets.table import target

WORDS = 4 * ptx.LANES  # a lane's four words are neighbours
TEXTS = {
    "hardware": lanes._HARDWARE,
    "e4m3fn": lanes._E4M3,
    "e5m2": lanes._E5M2,
    "f16": lanes._F16,
    "bf16": lanes._BF16,
}


def _operands(*rows: np.ndarray) -> list[np.ndarray]:
    """Registers of a warp for rows of 128 words."""
    return [row.reshape(ptx.LANES, 4)[:, word] for row in rows for word in range(4)]


def _sums(registers: ptx.Registers, nibbles: bool) -> tuple[float, float]:
    """Sums of both rows, as ``_separate`` finds them."""
    total = np.stack([registers[f"${i}"].view(np.float32) for i in range(4)], axis=1).astype(np.float64)
    lane = np.arange(ptx.LANES)
    own = lane % 4 == lane // 8
    if nibbles:
        return float(total[own, :2].sum()), float(total[own, 2:].sum())
    odd = lane[own] // 4 % 2
    return float(total[own, odd].sum()), float(total[own, 2 + odd].sum())


def _values(words: np.ndarray, element: str) -> np.ndarray:
    if element in ("f16", "bf16"):
        return ptx.halves(words, element).reshape(-1)
    codes = torch.from_numpy(words.view(np.uint8).copy())
    return codec.decode(codes, "e5m2" if element == "e5m2" else "e4m3fn").double().numpy()


def _random_words(element: str, rng: np.random.Generator) -> np.ndarray:
    if element in ("f16", "bf16"):
        values = torch.from_numpy(rng.standard_normal(2 * WORDS))
        kind = torch.float16 if element == "f16" else torch.bfloat16
        return values.to(kind).view(torch.int16).numpy().view(np.uint32)
    codes = rng.integers(0, 256, 4 * WORDS, dtype=np.uint8)
    codes[codes & 0x7C == 0x7C] &= 0xBF  # neither NaN nor infinity
    return codes.view(np.uint32)


@pytest.mark.parametrize("element", TEXTS)
def test_two_rows_by_activations(element: str) -> None:
    rng = np.random.default_rng(1)
    first, second, x = (_random_words(element, rng) for _ in range(3))
    before = [np.full(ptx.LANES, 0.25, np.float32).view(np.uint32)] * 4
    nothing = [np.zeros(ptx.LANES, np.uint32)] * 4
    text = TEXTS[element].value
    sums = _sums(ptx.run(text, nothing + _operands(first, second, x) + before), False)
    gain = 65536.0 if element == "e4m3fn" else 1.0
    for row, found in zip((first, second), sums, strict=True):
        exact = (_values(row, element) * _values(x, element)).sum()
        assert abs((found - 8 * 0.25) * gain - exact) <= 1e-5 * abs(exact)  # eight lanes began with 0.25


@pytest.mark.parametrize("dtype", ("f16", "bf16"))
def test_two_rows_of_nibbles_by_activations(dtype: str) -> None:
    rng = np.random.default_rng(2)
    words = [rng.integers(0, 1 << 32, WORDS, dtype=np.uint64).astype(np.uint32) for _ in range(2)]
    quarters = [_random_words(dtype, rng) for _ in range(4)]
    nothing = [np.zeros(ptx.LANES, np.uint32)] * 4
    text = (lanes._NIBBLES_F16 if dtype == "f16" else lanes._NIBBLES_BF16).value
    registers = ptx.run(text, nothing + _operands(*words, *quarters))
    gain = 64.0 if dtype == "bf16" else 1.0
    for row, (low, high) in zip(words, (("$0", "$2"), ("$1", "$3")), strict=True):
        exact = [0.0, 0.0]
        for quarter, x in enumerate(quarters):
            nibbles = np.stack([row >> 4 * quarter & 15, row >> (16 + 4 * quarter) & 15], axis=1).astype(np.float64) - 8
            exact[quarter // 2] += float((nibbles.reshape(-1) * ptx.halves(x, dtype).reshape(-1)).sum())
        lane = np.arange(ptx.LANES)
        own = lane % 4 == lane // 8
        for name, wanted in zip((low, high), exact, strict=True):
            found = gain * float(registers[name].view(np.float32)[own].astype(np.float64).sum())
            assert abs(found - wanted) <= 1e-5 * max(1.0, abs(wanted))


@pytest.mark.parametrize("name", ["vector-e4m3fn-lanes", "vector-int4-lanes-bf16"])
@pytest.mark.parametrize("rows", [4, 8])
def test_the_compiler_gives_each_lane_four_neighbours(name: str, rows: int) -> None:
    row, machine = variant(name), target("sm_90")
    config = row.config(machine).with_constants(BLOCK_N=rows)
    aligned = tuple(arg for arg, kind in config.signature.items() if kind.startswith("*"))
    text = compile_request(specialize(row.entry, config, machine, (*aligned, "N", "K"))).asm["ttgir"]
    warps = config.num_warps
    operations = re.findall(rf"elementwise_inline_asm.*mma.*-> tensor<\d+x{128 * warps}xf32, #(\w+)>", text)
    assert operations
    for layout in operations:
        assert f"#{layout} = #ttg.blocked<{{sizePerThread = [1, 4], threadsPerWarp = [1, 32], " in text
        assert re.search(rf"#{layout} = .*warpsPerCTA = \[1, {warps}\], order = \[1, 0\]", text)
