"""Scales with a format of their own: every code of e8m0, e4m3 and e5m2 on every code of a weight."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_checkpoints import CONFIG, write
from torch import Tensor

from isobit.checkpoint.layouts.reading import Reader
from isobit.checkpoint.layouts.table import infos_of, nbytes, written
from isobit.checkpoint.linear import module_tensors
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, FormatError, SchemeError
from isobit.formats import pack
from isobit.formats.cuts import cut
from isobit.formats.qtensor import QTensor
from isobit.formats.scales import ScaleSpec
from isobit.formats.schemes import SCHEMES, WeightSpec, name_of
from isobit.formats.table import element
from isobit.kernels import backends, reference
from isobit.kernels.checked import check_linear
from isobit.quantizer.grid import quantize_weight

SCALES = [ScaleSpec("e8m0"), ScaleSpec("e4m3fn"), ScaleSpec("e4m3fn", "multiplies"), ScaleSpec("e4m3fn", "divides"),
          ScaleSpec("e8m0", "divides"), ScaleSpec("e5m2")]  # fmt: skip
OVER = np.float32(0.00372023810632527)  # 1 / 268.8: no power of two, so that products and quotients are rounded


def every(code: str) -> list[int]:
    return [*element(code).codes] * (2 if code == "e2m1" else 1)


def made(spec: ScaleSpec, code: str = "e2m1", over: np.float32 = OVER) -> QTensor:
    """A row for each code of a scale; each is one group that has every code of the element."""
    row = element(code)
    codes = torch.tensor([every(code)] * 256, dtype=torch.uint8)
    one = None if spec.over is None else torch.tensor([over])
    scale = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    weights = WeightSpec(code, "group", codes.shape[1], scale=spec)
    return QTensor(weights, tuple(codes.shape), pack.pack(codes, row) if row.bits < 8 else codes, scale, over=one)


def by_the_law(spec: ScaleSpec, code: int, over: np.float32 = OVER) -> np.float32:
    """The scale behind a code, in numpy's float32."""
    assert spec.codes is not None
    scale = np.float32(spec.codes.decode(code))
    if spec.over is None:
        return scale
    return np.float32(scale * over) if spec.over == "multiplies" else np.float32(scale / over)


@pytest.mark.parametrize("spec", SCALES, ids=str)
@pytest.mark.parametrize("code", ["e2m1", "e4m3fn", "e3m2"])
def test_every_code_of_a_scale_under_every_code_of_a_weight(spec: ScaleSpec, code: str) -> None:
    weight, row = made(spec, code), element(code)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.array([by_the_law(spec, number) for number in range(256)], dtype=np.float32)
        values = np.array([row.decode(number) for number in every(code)], dtype=np.float32)
        expected = values[None, :] * scales[:, None]
    assert np.array_equal(weight.float_scales().numpy()[:, 0], scales, equal_nan=True)
    found = weight.dequantize().numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found) & ~np.isnan(found), np.signbit(expected) & ~np.isnan(expected))
    assert torch.equal(weight.dequantize(slice(100, 140)).nan_to_num(7.0), weight.dequantize()[100:140].nan_to_num(7.0))
    plain = weight.with_float_scales()
    assert plain.spec.scale is None and plain.over is None and plain.with_float_scales() is plain
    assert np.array_equal(plain.dequantize().numpy(), expected, equal_nan=True)
    nan = [number for number in range(256) if math.isnan(element(spec.element).decode(number))]
    assert nan == [number for number in range(256) if math.isnan(scales[number])]


def test_parts_keep_the_scale_above() -> None:
    weight = made(SCALES[2])
    part = weight.part(slice(8, 20), None)
    assert torch.equal(part.dequantize(), weight.dequantize()[8:20]) and part.over is weight.over
    assert weight.nbytes == 256 * 16 + 256 + 4
    assert weight.bits_per_weight == 4 + 8 / 32 + 32 / (256 * 32)


def test_what_does_not_fit_is_refused() -> None:
    weight = made(SCALES[0])
    with pytest.raises(FormatError, match="scale should be uint8"):
        QTensor(weight.spec, weight.shape, weight.codes, weight.scale.float())
    with pytest.raises(FormatError, match="whole weight is surplus"):
        QTensor(weight.spec, weight.shape, weight.codes, weight.scale, over=torch.ones(1))
    over = made(SCALES[2])
    with pytest.raises(FormatError, match="whole weight is missing"):
        QTensor(over.spec, over.shape, over.codes, over.scale)
    with pytest.raises(FormatError, match=r"over should be float32 \[1\]"):
        QTensor(over.spec, over.shape, over.codes, over.scale, over=torch.ones(2))
    fixed = WeightSpec("int8", "channel", scale=ScaleSpec("float16"))
    with pytest.raises(FormatError, match="scale should be float16"):
        QTensor(fixed, (1, 8), torch.zeros(1, 8, dtype=torch.int8), torch.ones(1, 1))
    for bad in (("int8",), ("e2m1",), ("e8m0", "adds")):
        with pytest.raises(SchemeError):
            ScaleSpec(*bad)  # type: ignore[arg-type]


