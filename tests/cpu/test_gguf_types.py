"""Every type of GGUF: the numbers that are read are those of gguf.quants.dequantize, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from gguf_writer import LLAMA, Raw, gguf, llama_tensors, write

from isobit.checkpoint.gguf.types import BY_NAME, READ
from isobit.checkpoint.layouts import gguf as layout
from isobit.checkpoint.layouts import table
from isobit.checkpoint.layouts.parts import Parts
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, IsobitError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.kernels import backends, reference

N, K = 24, 768
# Where the 16-bit scales of a block lie.
_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
    "MXFP4": (), "NVFP4": (), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ1_S": (0,), "IQ1_M": (),
}  # fmt: skip


def test_where_scales_lie() -> None:
    assert {name: BY_NAME[name].halves for name in _SCALES} == _SCALES and set(_SCALES) == set(READ)


def random_blocks(name: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    """Rows of a type, every bit of them random, but scales that are finite: uint8 ``[n, bytes of a row]``."""
    row, source = BY_NAME[name], np.random.default_rng(seed)
    blocks = source.integers(0, 256, (n * k // row.weights, row.nbytes), dtype=np.uint8)
    for begin in _SCALES[name]:
        scale = source.normal(0, 0.01, len(blocks)).astype(np.float16)
        blocks[:, begin : begin + 2] = scale.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        blocks[:, 0] = source.integers(0, 230, len(blocks))  # down to what float32 has no exponent for
    if name == "IQ1_M":  # four bits of the scale in the highest of each of four words: of one below 2
        blocks[:, 55] &= 0x3F
    if name == "NVFP4":
        blocks[:, :4] &= 0x77  # no NaN
    return blocks.reshape(n, -1)


def dequantized(name: str, data: np.ndarray) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(quants.dequantize(data, GGMLQuantizationType[name]).copy())


def opened(path: Path, name: str, data: np.ndarray) -> Checkpoint:
    """A file with one more matrix, ``x.weight`` [N, K]."""
    rows, row = data.shape[0], BY_NAME[name]
    sizes = (data.shape[1] // row.nbytes * row.weights, rows)
    return Checkpoint.open(
        write(path, gguf(LLAMA, [*llama_tensors(), Raw("x.weight", row.number, sizes, data.tobytes())]))
    )


def values(weight: QTensor | torch.Tensor) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QTensor) else weight


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype == torch.float32 and torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("name", READ)
def test_bit_for_bit(tmp_path: Path, name: str) -> None:
    data = random_blocks(name, N, K)
    checkpoint, expected = opened(tmp_path / "m.gguf", name, data), dequantized(name, data)
    read = read_linear(checkpoint, "x")
    assert same_bits(values(read.weight), expected)
    assert isinstance(read.weight, QTensor) == (BY_NAME[name].held is not None)
    for rows, columns in ((slice(5, 7), None), (None, slice(256, 512)), (slice(23, 24), slice(0, 768))):
        part = read_linear(checkpoint, "x", rows, columns).weight
        assert same_bits(values(part), expected[rows or slice(None), columns or slice(None)].contiguous())
    infos = table.infos_of(checkpoint.tensors, "x")
    row = table.layout_of(infos)
    assert row is not None and row.name == "GGUF"
    described, nbytes = row.describe(Parts("x", infos))
    weights_only = "-w16" if name in ("MXFP4", "NVFP4") else ""  # isobit's schemes of these names round activations
    assert described.shape == (N, K) and described.label == name.lower() + weights_only
    assert 8 * nbytes == BY_NAME[name].bits_per_weight * N * K


@pytest.mark.parametrize("name", [name for name in READ if BY_NAME[name].held is not None])
def test_kernels_run_what_stays_in_codes(tmp_path: Path, name: str) -> None:
    data = random_blocks(name, N, K, seed=1)
    if name == "MXFP4":
        data.reshape(-1, 17)[:, 0] = 120
    weight = read_linear(opened(tmp_path / "m.gguf", name, data), "x").weight
    assert isinstance(weight, QTensor)
    x = torch.randn(5, K, generator=torch.Generator().manual_seed(1))
    bound = backends.bind(weight, None, None, None, device="cpu")
    assert bound.kernel.name == "cpu", bound.reasons
    wanted = x.double() @ dequantized(name, data).double().T
    for found in (bound.run(x), reference.bind(weight, None, None, None)(x)):
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "Q4_0", "MXFP4"])
def test_columns_are_cut_between_blocks(tmp_path: Path, name: str) -> None:
    checkpoint = opened(tmp_path / "m.gguf", name, random_blocks(name, N, K))
    with pytest.raises(CheckpointError, match=r"'x\.weight'.*(group|cut)"):
        read_linear(checkpoint, "x", None, slice(8, 768))


def test_widened_columns_are_cut_anywhere(tmp_path: Path) -> None:
    data = random_blocks("Q4_K", N, K)
    checkpoint = opened(tmp_path / "m.gguf", "Q4_K", data)
    found = read_linear(checkpoint, "x", slice(2, 9), slice(7, 301)).weight
    assert same_bits(values(found), dequantized("Q4_K", data)[2:9, 7:301].contiguous())


@pytest.mark.parametrize("name", ["Q8_K", "Q1_0"])
def test_what_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    row = BY_NAME[name]
    data = np.zeros((N, K // row.weights * row.nbytes), dtype=np.uint8)
    checkpoint = opened(tmp_path / "m.gguf", name, data)
    with pytest.raises(IsobitError, match=rf"m\.gguf: tensor 'x\.weight'.*{name}, which isobit does not read"):
        read_linear(checkpoint, "x")


def test_without_the_package_that_has_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that meets such a file says what to install, before a weight is read."""
    checkpoint = opened(tmp_path / "m.gguf", "IQ3_S", random_blocks("IQ3_S", N, K))
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(CheckpointError, match=r"'x\.weight'.*IQ3_S.*pip install 'isobit\[gguf\]'"):
        read_linear(checkpoint, "x")
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"IQ3_S(.|\n)*pip install 'isobit\[gguf\]'"):
        layout.parse({"types": {"x": "IQ3_S", "y": "Q8_0"}})
    assert len(layout.parse({"types": {"y": "Q8_0"}}).groups) == 1


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q6_K"])
def test_infinite_scales_are_refused(tmp_path: Path, name: str) -> None:
    data = random_blocks(name, N, K)
    begin = _SCALES[name][0]
    data.reshape(-1, BY_NAME[name].nbytes)[3, begin : begin + 2] = (0, 0x7C)
    with pytest.raises(CheckpointError, match=r"'x\.weight'.*NaN or infinite"):
        read_linear(opened(tmp_path / "m.gguf", name, data), "x")
