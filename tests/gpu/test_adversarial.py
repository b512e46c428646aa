"""What breaks kernels, on all lowerings that run on Hopper: pairs of codes, subnormals, outliers, zeros, extremes.

Expected values are float64 products of the same codes and scales. Shapes are those of real models whose K is no
multiple of a kernel's step, with numbers of tokens on both sides of each kernel's range.
"""

from __future__ import annotations

import math

import pytest
import torch

from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, scheme
from isobit.formats.table import element
from isobit.targets.table import target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
TOLERANCE = 5e-4
LOWERINGS = (None, "sm_89", "sm_86", "sm_80", "sm_75")
TOKENS = (1, 3, 17, 64, 257)
N = 144


def bound(weight: QTensor, name: str, lowering: str | None, static: float | None = None):  # type: ignore[no-untyped-def]
    from isobit.kernels.gpu.bind import bind

    scale = None if static is None else torch.tensor([static]).cuda()
    where = target(lowering) if lowering else None
    return bind(weight, SCHEMES[name].activations, scale, None, target=where, out_dtype=torch.float32)


def quantized(name: str, codes: torch.Tensor, scale: torch.Tensor | None = None) -> QTensor:
    """On the card; scales are 1 where none are given."""
    spec = scheme(name).weights
    assert spec is not None
    row, (n, k) = element(spec.element), codes.shape
    shape = spec.scale_shape(n, k)
    scale = torch.ones(shape) if scale is None else scale
    held = pack(codes, row) if row.bits < 8 else codes
    zero = None if spec.symmetric else torch.full(shape, 7, dtype=torch.uint8).cuda()
    return QTensor(spec, (n, k), held.cuda(), scale.bfloat16().view(shape).cuda(), zero)


