"""Linears read by rows and by columns: what is joined again is the whole, in every scheme, from both kinds of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, write
from torch import Tensor

from isobit.checkpoint import ctrender
from isobit.checkpoint.layouts.table import written
from isobit.checkpoint.linear import module_tensors, read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import dtype_name
from isobit.errors import CheckpointError, FormatError
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import GROUPED, SCHEMES, Scheme, WeightSpec, scheme
from isobit.quantizer.grid import quantize_weight

N, K = 320, 640  # two blocks and a half; K is a multiple of every group, and of groups and words at its half
QUANTIZED = [row for row in SCHEMES.values() if row.quantized]
KINDS = ("safetensors", "bin")


def quantized(spec: WeightSpec, n: int = N, k: int = K) -> QTensor:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(7)) * 0.05
    return quantize_weight(weight, spec, search="absmax", scale_dtype=torch.bfloat16)


def stored(row: Scheme) -> dict[str, Tensor]:
    assert row.weights is not None
    scale = torch.tensor([0.5]) if row.needs_calibration else None
    return module_tensors("m", quantized(row.weights), activations=row.activations, input_scale=scale)


def opened(folder: Path, kind: str, tensors: dict[str, Tensor], section: dict[str, Any]) -> Checkpoint:
    write(folder, CONFIG | {"quantization_config": section}, tensors)
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    return Checkpoint.open(folder)


def dequantized(weight: QTensor | Tensor) -> Tensor:
    return weight.dequantize() if isinstance(weight, QTensor) else weight.float()


def joined(parts: Sequence[QTensor | Tensor], axis: int) -> Tensor:
    return torch.cat([dequantized(part) for part in parts], axis)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", QUANTIZED, ids=lambda row: row.name)
def test_rows_and_columns_of_every_scheme(tmp_path: Path, row: Scheme, kind: str) -> None:
    bias = torch.randn(N)
    ck = opened(tmp_path, kind, stored(row) | {"m.bias": bias}, ctrender.render({"m": row}))
    whole = read_linear(ck, "m")
    assert isinstance(whole.weight, QTensor)
    rows = [slice(0, 128), slice(128, 256), slice(256, N)]
    parts = [read_linear(ck, "m", rows=part) for part in rows]
    assert torch.equal(joined([part.weight for part in parts], 0), whole.weight.dequantize())
    assert torch.equal(torch.cat([part.bias for part in parts if part.bias is not None]), bias)
    step = 320 if row.name == "int3" else 128  # the first group of 40 that ends with a word is the fourth
    columns = [slice(begin, end) for begin, end in pairwise([*range(0, K, step), K])]
    parts = [read_linear(ck, "m", columns=part, mmap=True) for part in columns]
    assert torch.equal(joined([part.weight for part in parts], 1), whole.weight.dequantize())
    for part in parts:
        assert part.bias is not None and torch.equal(part.bias, bias) and part.activations == row.activations
        assert set(part.names) == set(ck.tensors) and (part.input_scale is None) == (whole.input_scale is None)
    both = read_linear(ck, "m", rows[1], columns[1]).weight
    assert isinstance(both, QTensor) and both.spec == whole.weight.spec and both.shape == (128, step)
    cut = whole.weight.part(rows[1], columns[1])  # in memory as from the file
    for name in ("codes", "scale", "zero"):
        ours, theirs = getattr(both, name), getattr(cut, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or (torch.equal(ours, theirs) and ours.is_contiguous() and ours.dtype == theirs.dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_and_columns_of_plain_weights(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    weight, bias = torch.randn(N, K).to(dtype), torch.randn(N).to(dtype)
    ck = opened(tmp_path, kind, {"m.weight": weight, "m.bias": bias}, {})
    part = read_linear(ck, "m", slice(3, 17), slice(5, 6))
    assert isinstance(part.weight, Tensor) and torch.equal(part.weight, weight[3:17, 5:6])
    assert part.bias is not None and torch.equal(part.bias, bias[3:17])
    with pytest.raises(CheckpointError, match=r"'m\.weight'.*rows 320 to 321 of a matrix of 320 rows are none"):
        read_linear(ck, "m", slice(320, 321))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scales", [torch.float32, torch.float8_e8m0fnu])
def test_rows_and_columns_of_the_fp8_method(tmp_path: Path, scales: torch.dtype, kind: str) -> None:
    codes = torch.randn(200, 300).to(torch.float8_e4m3fn)  # the last block is smaller both ways
    scale = torch.tensor([[0.5, 2.0, 0.25], [1.0, 4.0, 8.0]]).to(scales)
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    ck = opened(tmp_path, kind, {"m.weight": codes, "m.weight_scale_inv": scale}, section)
    whole = dequantized(read_linear(ck, "m").weight)
    assert torch.equal(whole[128:, 256:], codes.float()[128:, 256:] * 8)
    parts = [read_linear(ck, "m", rows).weight for rows in (slice(0, 128), slice(128, 200))]
    assert torch.equal(joined(parts, 0), whole)
    parts = [read_linear(ck, "m", None, columns).weight for columns in (slice(0, 256), slice(256, 300))]
    assert torch.equal(joined(parts, 1), whole)


def test_zero_points_one_a_byte_are_cut_alike(tmp_path: Path) -> None:
    row = scheme("int4-asym-g64")
    tensors, zero = stored(row), quantized(row.weights).zero if row.weights is not None else None
    assert zero is not None
    tensors["m.weight_zero_point"] = (zero.to(torch.int16) - 8).to(torch.int8)
    ck = opened(tmp_path, "safetensors", tensors, ctrender.render({"m": row}))
    part, whole = read_linear(ck, "m", slice(3, 70), slice(64, 192)).weight, read_linear(ck, "m").weight
    assert torch.equal(dequantized(part), dequantized(whole)[3:70, 64:192])


@pytest.mark.parametrize(
    ("name", "rows", "columns", "message"),
    [
        ("int4", None, (0, 64), "columns 0 to 64 cut a group of 128 columns"),
        ("int4-asym", None, (64, 640), "columns 64 to 640 cut a group of 128 columns"),
        ("int3", None, (0, 40), "columns 0 to 40 cut a 32-bit word of 3-bit codes"),
        ("int8-w8a16", None, (2, 640), "columns 2 to 640 cut a 32-bit word of 8-bit codes"),
        ("fp8-block", (0, 100), None, "rows 0 to 100 cut a block of 128 rows"),
        ("fp8-block", None, (0, 100), "columns 0 to 100 cut a block of 128 columns"),
        ("int8", (320, 400), None, "rows 320 to 400 of a matrix of 320 rows are none"),
        ("int8", None, (7, 7), "columns 7 to 7 of a matrix of 640 columns are none"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(
    tmp_path: Path, name: str, rows: tuple[int, int] | None, columns: tuple[int, int] | None, message: str
) -> None:
    row = scheme(name)
    ck = opened(tmp_path, "safetensors", stored(row), ctrender.render({"m": row}))
    one, other = (None if part is None else slice(*part) for part in (rows, columns))
    with pytest.raises(CheckpointError, match=rf"tensor 'm\.weight(_packed)?'.*{message}"):
        read_linear(ck, "m", one, other)
    if row.name != "int8-w8a16":  # which is in words on disk only
        whole = read_linear(ck, "m").weight
        assert isinstance(whole, QTensor)
        with pytest.raises(FormatError, match=message):
            whole.part(one, other)


def test_reading_a_part_reads_no_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = scheme("int4")
    ck = opened(tmp_path, "safetensors", stored(row), ctrender.render({"m": row}))
    read: list[tuple[str, int]] = []
    fill = type(ck.store)._fill

    def counted(self: Any, info: Any, pieces: Any) -> None:
        pieces = list(pieces)
        read.append((info.name, sum(piece.numel() for _, piece in pieces)))
        fill(self, info, pieces)

    monkeypatch.setattr(type(ck.store), "_fill", counted)
    read_linear(ck, "m", rows=slice(64, 128))
    assert dict(read) == {"m.weight_packed": 64 * K // 2, "m.weight_scale": 64 * 5 * 2, "m.weight_shape": 16}


# ---------------------------------------------------------------------- the tensors that are written

GROUPS = [scheme(f"{name}-g{group}") for name in GROUPED for group in (8, 32, 160)]
NARROW = [
    replace(SCHEMES["int4"], name=element, weights=WeightSpec(element, "channel"), activations=activations, aliases=())
    for element in ("e2m1", "e3m2", "e2m3", "int4", "int8")
    for activations in (None, SCHEMES["int8"].activations)
]


@pytest.mark.parametrize("row", [*QUANTIZED, *GROUPS, *NARROW], ids=lambda row: row.name)
def test_what_is_said_to_be_written_is_written(row: Scheme) -> None:
    assert row.weights is not None
    for n in (1, 33, 130):
        qt = quantized(row.weights, n)
        scale = torch.tensor([0.5]) if row.needs_calibration else None
        made = module_tensors("m", qt, activations=row.activations, input_scale=scale)
        said = written(row.weights, row.activations, n, K)
        assert [(f"m.{part.name}", part.dtype, part.shape) for part in said] == [
            (name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in made.items()
        ]
        assert [part.nbytes for part in said] == [tensor.numel() * tensor.element_size() for tensor in made.values()]
