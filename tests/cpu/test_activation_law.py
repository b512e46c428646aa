"""The law of activation rounding (docs/numerics.md) against an independent derivation in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from isobit.errors import FormatError
from isobit.formats import codec
from isobit.formats.codec import quantize_activations
from isobit.formats.schemes import ActSpec
from isobit.formats.table import element

QMAX = {"e4m3fn": 448, "e5m2": 57344, "int8": 127}
ELEMENTS = pytest.mark.parametrize("name", QMAX)


def nearest_float32(exact: Fraction) -> float:
    """``exact`` correctly rounded to float32, ties to even, from the definition; |exact| below 2**127."""
    if exact == 0:
        return 0.0
    magnitude = abs(exact)
    exponent = math.frexp(float(magnitude))[1] - 24  # within one of the exponent of the last bit
    while magnitude >= Fraction(2) ** (exponent + 24):
        exponent += 1
    while magnitude < Fraction(2) ** (exponent + 23):
        exponent -= 1
    exponent = max(exponent, -149)
    steps = round(magnitude / Fraction(2) ** exponent)  # Python rounds a Fraction half to even
    return math.copysign(float(steps * Fraction(2) ** exponent), exact)


def law(values: list[float], name: str, static: float | None = None) -> tuple[list[int], float]:
    """Codes and scale of the values that share a scale, in exact arithmetic rounded where the law rounds."""
    if any(not math.isfinite(value) for value in values):
        return [0] * len(values), math.nan
    qmax = QMAX[name]
    if static is None:
        amax = max((abs(Fraction(value)) for value in values), default=Fraction(0))
        scale = max(nearest_float32(amax / qmax), 2.0**-100)
    else:
        scale = static
    codes = []
    for value in values:
        quotient = nearest_float32(Fraction(value) / Fraction(scale))
        if value == 0 or quotient == 0:
            quotient = math.copysign(0.0, value)
        codes.append(element(name).encode(min(max(quotient, -qmax), qmax)))
    return codes, scale


def check_tokens(x: torch.Tensor, name: str) -> None:
    codes, scale = quantize_activations(x, ActSpec(name, "token"))
    assert scale.dtype == torch.float32 and scale.shape == (*x.shape[:-1], 1)
    for i, row in enumerate(x.float().tolist()):
        expected, expected_scale = law(row, name)
        assert codes[i].tolist() == expected
        assert scale[i].item() == expected_scale or (math.isnan(expected_scale) and bool(scale[i].isnan()))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@ELEMENTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_tokens(name: str, dtype: torch.dtype) -> None:
    check_tokens((normal(12, 96) * torch.logspace(-3, 3, 12)[:, None]).to(dtype), name)


@ELEMENTS
def test_zero_token(name: str) -> None:
    codes, scale = quantize_activations(torch.zeros(2, 8), ActSpec(name, "token"))
    assert scale.tolist() == [[2.0**-100]] * 2 and not codes.any()


@ELEMENTS
def test_subnormal_token_rounds_to_zero(name: str) -> None:
    x = torch.full((1, 8), 2.0**-126)
    x[0, ::2] = 1e-45
    codes, scale = quantize_activations(x, ActSpec(name, "token"))
    assert scale.item() == 2.0**-100
    assert not codec.decode(codes, name).any()


@ELEMENTS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_token_with_nan_or_infinity_is_nan_and_no_other(name: str, bad: float) -> None:
    x = normal(3, 16)
    expected, expected_scale = quantize_activations(x, ActSpec(name, "token"))
    x[1, 5] = bad
    codes, scale = quantize_activations(x, ActSpec(name, "token"))
    assert scale.isnan().flatten().tolist() == [False, True, False]
    assert not codes[1].any()
    for i in (0, 2):
        assert torch.equal(codes[i], expected[i]) and torch.equal(scale[i], expected_scale[i])


@ELEMENTS
def test_huge_outliers_and_the_largest_float32(name: str) -> None:
    x = normal(3, 32)
    x[0, 3], x[1, 4], x[2, 5] = 1e6, -3.4028234e38, 1e30
    check_tokens(x, name)


@ELEMENTS
def test_ties_go_to_even(name: str) -> None:
    """The largest value sets a scale of one, so that midpoints of the format are hit exactly."""
    grid = [value for value in element(name).midpoints if abs(value) < QMAX[name]]
    x = torch.tensor([[float(QMAX[name]), *grid], [float(-QMAX[name]), *(-value for value in grid)]])
    check_tokens(x, name)
    codes, scale = quantize_activations(x, ActSpec(name, "token"))
    assert scale.tolist() == [[1.0], [1.0]]
    assert all(code % 2 == 0 for code in codes[:, 1:].flatten().tolist())


def test_int8_never_uses_minus_128() -> None:
    codes, _ = quantize_activations(torch.tensor([[-3.0, 1.0], [3.0, -3.0]]), ActSpec("int8", "token"))
    assert codes.min() == -127 and codes.max() == 127


@ELEMENTS
def test_group_scales(name: str) -> None:
    x = normal(4, 24) * torch.tensor([1.0, 10.0, 0.1]).repeat_interleave(8)
    x[2, 9] = math.nan
    codes, scale = quantize_activations(x.view(2, 2, 24), ActSpec(name, "group", 8))
    assert codes.shape == (2, 2, 24) and scale.shape == (2, 2, 3)
    for i, group in enumerate(x.reshape(-1, 8).tolist()):
        expected, expected_scale = law(group, name)
        assert codes.reshape(-1, 8)[i].tolist() == expected
        assert scale.flatten()[i].item() == expected_scale or math.isnan(expected_scale)
    assert scale.isnan().sum() == 1


@ELEMENTS
def test_static_scale(name: str) -> None:
    spec = ActSpec(name, "tensor", dynamic=False)
    x = normal(5, 16)
    x[3, 2] = math.inf
    codes, scale = quantize_activations(x, spec, torch.tensor([0.0123], dtype=torch.float32))
    static = float(np.float32(0.0123))
    assert scale.shape == (5, 1) and scale.isnan().flatten().tolist() == [False, False, False, True, False]
    for i, row in enumerate(x.tolist()):
        assert codes[i].tolist() == law(row, name, static)[0]
    codes, _ = quantize_activations(torch.tensor([[1e9, -1e9]]), spec, torch.tensor(1.0))
    assert codec.decode(codes, name).tolist() == [[QMAX[name], -QMAX[name]]]


@ELEMENTS
def test_the_quotient_is_a_division_not_a_product_with_the_reciprocal(name: str) -> None:
    """Finds inputs where ``x * (1 / scale)`` would round to another code, and wants the correctly rounded one."""
    x, scale = near_a_midpoint(name)
    codes, _ = quantize_activations(torch.tensor([[x]]), ActSpec(name, "tensor", dynamic=False), torch.tensor(scale))
    exact = nearest_float32(Fraction(x) / Fraction(scale))
    by_reciprocal = float(np.float32(x) * (np.float32(1) / np.float32(scale)))
    assert element(name).encode(exact) != element(name).encode(by_reciprocal)
    assert codes.item() == element(name).encode(exact)


def near_a_midpoint(name: str) -> tuple[float, float]:
    """A value and a scale whose true quotient and reciprocal product round to different codes."""
    middle = next(value for value in element(name).midpoints if value > 1)
    for i in range(1, 20000):
        scale = np.float32(1 + i * 2.0**-14)
        for x in (np.float32(middle * float(scale)), np.nextafter(np.float32(middle * float(scale)), np.float32(0))):
            exact = nearest_float32(Fraction(float(x)) / Fraction(float(scale)))
            if element(name).encode(exact) != element(name).encode(float(x * (np.float32(1) / scale))):
                return float(x), float(scale)
    raise AssertionError("no such pair found")


@pytest.mark.parametrize("name", ["e4m3fn", "int8"])
def test_the_last_group_may_be_shorter(name: str) -> None:
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    codes, scale = quantize_activations(x, ActSpec(name, "group", 8))
    assert codes.shape == (3, 12) and scale.shape == (3, 2)
    for columns, at in ((slice(0, 8), 0), (slice(8, 12), 1)):  # each group alone is a token of its own
        own, one = quantize_activations(x[:, columns], ActSpec(name, "token"))
        assert torch.equal(codes[:, columns], own) and torch.equal(scale[:, at : at + 1], one)


def test_bad_arguments_are_refused() -> None:
    x = torch.ones(2, 12)
    dynamic, static = ActSpec("int8", "token"), ActSpec("int8", "tensor", dynamic=False)
    with pytest.raises(FormatError, match="missing"):
        quantize_activations(x, static)
    with pytest.raises(FormatError, match="surplus"):
        quantize_activations(x, dynamic, torch.tensor(1.0))
    for bad in (torch.tensor(0.0), torch.tensor(math.nan), torch.tensor(math.inf), torch.tensor([1.0, 2.0])):
        with pytest.raises(FormatError, match="one positive number"):
            quantize_activations(x, static, bad)
    with pytest.raises(FormatError, match="not torch.float64"):
        quantize_activations(x.double(), dynamic)
    with pytest.raises(FormatError, match="no values along K"):
        quantize_activations(torch.ones(2, 0), dynamic)


def test_no_tokens_give_no_codes() -> None:
    for spec in (ActSpec("e4m3fn", "token"), ActSpec("e4m3fn", "group", 8)):
        codes, _ = quantize_activations(torch.empty(0, 16), spec)
        assert codes.shape == (0, 16)


def test_the_input_is_left_alone() -> None:
    x = normal(4, 16)
    before = x.clone()
    quantize_activations(x, ActSpec("int8", "token"))
    assert torch.equal(x, before)