def exact(weight: QTensor, name: str, x: torch.Tensor, static: float | None = None) -> torch.Tensor:
    """float64 ``[M, N]`` by the definition: codes of both sides by the table of their format, scales outside."""
    acts = SCHEMES[name].activations
    values = x.double().cpu()
    if acts is not None:
        grid = torch.tensor(sorted({v for v in element(acts.element).values if math.isfinite(v)})).double()
        most = float(grid.max())
        assert acts.group is None
        amax = x.float().cpu().abs().amax(dim=1, keepdim=True)
        scale = (amax / torch.tensor(most)).clamp_min(2.0**-100) if static is None else torch.tensor(static)
        values = nearest((x.float().cpu() / scale).clamp(-most, most).double(), grid, acts.element) * scale.double()
    n, k = weight.shape
    scales = weight.scale.double().cpu().reshape(weight.scale.shape[0], -1).expand(n, -1)
    scales = scales.repeat_interleave(k // scales.shape[1], 1)
    return values @ (weight.values().double().cpu() * scales).T


def nearest(x: torch.Tensor, grid: torch.Tensor, name: str) -> torch.Tensor:
    """The value of a format next to each number; of two as near, the one with the even code."""
    if element(name).kind == "int":
        return x.round()
    above = torch.searchsorted(grid, x).clamp(1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    codes = {value: code for code, value in enumerate(element(name).values)}
    even = torch.tensor([codes[float(value)] % 2 == 0 for value in grid])
    up = (x - low > high - x) | ((x - low == high - x) & even[above])
    return torch.where(up, high, low)


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double().cpu() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["fp8", "fp8-e5m2"])
def test_all_pairs_of_codes(name: str, lowering: str | None) -> None:
    """Token m is [value m, largest, 0 ...], so that its scale is 1; row n of the weight [code n, 0, 0 ...]."""
    acts = SCHEMES[name].activations
    assert acts is not None
    row = element(acts.element)
    values = torch.tensor(row.values)
    finite = torch.tensor([code for code in row.codes if math.isfinite(row.values[code])])
    codes = torch.zeros(len(finite), 256, dtype=torch.uint8)
    codes[:, 0] = finite.to(torch.uint8)
    x = torch.zeros(len(finite), 256)
    x[:, 0], x[:, 1] = values[finite], row.max
    wanted = values[finite].double()[:, None] * values[finite].double()[None, :]
    linear = bound(quantized(name, codes), name, lowering)
    for tokens in (len(finite), 16, 1):  # the kernels for many, for few and for one
        for begin in range(0, len(finite), tokens if tokens > 1 else 31):
            part = slice(begin, begin + tokens)
            got = linear(x[part].bfloat16().cuda()).double().cpu()
            worst = (got - wanted[part]).abs() / wanted[part].abs().clamp_min(1e-30)
            assert float(worst.max()) <= 2**-22, (tokens, begin)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_codes_that_are_nan_poison_their_rows_alone(lowering: str | None) -> None:
    codes = torch.full((16, 256), 0x38, dtype=torch.uint8)
    codes[3, 200], codes[9, 0] = 0x7F, 0xFF
    for tokens in (1, 16, 40):
        got = bound(quantized("fp8", codes), "fp8", lowering)(torch.ones(tokens, 256).bfloat16().cuda()).cpu()
        assert got.isnan().all(dim=0).tolist() == [row in (3, 9) for row in range(16)]


def random_codes(name: str, k: int, generator: torch.Generator, kind: str) -> torch.Tensor:
    spec = scheme(name).weights
    assert spec is not None
    row = element(spec.element)
    integer = torch.int8 if row.kind == "int" and row.signed else torch.uint8
    choice = list(row.codes)
    if row.kind == "float":
        choice = [code for code in choice if math.isfinite(row.values[code])]
        if kind == "subnormals":
            assert row.smallest_normal is not None
            choice = [code for code in choice if abs(row.values[code]) < row.smallest_normal]
    elif kind == "extremes":
        choice = [row.codes.start, row.codes.stop - 1]
    table = torch.tensor(choice)
    return table[torch.randint(0, len(choice), (N, k), generator=generator)].to(integer)


CASES = (
    ("fp8", 1408, "subnormals"), ("fp8", 13696, "outlier"), ("fp8-e5m2", 11008, "subnormals"),
    ("fp8-e5m2", 1416, "outlier"), ("fp8-w8a16", 1408, "subnormals"), ("int8", 13696, "extremes"),
    ("int8", 1408, "outlier"), ("int4", 11008, "extremes"), ("int4", 1408, "outlier"), ("int4-g32", 1408, "extremes"),
    ("int4-asym", 13696, "extremes"), ("int3", 11000, "extremes"), ("int3", 1400, "outlier"),
)  # fmt: skip


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(("name", "k", "kind"), CASES)
def test_hostile_weights_and_activations(name: str, k: int, kind: str, lowering: str | None) -> None:
    generator = torch.Generator().manual_seed(k)
    spec = scheme(name).weights
    assert spec is not None
    shape = spec.scale_shape(N, k)
    scale = torch.exp2(torch.randint(-6, 3, shape, generator=generator).float()) * 1.0078125
    weight = quantized(name, random_codes(name, k, generator, kind), scale)
    linear = bound(weight, name, lowering)
    for tokens in TOKENS:
        x = torch.randn(tokens, k, generator=generator)
        if kind == "outlier":
            x[:, 7] = 3e4
            x[tokens // 2, k - 1] = -6e4
        if kind == "extremes":
            x = torch.where(x > 0, 1.0, -1.0) * 240.0
            x[:, ::2] = 240.0
        x = x.half() if lowering == "sm_75" else x.bfloat16()  # what activations are in there
        wanted = exact(weight, name, x)
        assert apart(linear(x.cuda()), wanted) <= TOLERANCE, tokens


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_activations_whose_codes_are_subnormal(lowering: str | None) -> None:
    """A static scale far above the activations: only the smallest codes are left."""
    generator = torch.Generator().manual_seed(9)
    weight = quantized("fp8-static", random_codes("fp8-static", 1408, generator, "all"))
    linear = bound(weight, "fp8-static", lowering, static=64.0)
    for tokens in TOKENS:
        x = (torch.randn(tokens, 1408, generator=generator) * 0.3).bfloat16()
        assert apart(linear(x.cuda()), exact(weight, "fp8-static", x, static=64.0)) <= TOLERANCE, tokens


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", ["bf16", "fp8", "fp8-e5m2", "int8", "int4", "int3"])
def test_zeros_give_zeros(name: str, lowering: str | None) -> None:
    if name == "bf16" and lowering == "sm_75":
        pytest.skip("Turing has no bfloat16 arithmetic")
    k, generator = 1400 if name == "int3" else 1408, torch.Generator().manual_seed(2)
    plain = torch.randn(N, k, generator=generator).bfloat16().cuda()
    weight = plain if name == "bf16" else quantized(name, random_codes(name, k, generator, "all"))
    linear = bound(weight, name, lowering)
    for tokens in TOKENS:
        got = linear(torch.zeros(tokens, k).bfloat16().cuda())
        assert torch.equal(got, torch.zeros_like(got)), tokens
