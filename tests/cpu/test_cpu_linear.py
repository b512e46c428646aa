"""The linears of the CPU kernels: each instruction set against float64 from the same codes, and the rounding law."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from isobit.errors import IsobitError, Unsupported
from isobit.formats import pack
from isobit.formats.codec import decode, quantize_activations
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, ActSpec, Scheme, WeightSpec, scheme
from isobit.kernels import backends
from isobit.kernels.cpu import formats as cpu_formats
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import linear as cpu
from isobit.quantizer.grid import quantize_weight

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)

QUANTIZED = [
    name
    for name, row in SCHEMES.items()
    if row.weights and row.weights.scale is None and not cpu_formats.unsupported(row.weights, row.activations)
]
ROWS = (1, 2, 3, 4, 5, 7, 9, 13, 25, 65)  # on both sides of every change of kernels (few_rows in kernels.inc.h)


@pytest.fixture(params=cpu_library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def code_dtype(element: str) -> torch.dtype:
    return torch.int8 if element == "int8" else torch.uint8


def shapes_of(row: Scheme) -> list[tuple[int, int]]:
    """Odd sizes where the scheme allows them: one output, K below a block, tails of groups."""
    assert row.weights is not None
    group = row.weights.group
    if group:
        return [(1, group), (37, 7 * group), (70, 8 * group)]
    if row.weights.block:
        return [(1, 128), (130, 384), (300, 256)]
    return [(1, 1), (5, 31), (33, 129), (70, 1001)]


def expected(x: Tensor, q: QTensor, row: Scheme, static: Tensor | None) -> Tensor:
    """y64: float64 from the same codes and scales."""
    weights = q.values().double() * expanded(q)
    if row.activations is None:
        return x.double() @ weights.T
    codes, scale = quantize_activations(x, row.activations, static)
    values = decode(codes, row.activations.element).double()
    group = values.shape[-1] // scale.shape[-1] if scale.shape[-1] > 1 else values.shape[-1]
    return (values * scale.double().repeat_interleave(group, -1)) @ weights.T


def expanded(q: QTensor) -> Tensor:
    """The scale of every weight, float64 ``[N, K]``."""
    n, k = q.shape
    scale = q.scale.double()
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(n, k)
    block = q.spec.block or (1, q.spec.group or k)
    return scale.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]


def bound(q: QTensor, row: Scheme, static: Tensor | None = None, bias: Tensor | None = None) -> cpu.CpuLinear:
    return cpu.bind(q, row.activations, static, bias)


def static_scale(row: Scheme) -> Tensor | None:
    return None if row.activations is None or row.activations.dynamic else torch.tensor([0.01])


@pytest.mark.parametrize(
    "name",
    [
        *QUANTIZED,
        *(f"int4-g{n}" for n in (8, 16, 24, 64, 256)),
        "w4a8-g8",
        "w4a8-g16",
        "w4a8-g24",
        "w4a8-g32",
        "w4a8-g64",
        "w4a8-g256",
    ],
)
def test_every_scheme_against_float64(name: str) -> None:
    row = scheme(name)
    assert row.weights is not None
    for n, k in shapes_of(row):
        q = quantize_weight(normal(n, k), row.weights, search="absmax", scale_dtype=torch.bfloat16)
        bias, static = normal(n, seed=1), static_scale(row)
        run = bound(q, row, static, bias)
        for m in ROWS:
            x = normal(m, k, seed=2)
            wanted = expected(x, q, row, static) + bias.double()
            error = float((run(x).double() - wanted).norm() / wanted.norm())
            assert error <= 3e-6, (n, k, m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_weights_against_float64(dtype: torch.dtype) -> None:
    for n, k in [(1, 1), (5, 31), (70, 1001)]:
        weight = normal(n, k).to(dtype)
        run = cpu.bind(weight, None, None, None)
        for m in ROWS:
            x = normal(m, k, seed=2)
            wanted = x.double() @ weight.double().T
            assert float((run(x).double() - wanted).norm() / wanted.norm()) <= 3e-6, (n, k, m)


@pytest.mark.parametrize("element", ["e4m3fn", "e5m2", "int8"])
def test_all_codes_in_all_places(element: str) -> None:
    spec = WeightSpec(element, "channel")
    codes = torch.arange(256, dtype=torch.uint8)
    values = decode(codes.view(code_dtype(element)), element)
    finite = values.isfinite()
    codes, values = codes[finite], values[finite]
    n = len(codes)
    # Row r is the codes turned by r places: every code stands in every lane of a block.
    turned = torch.stack([codes.roll(r) for r in range(64)])
    q = QTensor(spec, (64, n), turned.view(code_dtype(element)), torch.ones(64, 1, dtype=torch.bfloat16))
    run = cpu.bind(q, None, None, None)
    for place in range(0, n, 7):
        x = torch.zeros(1, n)
        x[0, place] = 1.0
        wanted = torch.stack([values.roll(r)[place] for r in range(64)])
        assert torch.equal(run(x)[0], wanted)
        assert torch.equal(run(x.expand(20, n))[3], wanted)


@pytest.mark.parametrize("element", ["e4m3fn", "e5m2", "int8"])
@pytest.mark.parametrize("group", [None, 128])
def test_activations_are_rounded_by_the_law_bit_for_bit(element: str, group: int | None) -> None:
    spec = ActSpec(element, "group", group) if group else ActSpec(element, "token")
    ties = torch.arange(-256, 256).float() / 16
    rows = [normal(512), normal(512) * 1e-30, normal(512) * 1e30, ties, torch.zeros(512), -torch.zeros(512)]
    rows += [normal(512) * torch.exp(normal(512, seed=3) * 8), torch.full((512,), 1e-45)]
    for bad in (float("nan"), float("inf"), -float("inf")):
        row = normal(512)
        row[5] = bad
        rows.append(row)
    x = torch.stack(rows)
    codes, scales = cpu.quantize_activations(x, spec)
    wanted, wanted_scales = quantize_activations(x, spec)
    assert torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(scales.view(torch.int32), wanted_scales.reshape(scales.shape).view(torch.int32)) or (
        torch.equal(scales.isnan(), wanted_scales.reshape(scales.shape).isnan())
        and torch.equal(scales.nan_to_num(), wanted_scales.reshape(scales.shape).nan_to_num())
    )


def test_int8_sums_are_exact() -> None:
    k = 4099
    weight = torch.full((3, k), -128, dtype=torch.int8)
    weight[1] = 127
    q = QTensor(WeightSpec("int8", "channel"), (3, k), weight, torch.ones(3, 1, dtype=torch.bfloat16))
    x = torch.full((20, k), 127.0)
    x[1::2, ::2] = -127
    codes, scale = quantize_activations(x, ActSpec("int8", "token"))
    exact = (codes.long() @ weight.long().T).float() * scale
    run = cpu.bind(q, ActSpec("int8", "token"), None, None)
    assert torch.equal(run(x), exact)
    assert torch.equal(run(x[:3]), exact[:3])


@pytest.mark.parametrize("group", [8, 32, 128])
def test_int4_by_int8_sums_are_exact(group: int) -> None:
    """With scales of 1 every partial sum is an integer below 2^24, so that float32 holds it."""
    k, row = 4096, scheme(f"w4a8-g{group}")
    codes = torch.randint(-8, 8, (5, k), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    codes[0], codes[1] = -8, 7
    assert row.weights is not None
    q = QTensor(row.weights, (5, k), pack.pack(codes, "int4"), torch.ones(5, k // group, dtype=torch.bfloat16))
    x = torch.full((80, k), 127.0)  # its scale is 1
    x[1::2, ::2] = -127
    x[3, 5:90] = torch.arange(-42, 43)
    exact = (x.long() @ codes.long().T).float()
    run = bound(q, row)
    assert torch.equal(run(x), exact)
    assert torch.equal(run(x[:4]), exact[:4])


@pytest.mark.parametrize("name", ["fp8", "int8", "int4", "int4-asym", "w4a8", "int3", "fp8-block"])
def test_a_row_is_the_same_beside_others_and_on_any_number_of_threads(name: str) -> None:
    row = scheme(name)
    assert row.weights is not None
    k = 40 * 32 if name == "int3" else 1280
    run = bound(quantize_weight(normal(300, k), row.weights, search="absmax", scale_dtype=torch.bfloat16), row)
    x, before = normal(90, k, seed=2), cpu_library.threads()
    few, many = run(x[:4]), run(x)
    try:
        for threads in (1, 2, 3):
            cpu_library.set_threads(threads)
            for m in (1, 2, 3):
                assert torch.equal(run(x[:m]), few[:m])
            assert torch.equal(run(x[:66]), many[:66])
    finally:
        cpu_library.set_threads(before)


@pytest.mark.parametrize("name", ["int4", "int4-g32", "int4-asym", "w4a8", "w4a8-g32", "bf16"])
@pytest.mark.parametrize("k", [5632, 9728])  # 76 groups of 128: whole sixteens and a rest
def test_long_rows_take_other_numbers_of_rows_at_once(name: str, k: int) -> None:
    """How many rows of weights go together depends on what the first cache holds; results do not."""
    row = scheme(name)
    weight = normal(7, k)
    if row.weights is None:
        run = cpu.bind(weight.bfloat16(), None, None, None)
        x = normal(3, k, seed=2)
        wanted = x.double() @ weight.bfloat16().double().T
    else:
        q = quantize_weight(weight, row.weights, search="absmax", scale_dtype=torch.bfloat16)
        run = bound(q, row)
        x = normal(3, k, seed=2)
        wanted = expected(x, q, row, None)
    together = run(x)
    assert float((together.double() - wanted).norm() / wanted.norm()) <= 3e-6
    for at in range(3):
        assert torch.equal(run(x[at : at + 1])[0], together[at])


def test_a_row_with_nan_is_nan_and_leaves_the_others_alone() -> None:
    for name in ("fp8", "int8", "int4", "w4a8", "fp8-block"):
        row = scheme(name)
        assert row.weights is not None
        run = bound(quantize_weight(normal(20, 256), row.weights, search="absmax", scale_dtype=torch.bfloat16), row)
        x = normal(3, 256)
        clean = run(x)
        x[1, 7] = float("nan")
        y = run(x)
        assert y[1].isnan().all()
        assert torch.equal(y[[0, 2]], clean[[0, 2]])


def test_memory_that_is_aligned_to_nothing() -> None:
    row = scheme("fp8")
    assert row.weights is not None
    q = quantize_weight(normal(9, 333), row.weights, search="absmax", scale_dtype=torch.bfloat16)
    shifted = torch.empty(9 * 333 + 1, dtype=torch.uint8)[1:]
    shifted.copy_(q.codes.flatten())
    moved = QTensor(q.spec, q.shape, shifted.view(9, 333), q.scale)
    x = normal(1, 334)[:, 1:]
    assert torch.equal(bound(moved, row)(x), bound(q, row)(x.contiguous()))


def test_no_rows_and_wrong_widths() -> None:
    run = cpu.bind(normal(4, 8), None, None, None)
    assert run(torch.empty(0, 8)).shape == (0, 4)
    assert run(normal(2, 3, 8)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="7 values a row"):
        run(normal(1, 7))


def test_nan_codes_go_to_the_reference_path_and_the_reason_is_kept() -> None:
    codes = torch.full((2, 32), 0x38, dtype=torch.uint8)
    codes[1, 31] = 0x7F
    spec = WeightSpec("e4m3fn", "channel")
    q = QTensor(spec, (2, 32), codes, torch.ones(2, 1, dtype=torch.bfloat16))
    with pytest.raises(Unsupported, match="NaN or infinite"):
        cpu.bind(q, None, None, None)
    found = backends.bind(q, None, None, None, device="cpu")
    assert found.kernel.name == "reference"
    assert any("NaN" in reason for reason in found.reasons)


def test_an_instruction_set_that_is_not_here() -> None:
    with pytest.raises(IsobitError, match="no such instruction set"):
        cpu_library.use_isa("mmx")


@pytest.mark.parametrize("name", ["int4", "int4-g32", "int4-asym", "int4-asym-g32", "int4-g512"])
@pytest.mark.parametrize("size", [30.0, 1e4, 1e9, 1e25])
def test_an_outlier_in_front_of_zero_weights_costs_the_others_nothing(name: str, size: float) -> None:
    """Float activations may run as multiples of a unit; where that would lose the small ones it must not be done."""
    row = scheme(name)
    assert row.weights is not None
    weight = normal(9, 1024)
    weight[:, 100] = 0
    q = quantize_weight(weight, row.weights, search="absmax", scale_dtype=torch.bfloat16)
    run = bound(q, row)
    x = normal(4, 1024, seed=2)
    x[1, 100] = x[2, 100] = size
    wanted = expected(x, q, row, None)
    error = (run(x).double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(error.max()) <= 3e-5
    for at in range(4):  # rows of both kinds in one call give what they give alone
        assert torch.equal(run(x[at : at + 1]), run(x)[at : at + 1])


@pytest.mark.parametrize("name", ["int4", "int4-g32", "int4-g256", "int4-asym", "int4-asym-g32"])
@pytest.mark.parametrize("m", [5, 13, 18, 40, 70])
def test_rows_that_digits_hold_and_others_leave_each_other_alone(name: str, m: int) -> None:
    row = scheme(name)
    assert row.weights is not None
    run = bound(quantize_weight(normal(75, 1024), row.weights, search="absmax", scale_dtype=torch.bfloat16), row)
    plain, mixed = normal(m, 1024, seed=2), normal(m, 1024, seed=2)
    spoilt = plain.clone()
    spoilt[:, ::97] = 3e6
    which = torch.arange(m) % 3 == 1
    mixed[which] = spoilt[which]
    found = run(mixed)
    assert torch.equal(found[~which], run(plain)[~which])
    assert torch.equal(found[which], run(spoilt)[which])


# Scales for more columns than a panel has, and no multiple of them: panels that begin in one group end in others.
GROUPS = [(element, size) for element in ("int4", "uint4", "int8") for size in (192, 320, 384)]
BLOCKS = [(element, size) for element in ("e4m3fn", "int8") for size in ((128, 192), (128, 384), (64, 320))]
AMID = [
    *(WeightSpec(element, "group", group=size, symmetric=element != "uint4") for element, size in GROUPS),
    *(WeightSpec(element, "block", block=size) for element, size in BLOCKS),
]


@pytest.mark.parametrize("spec", AMID, ids=repr)
def test_panels_have_the_scales_of_all_their_columns(spec: WeightSpec) -> None:
    k = 4 * (spec.group or (spec.block or (0, 0))[1])
    before = cpu_library.threads()
    cpu_library.set_threads(1)
    try:
        for activations in (None, ActSpec("int8", "token")) if spec.element == "int4" else (None,):
            row = Scheme("row", spec, activations)
            for n in (1, 65, 129, 256, 257):
                q = quantize_weight(normal(n, k), spec, search="absmax", scale_dtype=torch.float32)
                other = quantize_weight(50 * normal(4, k), spec, search="absmax", scale_dtype=torch.float32)
                bound(other, row)(normal(1, k))  # leaves its scales where a thread keeps them
                x = normal(300, k, seed=1)
                wanted = expected(x, q, row, None)
                for m in (13, 70, 300):
                    error = bound(q, row)(x[:m]).double() - wanted[:m]
                    assert bool((error.norm(dim=0) <= 1e-5 * wanted[:m].norm(dim=0)).all()), (n, m)
    finally:
        cpu_library.set_threads(before)


@pytest.mark.parametrize("name", ["int4", "int4-g32", "int4-asym"])
def test_float_activations_of_every_size_by_int4(name: str) -> None:
    row = scheme(name)
    assert row.weights is not None
    q = quantize_weight(normal(33, 640), row.weights, search="absmax", scale_dtype=torch.bfloat16)
    run = bound(q, row)
    rows = [
        normal(640) * torch.exp(normal(640, seed=seed) * spread) for seed, spread in enumerate((0.5, 2.0, 4.0, 8.0))
    ]
    rows += [normal(640) * 2.0**power for power in (-70, -59, -20, 20, 59, 70)]
    rows += [torch.ones(640), torch.eye(640)[5], torch.full((640,), 127 * 65793.0), torch.arange(-320.0, 320.0)]
    rows += [torch.nextafter(torch.full((640,), 2.0), torch.tensor(0.0)), -torch.full((640,), 8388607.0)]
    x = torch.stack(rows)
    wanted = expected(x, q, row, None)
    error = (run(x).double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(error.max()) <= 1e-5
    assert torch.equal(run(torch.zeros(2, 640)), torch.zeros(2, 33))
