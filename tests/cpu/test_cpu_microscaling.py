"""The CPU kernels on MX and NV formats as they are stored: every code and scale against float64, and the rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from isobit.errors import Unsupported
from isobit.formats import pack
from isobit.formats.codec import decode, quantize_activations
from isobit.formats.qtensor import QTensor, stacked
from isobit.formats.scales import POWERS, UNDER_ONE, ScaleSpec
from isobit.formats.schemes import ActSpec, WeightSpec, scheme
from isobit.kernels import backends, mixtures, reference_experts
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu.experts import CpuMixture
from isobit.kernels.grouped import Grouped, Mixture, Routes
from isobit.kernels.widened import RoundedBefore
from isobit.quantizer.grid import quantize_weight

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)

SCHEMES = ("mxfp4", "mxfp4-w16", "mxfp8", "mxfp8-w16", "nvfp4", "nvfp4-w16")
ROWS = (1, 2, 3, 5, 13, 33, 65)


@pytest.fixture(params=cpu_library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def over_of(name: str) -> Tensor | None:
    return torch.tensor([700.0]) if name == "nvfp4" else None


def entering(x: Tensor, spec: ActSpec | None, over: Tensor | None) -> Tensor:
    """The activations that are multiplied, float64."""
    if spec is None:
        return x.double()
    codes, scales = quantize_activations(x, spec, over)
    return decode(codes, spec.element).double() * scales.double().repeat_interleave(spec.group or x.shape[-1], -1)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_against_float64_and_nothing_is_converted(name: str) -> None:
    row, over = scheme(name), over_of(name)
    assert row.weights is not None and row.weights.group is not None
    group = row.weights.group
    for n, k in ((1, group), (37, 7 * group), (70, 24 * group)):
        q = quantize_weight(normal(n, k), row.weights, search="absmax", scale_dtype=torch.bfloat16)
        bias = normal(n, seed=1)
        found = backends.bind(q, row.activations, over, bias, device="cpu")
        assert found.kernel.name == "cpu"
        run = found.run
        assert isinstance(run, cpu.CpuLinear)
        assert (run.struct.codes, run.struct.scales) == (q.codes.data_ptr(), q.scale.data_ptr())
        weight = q.dequantize().double()
        for m in ROWS:
            x = normal(m, k, seed=2)
            wanted = entering(x, row.activations, over) @ weight.T + bias.double()
            assert float((run(x).double() - wanted).norm() / wanted.norm()) <= 3e-6, (n, k, m)


@pytest.mark.parametrize("group", [8, 16, 32, 64, 128, 256])
def test_all_codes_in_all_places(group: int) -> None:
    k = 256
    codes = torch.stack([(torch.arange(k) + row).remainder(16) for row in range(16)]).to(torch.uint8)
    q = QTensor(WeightSpec("e2m1", "group", group, scale=POWERS), (16, k), pack.pack(codes, "e2m1"),
                torch.full((16, k // group), 128, dtype=torch.uint8))  # fmt: skip
    run, x = cpu.bind(q, None, None, None), torch.eye(k)
    wanted = 2 * decode(codes, "e2m1").T
    assert torch.equal(run(x), wanted)  # many rows
    for first in range(0, k, 5):
        assert torch.equal(run(x[first : first + 3]), wanted[first : first + 3])


@pytest.mark.parametrize("stored", [POWERS, UNDER_ONE, ScaleSpec("e4m3fn", "multiplies"), ScaleSpec("e4m3fn")])
@pytest.mark.parametrize(("m", "groups"), [(1, 8), (70, 8), (1, 75), (14, 75)])
def test_all_scales(stored: ScaleSpec, m: int, groups: int) -> None:
    """One activation is not zero, so a result is one product, rounded once: the scale is the law's to the bit.

    Rows of many groups have runs of scales with and without subnormal ones."""
    least, count = (27, 200) if stored == POWERS else (0, 127)
    k, n = 16 * groups, 32
    scale = (torch.arange(n * groups).view(n, groups) % count + least).to(torch.uint8)
    over = None if stored.over is None else torch.tensor([3.1415927])
    codes = torch.full((n, k), 0x5, dtype=torch.uint8)  # 3
    q = QTensor(WeightSpec("e2m1", "group", 16, scale=stored), (n, k), pack.pack(codes, "e2m1"), scale, over=over)
    x = torch.zeros(m, k)
    x[torch.arange(m), (torch.arange(m) * 29) % k] = 1.0
    run = cpu.bind(q, None, None, None)
    assert torch.equal(run(x), x @ q.dequantize().T)


@pytest.mark.parametrize(
    ("element", "group", "stored"),
    [("e2m1", 32, POWERS), ("e4m3fn", 32, POWERS), ("e2m1", 16, UNDER_ONE), ("e4m3fn", 16, UNDER_ONE),
     ("e5m2", 32, POWERS), ("int8", 32, POWERS), ("e2m1", 32, None), ("e2m1", None, None)],
)  # fmt: skip
def test_activations_are_rounded_by_the_law_bit_for_bit(
    element: str, group: int | None, stored: ScaleSpec | None
) -> None:
    spec = ActSpec(element, "group" if group else "token", group, scale=stored)
    over = torch.tensor([2.5]) if spec.calibrated else None
    ties = torch.arange(-256, 256).float() / 16
    rows = [normal(512), normal(512) * 1e-30, normal(512) * 1e30, ties, torch.zeros(512), -torch.zeros(512)]
    rows += [normal(512) * torch.exp(normal(512, seed=3) * 8), torch.full((512,), 1e-45), torch.full((512,), 3e38)]
    rows += [1.75 * 2.0 ** torch.arange(-126, 130).float().clamp(max=127).repeat_interleave(2)]
    for bad in (float("nan"), float("inf"), -float("inf")):
        row = normal(512)
        row[5] = bad
        rows.append(row)
    x = torch.stack(rows)
    codes, scales = cpu.quantize_activations(x, spec, over)
    wanted, wanted_scales = quantize_activations(x, spec, over)
    assert torch.equal(codes.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(scales.isnan(), wanted_scales.isnan())
    assert torch.equal(scales.nan_to_num().view(torch.int32), wanted_scales.nan_to_num().view(torch.int32))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_row_with_nan_is_nan_and_leaves_the_others_alone(name: str) -> None:
    row = scheme(name)
    q = quantize_weight(normal(20, 256), row.weights, search="absmax", scale_dtype=torch.bfloat16)
    run = cpu.bind(q, row.activations, over_of(name), None)
    for m in (3, 70):
        x = normal(m, 256)
        clean = run(x)
        x[1, 7] = float("nan")
        y = run(x)
        assert y[1].isnan().all() and torch.equal(y[2:], clean[2:]) and torch.equal(y[0], clean[0])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_row_is_the_same_in_any_number_of_rows_where_that_is_asked_for(name: str) -> None:
    row = scheme(name)
    q = quantize_weight(normal(70, 1280), row.weights, search="absmax", scale_dtype=torch.bfloat16)
    run, x = cpu.bind(q, row.activations, over_of(name), None, alike=True), normal(80, 1280, seed=2)
    alone = torch.cat([run(x[at : at + 1]) for at in range(80)])
    for m in (2, 8, 33, 80):
        assert torch.equal(run(x[:m]), alone[:m]), m


def test_rounded_8_bit_floats_give_the_same_bits_in_any_number_of_rows_always() -> None:
    row = scheme("mxfp8")
    q = quantize_weight(normal(70, 1312), row.weights, search="absmax", scale_dtype=torch.bfloat16)
    run, x = cpu.bind(q, row.activations, None, None), normal(300, 1312, seed=2)
    assert torch.equal(run(x)[:40], torch.cat([run(x[at : at + 1]) for at in range(40)]))


def test_groups_that_do_not_fill_vectors_are_held_as_int8() -> None:
    spec = WeightSpec("e2m1", "group", 24, scale=POWERS)
    q = quantize_weight(normal(10, 240), spec, search="absmax", scale_dtype=torch.bfloat16)
    with pytest.raises(Unsupported, match="groups of 24"):
        cpu.bind(q, None, None, None)
    rounding = ActSpec("e2m1", "group", 24, scale=POWERS)
    found = backends.bind(q, rounding, None, None, device="cpu")
    assert found.kernel.name == "cpu" and isinstance(found.run, RoundedBefore)
    x = normal(5, 240)
    wanted = entering(x, rounding, None) @ q.dequantize().double().T
    assert float((found.run(x).double() - wanted).norm() / wanted.norm()) <= 3e-6


@pytest.mark.parametrize(("name", "code"), [("nvfp4-w16", 0x7F), ("nvfp4-w16", 0xFF), ("mxfp4-w16", 0xFF),
                                            ("mxfp8-w16", 0xFF), ("mxfp8-w16", 127 + 40)])  # fmt: skip
def test_scales_that_kernels_do_not_read_go_to_the_reference_path(name: str, code: int) -> None:
    q = quantize_weight(normal(4, 64), scheme(name).weights, search="absmax", scale_dtype=torch.bfloat16)
    scale = q.scale.clone()
    scale[1, 1] = code
    with pytest.raises(Unsupported, match="some of its scales are"):
        cpu.bind(replace(q, scale=scale), None, None, None)
    assert not cpu.bind(q, None, None, None)(normal(1, 64)).isnan().any()


def test_matrices_under_different_scales_are_stacked() -> None:
    parts = [quantize_weight(normal(n, 64) * n, scheme("nvfp4").weights, search="absmax", scale_dtype=torch.bfloat16)
             for n in (8, 16)]  # fmt: skip
    whole = stacked(parts)
    wanted = torch.cat([part.dequantize() for part in parts])
    assert whole.over is not None and whole.over.shape == (24, 1) and torch.equal(whole.dequantize(), wanted)
    assert torch.equal(whole.rows(slice(5, 20)).dequantize(), wanted[5:20])
    order = torch.arange(23, -1, -1)
    assert torch.equal(whole.in_order(order).dequantize(), wanted[order])
    x = normal(3, 64)
    run = cpu.bind(whole, None, None, None)
    assert torch.equal(run(x), torch.cat([cpu.bind(part, None, None, None)(x) for part in parts], -1))


@pytest.mark.parametrize("name", SCHEMES)
def test_experts_as_they_are_stored(name: str) -> None:
    row, experts, hidden, inner = scheme(name), 5, 64, 96
    scales = torch.linspace(500, 900, experts) if name == "nvfp4" else None

    def role(n: int, k: int, seed: int) -> Grouped:
        made = [quantize_weight(normal(n, k, seed=seed + i) * 2.0**-i, row.weights, search="absmax",
                                scale_dtype=torch.bfloat16) for i in range(experts)]  # fmt: skip
        return Grouped(stacked(made), experts, n, n, None, row.activations, scales)

    mixture = Mixture(role(inner, hidden, 0), role(inner, hidden, 20), role(hidden, inner, 40))
    bound = mixtures.bind(mixture, device="cpu")
    assert bound.kernel.name == "cpu" and isinstance(bound.run, CpuMixture) and bound.run.mixture is mixture
    ids = torch.tensor([[0, 3], [4, 1], [2, 3], [3, 4]], dtype=torch.int32)
    routes = Routes(ids, normal(4, 2, seed=5).softmax(-1))
    x = normal(4, hidden, seed=9)
    wanted = reference_experts.bind(mixture)(x, routes)
    error = float((bound.run(x, routes) - wanted).norm() / wanted.norm())
    assert error <= (3e-6 if row.activations is None else 2e-2)  # a value beside a midpoint may land on its other side


@pytest.mark.parametrize("name", ["int4", "mxfp4-w16", "nvfp4-w16"])
@pytest.mark.parametrize("small", [1e-5, 1e-7])
def test_small_activations_count_where_the_largest_meet_zero_weights(name: str, small: float) -> None:
    """Exactly half of a block is far below its largest: then no digits of the largest stand for them."""
    row, made = scheme(name), torch.Generator().manual_seed(0)
    assert row.weights is not None
    w = torch.randn(16, 128, generator=made)
    w[:, ::2] = 0
    x = torch.full((1, 128), small)
    x[:, ::2] = 1.0
    x *= 1 + 0.1 * torch.rand(1, 128, generator=made)
    weight = quantize_weight(w, row.weights, search="absmax", scale_dtype=torch.bfloat16)
    exact = x.double() @ weight.dequantize().double().T
    bound = backends.bind(weight, None, None, None, device="cpu")
    for rows in (1, 64):
        found = bound.run(x.repeat(rows, 1))[0].double()
        assert float((found - exact[0]).norm() / exact[0].norm()) < 1e-6, rows
