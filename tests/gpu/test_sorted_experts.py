"""Experts of very many tokens, which lie sorted by expert: float64 from the same codes, gates, whole mixtures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_experts_on_gpu import machine, mixture
from test_triton_linear import TOLERANCE, _cuda, _expected, _weight

from isobit.formats.schemes import SCHEMES
from isobit.kernels import reference_experts
from isobit.kernels.grouped import Gating, Grouped, Mixture, Routes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
EXPERTS, ACTIVE, TOKENS = 6, 2, 1301
SCHEMES_HERE = ("bf16", "fp8", "fp8-e5m2", "int8")
# Rows and values of a row that are no multiples of tiles, one step of K, and many.
SIZES = ((328, 272), (136, 16), (256, 1168), (1024, 512))


@pytest.fixture(autouse=True)
def _on_hopper() -> None:
    if machine(None).target.name != "sm_90":
        pytest.skip(f"{machine(None).target.name} has no such kernel")


def tall(scheme: str, rows: int, columns: int, draw: torch.Generator, *, bias: bool = False) -> tuple[Grouped, Grouped]:
    """The experts of one role on the device, and beside it."""
    add = torch.randn(EXPERTS, rows, generator=draw) if bias else None
    there = None if add is None else add.cuda()
    if scheme == "bf16":
        plain = (torch.randn(EXPERTS * rows, columns, generator=draw) / columns**0.5).bfloat16()
        return Grouped(plain.cuda(), EXPERTS, rows, rows, there), Grouped(plain, EXPERTS, rows, rows, add)
    weight = _weight(scheme, EXPERTS * rows, columns, draw)
    largest = weight.values().abs().mean() * columns**0.5
    weight = replace(weight, scale=(weight.scale.float() / largest).to(torch.bfloat16))
    acts = SCHEMES[scheme].activations
    return Grouped(_cuda(weight), EXPERTS, rows, rows, there, acts), Grouped(weight, EXPERTS, rows, rows, add, acts)


def chosen(draw: torch.Generator, case: str) -> torch.Tensor:
    """Experts of tokens: any; those of a part; one, and another one for all."""
    if case == "two":
        return torch.tensor([[4, 1]]).expand(TOKENS, ACTIVE).contiguous().int()
    among = EXPERTS if case == "any" else EXPERTS - 3
    return torch.stack([torch.randperm(among, generator=draw)[:ACTIVE] for _ in range(TOKENS)]).int()


@pytest.mark.parametrize("scheme", SCHEMES_HERE)
@pytest.mark.parametrize("size", SIZES)
def test_linears_are_within_the_tolerance(scheme: str, size: tuple[int, int]) -> None:
    from isobit.kernels.gpu import mixture as experts
    from isobit.kernels.gpu.routing import GpuRouter
    from isobit.kernels.gpu.sorted_tiles import WIDTH
    from isobit.kernels.gpu.workspace import Workspace

    draw, here = torch.Generator().manual_seed(3), machine(None)
    held, law = tall(scheme, *size, draw, bias=size[0] > 1000)
    router, bound = GpuRouter(here, Workspace(torch.device("cuda"))), experts._Experts(held, here, False)
    ids = chosen(draw, "some" if size[0] == 256 else "any")
    pairs = ids.numel()
    order, of_tile = places = router.place(ids.flatten().cuda(), EXPERTS, WIDTH)
    for share in (ACTIVE, 0):
        x = torch.randn(TOKENS if share else pairs, size[1], generator=draw).bfloat16()
        run = bound.sorted_run(TOKENS, pairs, share, torch.bfloat16, "", "float32")
        assert run is not None and run.row.of_experts
        given = x.cuda()
        if not share:  # sorted before it is rounded
            given = router.take(given, order, pairs)
        rows, scales = run.operand(given if run.rounding is None else run.rounding(given))
        if share:
            rows = router.take(rows, order, pairs)
        found = run(rows, scales, places, pairs).double().cpu()
        if share:  # it lies sorted
            real = (order.cpu() < pairs) & (of_tile.cpu() >= 0).repeat_interleave(WIDTH)  # else they are anything
            by_pair = torch.full((pairs, size[0]), float("nan"), dtype=torch.float64)
            by_pair[order.cpu()[real].long()] = found[real]
            found = by_pair
        flat = ids.flatten()
        for expert in range(EXPERTS):
            (pair,) = torch.nonzero(flat == expert, as_tuple=True)
            if not len(pair):
                continue
            token, one = (pair // share if share else pair), law.expert(expert)
            exact = x[token].double() @ one.double().T if isinstance(one, torch.Tensor) else _expected(
                one, law.activations, law.input_scale, x[token]
            )  # fmt: skip
            if law.bias is not None:
                exact = exact + law.bias[expert].double()
            got = found[pair]
            assert float((got - exact).norm() / exact.norm()) < TOLERANCE, (share, expert)


@pytest.mark.parametrize("scheme", SCHEMES_HERE)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu", "relu2"])
def test_a_mixture_is_the_law_and_that_of_other_tiles(
    scheme: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isobit.kernels.gpu import mixture as experts

    draw = torch.Generator().manual_seed(4)
    sizes = (272, 512), (272, 512), (512, 272)
    pairs = [tall(scheme, *size, draw, bias=activation == "gelu") for size in sizes]
    gating = Gating(activation)  # type: ignore[arg-type]
    monkeypatch.setattr(experts, "SHORTEST", 0)
    bound = _bound([one for one, _ in pairs], gating)
    law = reference_experts.bind(Mixture(*(one for _, one in pairs), gating))
    for case in ("any", "some", "two"):
        ids, weights = chosen(draw, case), torch.rand(TOKENS, ACTIVE, generator=draw)
        x = torch.randn(TOKENS, 512, generator=draw).bfloat16()
        routes, given = Routes(ids.cuda(), weights.cuda()), x.cuda()
        found = bound(given, routes)
        wanted = law(x, Routes(ids, weights)).double()
        limit = 8e-3 if scheme == "bf16" else 2e-2  # as in test_experts_on_gpu.py
        assert float((found.cpu().double() - wanted).norm() / wanted.norm()) < limit, case
        assert torch.equal(bound(given, routes), found), "again"
        assert bound._sorted(TOKENS, TOKENS * ACTIVE, ACTIVE, torch.bfloat16) is not None
        with monkeypatch.context() as patched:
            patched.setattr(experts._Experts, "sorted_run", lambda *_: None)
            other = bound(given, routes)
        assert float((found.double() - other.double()).norm() / other.double().norm()) < limit, case
        if scheme == "int8" and activation != "gelu":
            assert torch.equal(found, other), "sums of integers are exact"


def _bound(parts: list[Grouped], gating: Gating):
    from isobit.kernels.gpu.mixture import bind
    from isobit.kernels.gpu.workspace import Workspace

    return bind(Mixture(*parts, gating), machine=machine(None), workspace=Workspace(torch.device("cuda")))


def test_a_router_puts_pairs_into_these_tiles_and_a_graph_serves_any_choice() -> None:
    draw = torch.Generator().manual_seed(5)
    bound = mixture([tall("fp8", *size, draw)[0] for size in ((1024, 1536), (1024, 1536), (1536, 1024))])
    x = torch.randn(TOKENS, 1536, generator=draw).bfloat16().cuda()
    routes = Routes(chosen(draw, "any").cuda(), torch.rand(TOKENS, ACTIVE, generator=draw).cuda())
    width, rounding = bound.wants(x, ACTIVE)
    assert width == 128 and rounding is not None
    bound(x, routes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = bound(x, routes)
    for case in ("two", "some"):
        routes.ids.copy_(chosen(draw, case))
        graph.replay()
        assert torch.equal(recorded, bound(x, routes)), case
