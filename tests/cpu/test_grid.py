"""Weight quantization: scales as stored, codes by the law, the searches, and difficult rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from isobit.errors import FormatError, SchemeError
from isobit.formats.schemes import SCHEMES, WeightSpec, scheme
from isobit.formats.spec import Element
from isobit.formats.table import ELEMENTS, element
from isobit.quantizer import grid
from isobit.quantizer.grid import default_search, quantize_weight, stored_scale_dtype

NAMES = ["fp8", "fp8-e5m2", "fp8-static", "fp8-block", "int8", "int4-g32", "int4-asym-g32", "int3-g32", "int2"]
SPECS = [spec for name in NAMES if (spec := scheme(name).weights) is not None]
BOTH = pytest.mark.parametrize("search", ["absmax", "mse"])
EACH = pytest.mark.parametrize("spec", SPECS, ids=NAMES)


def weights(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.02


def quantize(w: torch.Tensor, spec: WeightSpec, search: str = "absmax", scale_dtype: torch.dtype | None = None):
    return quantize_weight(
        w,
        spec,
        search=search,  # type: ignore[arg-type]
        scale_dtype=scale_dtype or stored_scale_dtype(w.dtype, spec),
    )


def per_weight(per_scale: torch.Tensor, spec: WeightSpec, n: int, k: int) -> torch.Tensor:
    """One number per scale, spread over the weights that share it, ``[n, k]`` float32."""
    wide = per_scale.float()
    if spec.granularity == "tensor":
        return wide.reshape(1, 1).expand(n, k)
    if spec.granularity == "channel":
        return wide.expand(n, k)
    rows, columns = spec.block or (1, spec.group or 1)
    return wide.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]


def error(w: torch.Tensor, q) -> torch.Tensor:
    return (q.dequantize() - w.float()).double().square()


@EACH
@BOTH
def test_codes_follow_the_law_under_the_stored_scale(spec: WeightSpec, search: str) -> None:
    w = weights(140, 256).bfloat16()
    q = quantize(w, spec, search)
    row = element(spec.element)
    some = [0, 1, 77, 127, 128, 139]
    scale = per_weight(q.scale, spec, 140, 256)[some].numpy()
    quotient = w[some].float().numpy() / scale  # IEEE float32 division
    if q.zero is None:
        law = [row.encode(float(x)) for x in quotient.ravel()]
    else:
        zero = per_weight(q.zero, spec, 140, 256)[some].numpy()
        law = [int(x) for x in np.clip(np.rint(quotient) + zero, row.min, row.max).ravel()]
    assert q.unpacked()[some].flatten().tolist() == law


@EACH
def test_absmax_is_the_smallest_scale_that_does_not_saturate(spec: WeightSpec) -> None:
    """Seen before the scale is rounded: with float32 scales both ends of the grid are just reached."""
    w = weights(140, 256)
    q = quantize(w, spec, scale_dtype=torch.float32)
    row = element(spec.element)
    quotient = (w / per_weight(q.scale, spec, 140, 256)).double()
    if q.zero is not None:
        quotient = quotient.round() + per_weight(q.zero, spec, 140, 256)
        assert quotient.min() >= row.min - 1 and quotient.max() <= row.max + 1
        return
    slack = 1e-6 * row.max
    assert quotient.min() >= row.min - slack and quotient.max() <= row.max + slack
    share_of_range = torch.maximum(quotient / row.max, quotient / row.min)
    groups = grid._to_groups(share_of_range.float(), spec)
    assert torch.allclose(groups.amax(1), torch.ones(groups.shape[0]), atol=1e-5)


def test_all_sixteen_levels_of_int4_are_used() -> None:
    w = torch.linspace(-8, 7, 32).reshape(1, 32)
    codes = quantize(w, WeightSpec("int4", "group", 32)).unpacked()
    assert set(codes.flatten().tolist()) == set(range(-8, 8))


@EACH
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_mse_is_never_worse_than_absmax(spec: WeightSpec, source: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    heavy = weights(130, 256) / torch.rand(130, 256, generator=generator).clamp(min=0.05)
    w = torch.cat([weights(120, 256), heavy, torch.zeros(2, 256), torch.ones(2, 256)]).to(source)
    by_absmax, by_mse = (grid._to_groups(error(w, quantize(w, spec, s)).float(), spec) for s in ("absmax", "mse"))
    assert bool((by_mse.double().sum(1) <= by_absmax.double().sum(1) * (1 + 1e-5)).all())


@pytest.mark.parametrize(("name", "share"), [("int4", 0.87), ("int3-g32", 0.8), ("int2", 0.5)])
def test_mse_gains_and_is_close_to_the_best_scale(name: str, share: float) -> None:
    spec = scheme(name).weights
    assert spec is not None
    w = weights(32, 512)
    absmax, mse = (float(error(w, quantize(w, spec, search)).sum()) for search in ("absmax", "mse"))
    assert mse < share * absmax
    part = grid._Part(grid._to_groups(w, spec))
    widest = quantize(w, spec, scale_dtype=torch.float32).scale.reshape(-1, 1)
    row = element(spec.element)
    tried = [
        part.squared_error(grid._Scales((widest * factor).bfloat16().float(), None), row)
        for factor in torch.linspace(0.2, 1.3, 400).tolist()
    ]
    assert mse < 1.01 * float(torch.cat(tried, dim=1).amin(1).sum())


@EACH
@BOTH
def test_zero_rows_get_scale_one(spec: WeightSpec, search: str) -> None:
    q = quantize(torch.zeros(130, 256), spec, search)
    assert torch.equal(q.scale, torch.ones_like(q.scale))
    assert not q.unpacked().any() and not q.dequantize().any()


@EACH
@BOTH
def test_zero_rows_among_others(spec: WeightSpec, search: str) -> None:
    w = weights(256, 256)
    w[128:] = 0
    q = quantize(w, spec, search)
    assert not q.dequantize(slice(128, 256)).any()
    assert bool((q.scale > 0).all()) and bool(q.scale.isfinite().all())


@EACH
@BOTH
def test_one_outlier_rows(spec: WeightSpec, search: str) -> None:
    w = weights(4, 256)
    w[1, 7], w[2, 200] = 50.0, -50.0
    q = quantize(w, spec, search)
    back = q.dequantize()
    assert abs(back[1, 7] - 50) < 50 * 0.15 and abs(back[2, 200] + 50) < 50 * 0.15
    assert error(w, q).sum() <= error(w, quantize(w, spec)).sum() * (1 + 1e-5)


@EACH
@BOTH
@pytest.mark.parametrize("value", [0.37, -0.37, 1.0])
def test_constant_rows_come_back(spec: WeightSpec, search: str, value: float) -> None:
    back = quantize(torch.full((3, 256), value), spec, search).dequantize()
    assert torch.allclose(back, torch.full_like(back, value), rtol=2**-8, atol=0)


@EACH
@BOTH
def test_one_row_and_one_block(spec: WeightSpec, search: str) -> None:
    q = quantize(weights(1, 256), spec, search)
    assert q.shape == (1, 256) and q.dequantize().isfinite().all()


@pytest.mark.parametrize("name", ["int8", "fp8", "int4-g32", "int4-asym-g32"])
@BOTH
def test_tiny_weights_in_float16_do_not_saturate(name: str, search: str) -> None:
    """Their scales are subnormal float16 numbers; those are rounded up, so that nothing is cut off."""
    spec = scheme(name).weights
    assert spec is not None
    for size in (1e-5, 1e-6, 1.7e-7, 6e-8):
        w = (weights(4, 64) * 25 * size).to(torch.float16)
        q = quantize(w, spec, search)
        assert q.scale.dtype == torch.float16 and bool((q.scale > 0).all())
        absmax = quantize(w, spec)
        assert float(error(w, q).sum()) <= float(error(w, absmax).sum())
        steps = 32 if name == "fp8" else 1  # the widest gap of the grid, in scales; half of it is the largest error
        assert float(error(w, absmax).max().sqrt()) <= 0.51 * steps * float(absmax.scale.max())


@EACH
def test_the_smallest_and_largest_weights(spec: WeightSpec) -> None:
    tiny = quantize(torch.full((2, 256), 1e-44), spec, scale_dtype=torch.float32)
    assert float(tiny.scale.min()) == 2.0**-126 and tiny.dequantize().isfinite().all()
    w = torch.full((2, 256), 3e38)
    w[0, 0] = -3e38
    huge = quantize(w, spec, "mse" if spec.element == "int4" else "absmax", torch.float32)
    assert huge.scale.isfinite().all() and torch.allclose(huge.dequantize()[1, 200:], w[1, 200:], rtol=0.3)


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(FormatError, match="beyond torch.float16; store scales as bfloat16"):
        quantize(torch.full((1, 32), 1e7), WeightSpec("int4", "group", 32), scale_dtype=torch.float16)


@BOTH
def test_the_largest_float16_weights_stay_within_float16_scales(search: str) -> None:
    w = torch.full((1, 32), 65504.0, dtype=torch.float16)
    q = quantize(w, WeightSpec("int2", "group", 32), search)
    assert q.scale.dtype == torch.float16 and q.dequantize()[0, 0] == 65504


@EACH
@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_nan_and_infinite_weights_are_refused(spec: WeightSpec, bad: float, word: str) -> None:
    w = weights(3, 256).bfloat16()
    w[2, 100] = bad
    with pytest.raises(FormatError, match=word):
        quantize(w, spec)


def test_asymmetric_zero_points() -> None:
    spec = WeightSpec("uint4", "group", 32, symmetric=False)
    w = torch.stack([weights(1, 32)[0] + 0.1, weights(1, 32)[0].abs() + 0.5, -weights(1, 32)[0].abs() - 0.5])
    q = quantize(w, spec)
    assert q.zero is not None and q.zero.dtype == torch.uint8
    assert q.zero[1] == 0 and q.zero[2] == 15  # 0.0 stays representable, even if no weight is near it
    assert int(q.zero.max()) <= 15
    assert float((q.dequantize() - w).abs().max()) <= 0.51 * float(q.scale.max())


def test_a_last_block_of_fewer_rows() -> None:
    spec = SCHEMES["fp8-block"].weights
    assert spec is not None
    w = weights(300, 256)
    w[256:] *= 100
    q = quantize(w, spec)
    assert q.scale.shape == (3, 2)
    alone = quantize(w[256:], spec)
    assert torch.equal(q.scale[2:], alone.scale) and torch.equal(q.codes[256:], alone.codes)


@EACH
@BOTH
def test_chunks_change_nothing(spec: WeightSpec, search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights(300, 256)
    whole = quantize(w, spec, search)
    monkeypatch.setattr(grid, "_CHUNK", 3000)
    parts = quantize(w, spec, search)
    if spec.granularity == "tensor" and search == "mse":  # the error of a whole tensor is summed chunk by chunk
        assert torch.allclose(error(w, whole).sum(), error(w, parts).sum(), rtol=1e-5)
        return
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scale, parts.scale)
    assert whole.zero is None or (parts.zero is not None and torch.equal(whole.zero, parts.zero))


def test_policies() -> None:
    assert {row.name: default_search(WeightSpec(row.name, "channel", symmetric=row.signed)) for row in
            (ELEMENTS[name] for name in ("e4m3fn", "e5m2", "int8", "int4", "uint4", "int3", "e2m1"))} == {
        "e4m3fn": "absmax", "e5m2": "absmax", "int8": "absmax",
        "int4": "mse", "uint4": "mse", "int3": "mse", "e2m1": "mse",
    }  # fmt: skip
    channel, block = WeightSpec("e4m3fn", "channel"), WeightSpec("e4m3fn", "block", block=(128, 128))
    assert stored_scale_dtype(torch.float16, channel) == torch.float16
    assert stored_scale_dtype(torch.bfloat16, channel) == torch.bfloat16
    assert stored_scale_dtype(torch.float32, channel) == torch.bfloat16
    assert stored_scale_dtype(torch.float16, block) == torch.float16
    assert stored_scale_dtype(torch.bfloat16, WeightSpec("e4m3fn", "tensor")) == torch.bfloat16


def test_bad_arguments() -> None:
    spec = WeightSpec("int4", "group", 32)
    with pytest.raises(SchemeError, match="sizes that divide it: 8, 16, 24, 48"):
        quantize(weights(2, 48), spec)
    for bad in (torch.zeros(32), torch.zeros(2, 32, dtype=torch.int8), torch.zeros(2, 32, dtype=torch.float64)):
        with pytest.raises(FormatError, match="weights are a float32"):
            quantize(bad, spec, scale_dtype=torch.float32)


def test_the_source_is_left_alone() -> None:
    w = weights(4, 64)
    before = w.clone()
    for spec in SPECS:
        if spec.block is None:
            quantize(w, spec, "mse")
    assert torch.equal(w, before)


@pytest.mark.parametrize(
    "row",
    [
        Element("e1m4", "float", 6, 1, 4, 0, True, "finite"),
        Element("e4m1", "float", 6, 4, 1, 7, True, "fn"),
        Element("int5", "int", 5, 0, 4, 0, True, "finite"),
    ],
    ids=lambda row: row.name,
)
@BOTH
def test_a_new_format_is_one_row(row: Element, search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but its row in the table a format encodes, packs, quantizes and dequantizes."""
    monkeypatch.setitem(ELEMENTS, row.name, row)
    spec = WeightSpec(row.name, "group", 32)
    w = weights(8, 96)
    q = quantize(w, spec, search)
    scale = per_weight(q.scale, spec, 8, 96)
    expected = [row.round(float(x)) for x in (w / scale).flatten()]
    assert q.values().flatten().tolist() == expected
    assert q.codes.shape == (8, 96 * row.bits // 32)
    assert float(error(w, q).sum() / w.square().sum()) < 0.02
