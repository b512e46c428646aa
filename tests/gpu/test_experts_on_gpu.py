"""Mixtures of experts on a GPU: every scheme against float64 from the same codes, routers against the law, the same
bits in graphs, again, and (batch-invariant) beside any number of others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_oracle import over_of
from test_triton_linear import LOWERINGS, ON_GPUS, TOLERANCE, WIDE, _cuda, _expected, _weight

from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, ActSpec
from isobit.kernels import reference_experts
from isobit.kernels.grouped import Gating, Grouped, Mixture, Routes, Routing
from isobit.targets.table import target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
EXPERTS, ACTIVE, HIDDEN, INNER = 16, 4, 1024, 768
TOKENS = (1, 3, 17, 64, 130, 700)  # each in tiles of another width
DYNAMIC = [name for name in ON_GPUS if SCHEMES[name].activations is None or SCHEMES[name].activations.dynamic]


def tall(scheme: str, rows: int, columns: int, draw: torch.Generator) -> tuple[Grouped, Grouped]:
    """The experts of one role on the device, and beside it."""
    if scheme == "bf16":
        plain = (torch.randn(EXPERTS * rows, columns, generator=draw) / columns**0.5).bfloat16()
        return Grouped(plain.cuda(), EXPERTS, rows, rows), Grouped(plain, EXPERTS, rows, rows)
    weight = _weight(scheme, EXPERTS * rows, columns, draw)
    if weight.scale.is_floating_point():
        largest = weight.values().abs().mean() * columns**0.5
        weight = replace(weight, scale=(weight.scale.float() / largest).to(torch.bfloat16))
    acts = SCHEMES[scheme].activations
    over = None if acts is None else over_of(acts)
    held = Grouped(_cuda(weight), EXPERTS, rows, rows, None, acts, None if over is None else over.cuda())
    return held, Grouped(weight, EXPERTS, rows, rows, None, acts, over)


def choices(tokens: int, draw: torch.Generator) -> torch.Tensor:
    """Experts of tokens, some of which nobody chooses; the first token's are those of most others."""
    ids = torch.stack([torch.randperm(EXPERTS - 2, generator=draw)[:ACTIVE] for _ in range(tokens)])
    ids[: tokens // 2] = ids[0]
    return ids.int()


def machine(lowering: str | None):
    from isobit.kernels.gpu import card

    return card.machine(target(lowering) if lowering else None)


def mixture(parts: list[Grouped], lowering: str | None = None, *, alike: bool = False):
    from isobit.kernels.gpu.mixture import bind
    from isobit.kernels.gpu.workspace import Workspace

    return bind(
        Mixture(*parts), machine=machine(lowering), workspace=Workspace(torch.device("cuda")), alike=alike
    )  # fmt: skip


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("scheme", ["bf16", *DYNAMIC])
def test_linears_of_experts_are_within_the_tolerance(scheme: str, lowering: str | None) -> None:
    from isobit.kernels.gpu import mixture as experts
    from isobit.kernels.gpu.routing import GpuRouter
    from isobit.kernels.gpu.workspace import Workspace

    if scheme in ("bf16", *WIDE) and lowering == "sm_75":
        pytest.skip("has no bfloat16")
    draw, here = torch.Generator().manual_seed(3), machine(lowering)
    weights = None if scheme == "bf16" else SCHEMES[scheme].weights
    hidden = 2 * HIDDEN if scheme == "int4" else HIDDEN  # its long rows have tiles of their own, short ones are below
    columns = hidden - hidden % ((weights.group if weights is not None else None) or 1)
    held, law = tall(scheme, INNER, columns, draw)
    dtype = torch.float16 if lowering == "sm_75" else torch.bfloat16
    router = GpuRouter(here, Workspace(torch.device("cuda")))
    for alike in (False, True):
        bound = experts._Experts(held, here, alike)
        for tokens in TOKENS:
            ids = choices(tokens, draw)
            x = torch.randn(tokens, columns, generator=draw).to(dtype)
            places = experts._Places(router, ids.flatten().cuda(), EXPERTS, tokens, ACTIVE)
            run = bound.run(places, dtype, "", "float32")
            given = x.cuda()
            found = run(given if run.rounding is None else run.rounding(given), places).cpu().double()
            for expert in range(EXPERTS):
                token, slot = torch.nonzero(ids == expert, as_tuple=True)
                if len(token):
                    one = law.expert(expert)
                    exact = x[token].double() @ one.double().T if isinstance(one, torch.Tensor) else _expected(
                        one, law.activations, law.input_scale, x[token]
                    )  # fmt: skip
                    got = found.view(tokens, ACTIVE, INNER)[token, slot]
                    assert float((got - exact).norm() / exact.norm()) < TOLERANCE, (tokens, alike, expert, run.row.name)


@pytest.mark.parametrize("scheme", ["bf16", "fp8", "int8", "int4", "fp8-block"])
def test_a_mixture_is_the_law_and_the_same_in_a_graph(scheme: str) -> None:
    draw = torch.Generator().manual_seed(4)
    sizes = (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    pairs = [tall(scheme, *size, draw) for size in sizes]
    bound, law = mixture([one for one, _ in pairs]), reference_experts.bind(Mixture(*(one for _, one in pairs)))
    for tokens in TOKENS:
        ids, weights = choices(tokens, draw), torch.rand(tokens, ACTIVE, generator=draw)
        x = torch.randn(tokens, HIDDEN, generator=draw).bfloat16()
        routes, given = Routes(ids.cuda(), weights.cuda()), x.cuda()
        found = bound(given, routes)
        wanted = law(x, Routes(ids, weights)).double()
        # bfloat16 between the parts; where inputs are rounded, codes that sums in another order move across midpoints,
        # which were 1 % of a single token.
        limit = 2e-2 if scheme != "bf16" and SCHEMES[scheme].activations is not None else 8e-3
        assert float((found.cpu().double() - wanted).norm() / wanted.norm()) < limit, tokens
        assert torch.equal(bound(given, routes), found), "again"
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = bound(given, routes)
        routes.ids.copy_(choices(tokens, draw))  # a graph serves whatever is chosen
        graph.replay()
        assert torch.equal(recorded, bound(given, routes)), tokens


@pytest.mark.parametrize("scheme", ["bf16", "fp8", "int4"])
def test_batch_invariant_experts(scheme: str) -> None:
    draw = torch.Generator().manual_seed(5)
    sizes = (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    bound = mixture([tall(scheme, *size, draw)[0] for size in sizes], alike=True)
    ids, weights = choices(700, draw).cuda(), torch.rand(700, ACTIVE, generator=draw).cuda()
    x = torch.randn(700, HIDDEN, generator=draw).bfloat16().cuda()
    whole = bound(x, Routes(ids, weights))
    for begin, end in ((0, 1), (5, 9), (600, 700), (699, 700), (13, 80)):
        part = slice(begin, end)
        assert torch.equal(bound(x[part], Routes(ids[part], weights[part])), whole[part]), (begin, end)


def test_gpt_oss_gates_and_llama_4_inputs() -> None:
    draw = torch.Generator().manual_seed(6)
    pairs = [tall("bf16", *size, draw) for size in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))]
    from isobit.kernels.gpu.mixture import bind
    from isobit.kernels.gpu.workspace import Workspace

    for gating, on_input in ((Gating(limit=1.0), False), (Gating("gelu"), True)):
        law = reference_experts.bind(Mixture(*(one for _, one in pairs), gating, on_input))
        whole = Mixture(*(one for one, _ in pairs), gating, on_input)
        bound = bind(whole, machine=machine(None), workspace=Workspace(torch.device("cuda")))
        ids, weights = choices(33, draw), torch.rand(33, ACTIVE, generator=draw)
        x = torch.randn(33, HIDDEN, generator=draw).bfloat16()
        found = bound(x.cuda(), Routes(ids.cuda(), weights.cuda())).cpu().double()
        wanted = law(x, Routes(ids, weights)).double()
        assert float((found - wanted).norm() / wanted.norm()) < 8e-3


@pytest.mark.parametrize("alike", [False, True])
def test_routers_choose_as_the_law(alike: bool) -> None:
    from isobit.kernels.gpu.routing import GpuRouter
    from isobit.kernels.gpu.workspace import Workspace

    draw = torch.Generator().manual_seed(7)
    router = GpuRouter(machine(None), Workspace(torch.device("cuda")), alike=alike)
    # Whole numbers, whose sums have no rounding: ties are ties in any order of the sums.
    weight = torch.randint(-1, 2, (64, 512), generator=draw).float() / 4
    weight[40] = weight[3]
    correction = torch.rand(64, generator=draw) - 0.5
    for routing in (
        Routing(weight, 8), Routing(weight, 4, scores="softmax-behind", renormalize=False),
        Routing(weight, 6, correction=correction, scores="sigmoid", groups=8, active_groups=3, group_score="two",
                scale=2.5),
        Routing(weight, 2, groups=4, active_groups=1, renormalize=False),
    ):  # fmt: skip
        there = replace(
            routing, weight=weight.cuda(), correction=None if routing.correction is None else correction.cuda()
        )
        for tokens in (1, 7, 300):
            x = torch.randint(-2, 3, (tokens, 512), generator=draw).bfloat16() / 8
            x[0] = 0
            found, law = router.route(there, x.cuda()), reference_experts.route(routing, x)
            assert torch.equal(found.ids.cpu(), law.ids)
            assert torch.allclose(found.weights.cpu(), law.weights, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("element", ["e4m3fn", "int8"])
def test_routers_place_pairs_and_round_on_the_way(element: str) -> None:
    from isobit.kernels.gpu.rounding import Rounding
    from isobit.kernels.gpu.routing import GpuRouter
    from isobit.kernels.gpu.workspace import Workspace

    draw, here = torch.Generator().manual_seed(9), machine(None)
    router = GpuRouter(here, Workspace(torch.device("cuda")))
    rounding = Rounding(ActSpec(element, "token"), None, "*i8" if element == "int8" else "*u8", here)
    for experts, active, k, width in ((64, 6, 512, 8), (160, 6, 1000, 32), (8, 2, 4096, 64)):
        # In 16 bits, as checkpoints have routers, and not.
        for weight in (torch.randn(experts, k, generator=draw).bfloat16().float(), torch.rand(experts, k)):
            routing = Routing(weight.cuda(), active)
            for tokens in (1, 9, 64, 150, 1000):
                x = torch.randn(tokens, k, generator=draw).bfloat16().cuda()
                x[tokens // 2 :] = x[0]
                found, wanted = router.route(routing, x, width, rounding), rounding(x)
                assert found.rounded is not None and torch.equal(found.rounded.codes, wanted.codes)
                assert torch.equal(found.rounded.scales, wanted.scales)
                order, of = found.tiles[width]
                apart, of_apart = router.place(found.ids.flatten(), experts, width)
                assert torch.equal(of, of_apart), (experts, tokens)
                real = of >= 0
                assert torch.equal(order.view(-1, width)[real], apart.view(-1, width)[real]), (experts, tokens)


def test_a_residual_is_added_with_the_bits_of_a_sum() -> None:
    draw = torch.Generator().manual_seed(10)
    bound = mixture([tall("fp8", *size, draw)[0] for size in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))])
    for tokens in (1, 9, 300):
        routes = Routes(choices(tokens, draw).cuda(), torch.rand(tokens, ACTIVE, generator=draw).cuda())
        x, residual = (torch.randn(tokens, HIDDEN, generator=draw).bfloat16().cuda() for _ in range(2))
        assert torch.equal(bound(x, routes, None, residual), residual + bound(x, routes))


def test_stored_weights_come_back() -> None:
    """Codes are held in the order that kernels read, and once."""
    held, law = tall("int4", INNER, HIDDEN, torch.Generator().manual_seed(8))
    from isobit.kernels.gpu import mixture as experts

    bound = experts._Experts(held, machine(None), False)
    assert isinstance(law.weight, QTensor) and isinstance(bound.held.weight, QTensor)
    assert torch.equal(bound.held.weight.codes.cpu(), law.weight.codes)