def test_what_says_nothing_of_scales_is_as_it_was() -> None:
    spec = SCHEMES["int4"].weights
    assert repr(spec) == "WeightSpec(element='int4', granularity='group', group=128, block=None, symmetric=True)"
    assert "scale=ScaleSpec(element='e8m0', over=None)" in repr(made(SCALES[0]).spec)
    few = {name for name, row in SCHEMES.items() if row.weights is not None and row.weights.scale is not None}
    assert all(name.startswith(("mxfp", "nvfp")) for name in few)
    other = WeightSpec("int4", "group", 128, scale=ScaleSpec("e8m0"))
    assert other != spec and name_of(other, None) == "int4 per group 128 (scales: e8m0)"


@pytest.mark.parametrize("spec", [SCALES[0], SCALES[2]], ids=str)
def test_kernels_get_the_numbers(spec: ScaleSpec) -> None:
    whole = made(spec)
    weight = whole.part(slice(96, 126), None)  # scales near one
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    found = backends.bind(weight, None, None, None, device="cpu")
    exact = x.double() @ weight.dequantize().double().t()
    assert float((found.run(x) - exact).norm() / exact.norm()) < 5e-4
    with pytest.raises(FormatError, match="kernels take float scales"):
        check_linear(weight, None, None, None)
    law = reference.linear(x, weight)
    assert float((law - exact).norm() / exact.norm()) < 5e-4


def test_scales_that_no_tool_writes_so_are_neither_chosen_nor_written() -> None:
    weight = made(SCALES[2])  # under one that multiplies, as ModelOpt has it
    with pytest.raises(SchemeError, match="read, and not chosen"):
        quantize_weight(torch.ones(4, 32), weight.spec, search="absmax", scale_dtype=torch.bfloat16)
    with pytest.raises(FormatError, match="writes no scales in e4m3fn under one"):
        module_tensors("m", weight, activations=None)
    with pytest.raises(FormatError, match="writes no weights of e2m1 per group 32"):
        written(weight.spec, None, 256, 32)
    assert nbytes(weight.spec, None, 256, 32) == weight.nbytes


# ---------------------------------------------------------------------- read from files


def reader(folder: Path, **parts: Tensor) -> Reader:
    ck = Checkpoint.open(write(folder, CONFIG, {f"m.{part}": tensor for part, tensor in parts.items()}))
    return Reader(ck, "m", {name.removeprefix("m."): info for name, info in ck.tensors.items()} or infos_of({}, "m"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_coded_scales_are_read_as_codes_where_the_spec_says_so(tmp_path: Path, dtype: torch.dtype) -> None:
    codes = torch.arange(0, 24, dtype=torch.uint8).reshape(6, 4)
    spec = WeightSpec("e2m1", "group", 32, scale=ScaleSpec("e8m0"))
    where = cut(spec, 6, 128, slice(2, 5), slice(32, 96))
    found = reader(tmp_path, weight_scale=codes.view(dtype)).scale("weight_scale", spec, 6, 128, where)
    assert found.dtype == torch.uint8 and torch.equal(found, codes[2:5, 1:3])


def test_e8m0_scales_are_widened_where_the_spec_leaves_it_open(tmp_path: Path) -> None:
    codes = torch.arange(0, 255, dtype=torch.uint8).reshape(255, 1)
    spec = WeightSpec("e4m3fn", "channel")
    where = cut(spec, 255, 8)
    found = reader(tmp_path, weight_scale=codes.view(torch.float8_e8m0fnu)).scale("weight_scale", spec, 255, 8, where)
    assert found.dtype == torch.float32
    assert found[:, 0].tolist() == [element("e8m0").decode(code) for code in range(255)]


@pytest.mark.parametrize(
    ("scale", "spec", "message"),
    [
        (torch.full((4, 1), 255, dtype=torch.uint8), ScaleSpec("e8m0"), "NaN or infinite scales"),
        (torch.full((4, 1), 127, dtype=torch.uint8), ScaleSpec("e4m3fn"), "NaN or infinite scales"),
        (torch.ones(4, 1), ScaleSpec("e8m0"), "is F32, but these scales are stored in e8m0"),
        (torch.ones(4, 1).to(torch.float8_e4m3fn), ScaleSpec("e8m0"), "is F8_E4M3, but"),
        (torch.ones(4, 1).bfloat16(), ScaleSpec("float32"), "is BF16, but these scales are stored in float32"),
        (torch.ones(4, 1).to(torch.float8_e4m3fn), None, "scales of dtype F8_E4M3 cannot be read"),
        (torch.ones(4, 1, dtype=torch.uint8), None, "scales of dtype U8 cannot be read"),
    ],
)
def test_scales_of_another_format_are_refused(
    tmp_path: Path, scale: Tensor, spec: ScaleSpec | None, message: str
) -> None:
    weights = WeightSpec("e2m1", "channel", scale=spec)
    with pytest.raises(CheckpointError, match=rf"'m\.weight_scale'.*{message}"):
        reader(tmp_path, weight_scale=scale).scale("weight_scale", weights, 4, 8, cut(weights, 4, 8))


@pytest.mark.parametrize("over", [torch.zeros(1), torch.tensor(math.inf), torch.ones(2), torch.ones(1).half()])
def test_a_scale_above_others_is_one_number(tmp_path: Path, over: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"'m\.weight_global_scale'"):
        reader(tmp_path, weight_global_scale=over).scale_over("weight_global_scale")
    good = reader(tmp_path / "good", weight_global_scale=torch.tensor(2.5)).scale_over("weight_global_scale")
    assert good.tolist() == [2.5]
