"""The reference linear against float64 from the same codes and scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isobit.formats import codec
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, ActSpec, Scheme, WeightSpec
from isobit.kernels import reference
from isobit.quantizer.grid import quantize_weight, stored_scale_dtype

QUANTIZED = [scheme for scheme in SCHEMES.values() if scheme.weights is not None]
TOLERANCE = 2e-6  # relative; the contract allows 5e-4
INPUT_SCALE = torch.tensor([0.03125])


def quantized(spec: WeightSpec, n: int, k: int) -> QTensor:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) * 0.05
    made = quantize_weight(weight, spec, search="absmax", scale_dtype=stored_scale_dtype(torch.bfloat16, spec))
    return made.with_float_scales()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def static_scale(act: ActSpec | None) -> Tensor | None:
    return INPUT_SCALE if act is not None and act.calibrated else None


def in_float64(x: Tensor, weight: QTensor, act: ActSpec | None) -> Tensor:
    """y from codes and scales, every product and sum in float64."""
    if weight.zero is None:
        scales = weight.scale.double()
        n, k = weight.shape
        if weight.spec.granularity == "group":
            scales = scales.repeat_interleave(weight.spec.group, 1)
        elif weight.spec.granularity == "block":
            rows, columns = weight.spec.block
            scales = scales.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
        matrix = weight.values().double() * scales
    else:
        group = weight.spec.group
        zero = weight.zero.double().repeat_interleave(group, 1)
        matrix = (weight.unpacked().double() - zero) * weight.scale.double().repeat_interleave(group, 1)
    values = x.double()
    if act is not None:
        codes, scale = codec.quantize_activations(x, act, static_scale(act))
        scale = scale.double() if act.group is None else scale.double().repeat_interleave(act.group, -1)
        values = codec.decode(codes, act.element).double() * scale
    return values @ matrix.T


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def fitting(scheme: Scheme, k: int) -> int:
    """The least K from ``k`` on that the scheme's groups and blocks divide."""
    spec = scheme.weights
    step = spec.group or (spec.block[1] if spec.block else 1)
    return -(-k // step) * step


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("shape", [(3, 5, 123), (4, 7, 1), (2, 133, 640)], ids=str)
@pytest.mark.parametrize("scheme", QUANTIZED, ids=lambda scheme: scheme.name)
def test_every_scheme_within_the_contract(
    scheme: Scheme, shape: tuple[int, int, int], keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, n, k = shape[0], shape[1], fitting(scheme, shape[2])
    monkeypatch.setattr(reference, "CHUNK_BYTES", 4 * k * 50)  # 50 rows a piece: blocks of 128 rows are cut
    weight, x = quantized(scheme.weights, n, k), inputs(m, k)
    run = reference.bind(weight, scheme.activations, static_scale(scheme.activations), None, keep_values=keep)
    assert error(run(x), in_float64(x, weight, scheme.activations)) < TOLERANCE


@pytest.mark.parametrize("name", ["fp8", "int8", "fp8-block", "int4-g32", "w4a8"])
def test_a_long_k(name: str) -> None:
    scheme = SCHEMES[name]
    weight, x = quantized(scheme.weights, 16, 11008), inputs(2, 11008)
    found = reference.linear(x, weight, scheme.activations)
    assert error(found, in_float64(x, weight, scheme.activations)) < TOLERANCE


def test_int8_sums_are_exact() -> None:
    weight, x = quantized(WeightSpec("int8", "channel"), 7, 640), inputs(4, 640)
    act = ActSpec("int8", "token")
    codes, scale = codec.quantize_activations(x, act)
    sums = codes.long() @ weight.unpacked().long().T  # at most 127 * 128 * 640 < 2**24: float32 holds every sum
    wanted = sums.float() * scale * weight.scale.float().squeeze(-1)
    assert torch.equal(reference.linear(x, weight, act), wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["fp8", "int8", "fp8-static", "fp8-block", "w4a8"])
def test_a_bad_token_is_nan_and_touches_no_other(name: str, bad: float) -> None:
    scheme = SCHEMES[name]
    weight, x = quantized(scheme.weights, 5, 256), inputs(3, 256)
    clean = reference.linear(x, weight, scheme.activations, static_scale(scheme.activations))
    x[1, 3] = bad
    found = reference.linear(x, weight, scheme.activations, static_scale(scheme.activations))
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheme", QUANTIZED, ids=lambda scheme: scheme.name)
def test_zeros_give_zeros(scheme: Scheme) -> None:
    k = fitting(scheme, 64)
    found = reference.linear(
        torch.zeros(2, k), quantized(scheme.weights, 4, k), scheme.activations, static_scale(scheme.activations)
    )
    assert torch.equal(found, torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["bf16", "fp8", "int4-g32"])
def test_dtype_shape_and_bias(name: str, dtype: torch.dtype) -> None:
    scheme, bias = SCHEMES[name], inputs(6)
    weight = inputs(6, 64).bfloat16() if scheme.weights is None else quantized(scheme.weights, 6, 64)
    x = inputs(2, 3, 64).to(dtype)
    found = reference.linear(x, weight, scheme.activations, None, bias)
    plain = weight.double() if isinstance(weight, Tensor) else None
    wanted = x.double() @ plain.T if plain is not None else in_float64(x, weight, scheme.activations)
    assert found.shape == (2, 3, 6) and found.dtype == dtype
    assert error(found, wanted + bias.double()) < 8 * torch.finfo(dtype).eps
