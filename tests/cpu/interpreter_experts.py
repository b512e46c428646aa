"""Mixtures of experts in Triton's interpreter: run as a program it prints one result a line.

The interpreter multiplies bfloat16 wrongly and rounds float8 wrongly, so everything here is codes, float16 and float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from interpreter_cases import weight

from isobit.formats import codec
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels import reference_experts
from isobit.kernels.gpu import mixture as experts
from isobit.kernels.gpu import sorted_experts
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.routing import GpuRouter, most_tiles
from isobit.kernels.gpu.tiles import Config
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.grouped import Gating, Grouped, Mixture, Routes, Routing
from isobit.targets.table import target

GENERATOR = torch.Generator().manual_seed(0)
MACHINE = Machine.imagined(target("sm_86"))
TOKEN = ActSpec("int8", "token")
SCHEMES: dict[str, tuple[WeightSpec | None, ActSpec | None]] = {
    "f16": (None, None),
    "fp8": (WeightSpec("e4m3fn", "channel"), ActSpec("e4m3fn", "token")),
    "fp8-e5m2": (WeightSpec("e5m2", "channel"), ActSpec("e5m2", "token")),
    "fp8-w8a16": (WeightSpec("e4m3fn", "channel"), None),
    "fp8-block": (WeightSpec("e4m3fn", "block", block=(128, 128)), ActSpec("e4m3fn", "group", 128)),
    "int8": (WeightSpec("int8", "channel"), TOKEN),
    "int8-w8a16": (WeightSpec("int8", "channel"), None),
    "int4": (WeightSpec("int4", "group", 128), None),
    "int4-g32": (WeightSpec("int4", "group", 32), None),
    "int4-asym": (WeightSpec("uint4", "group", 128, symmetric=False), None),
    "int3": (WeightSpec("int3", "group", 32), None),
    "e2m1": (WeightSpec("e2m1", "group", 32), None),
    "int8-g32": (WeightSpec("int8", "group", 32), None),
}  # fmt: skip
K, INNER, EXPERTS, ACTIVE = 256, 128, 5, 2


def tall(name: str, rows: int, columns: int, *, bias: bool = False) -> Grouped:
    """The experts of one role; scales of some rows are zero or negative."""
    spec, acts = SCHEMES[name]
    stride = -(-rows // 128) * 128 if name == "fp8-block" else rows
    added = torch.randn(EXPERTS, rows, generator=GENERATOR) if bias else None
    if spec is None:
        plain = torch.randn(EXPERTS * stride, columns, generator=GENERATOR) / columns**0.5
        values: QTensor | torch.Tensor = plain.half()
    else:
        values = weight(spec, EXPERTS * stride, columns, GENERATOR)
        largest = values.values().abs().mean() * columns**0.5
        values = replace(values, scale=(values.scale.float() / largest).to(torch.bfloat16))
    return Grouped(values, EXPERTS, rows, stride, added, acts)


def wanted(part: Grouped, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """What each pair's expert gives, in float64 from the same codes and scales: ``[pairs, N]``."""
    given = x.double()
    if part.activations is not None:
        codes, scale = codec.quantize_activations(x, part.activations, None)
        width = x.shape[-1] // scale.shape[-1]
        given = codec.decode(codes, part.activations.element).double() * scale.double().repeat_interleave(width, -1)
    found = torch.empty(len(ids), part.rows, dtype=torch.float64)
    for pair, expert in enumerate(ids.tolist()):
        own = part.expert(expert)
        matrix = own.double() if isinstance(own, torch.Tensor) else exact(own)
        found[pair] = matrix @ given[pair * len(x) // len(ids)]
        if part.bias is not None:
            found[pair] += part.bias[expert].double()
    return found


def exact(own: QTensor) -> torch.Tensor:
    """Codes times scales in float64."""
    scale, (n, k) = own.scale.double(), own.shape
    if own.spec.block is not None:
        scale = scale.repeat_interleave(own.spec.block[0], 0)[:n]
        scale = scale.repeat_interleave(own.spec.block[1], 1)
    else:
        scale = scale.repeat_interleave(k // scale.shape[1], 1)
    return own.values().double() * scale


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def choices() -> Iterator[tuple[str, torch.Tensor]]:
    """Experts of tokens: one token; a few; all to one; many, of which some experts have none."""
    yield "one token", torch.tensor([[3, 0]])
    yield "few", torch.tensor([[1, 4], [4, 0], [1, 2]])
    yield "all to one", torch.tensor([[2, 3]] * 19)
    yield "many", torch.stack([torch.randperm(4, generator=GENERATOR)[:2] for _ in range(33)])


def linears() -> Iterator[tuple[str, float]]:
    """Each role of each scheme against float64: pairs that share an input, and pairs that do not."""
    for name in SCHEMES:
        part = tall(name, 128 if name == "fp8-block" else 70, K, bias=name in ("f16", "int8", "int4"))
        for lowering, alike in (("sm_86", False), ("sm_86", True), ("sm_75", False), ("sm_90", False)):
            if lowering == "sm_90" and name not in ("int8", "int4"):
                continue
            machine = Machine.imagined(target(lowering))
            bound = experts._Experts(part, machine, alike)
            for case, ids in choices():
                if (alike or lowering != "sm_86") and case not in ("few", "one token"):
                    continue
                for share in (1, ids.shape[1]):
                    found, row, x = one(bound, machine, ids, share)
                    label = f"{case} {share} {alike} {row}"
                    yield f"linear {name} {lowering} {label}", error(found, wanted(part, x, ids.reshape(-1)))


def one(
    bound: experts._Experts, machine: Machine, ids: torch.Tensor, share: int
) -> tuple[torch.Tensor, str, torch.Tensor]:
    """What pairs give, which row ran them, and what they were given."""
    router = GpuRouter(machine, Workspace(torch.device("cpu")))
    flat = ids.reshape(-1).int()
    x = torch.randn(len(flat) // share, K, generator=GENERATOR).half()
    places = experts._Places(router, flat, EXPERTS, len(ids), share)
    run = bound.run(places, x.dtype, "", "float32")
    return run(x if run.rounding is None else run.rounding(x), places), run.row.name, x


class StandIn:
    """In the place of ``linear_experts``, which is in Gluon, and so not for the interpreter: what it is to give."""

    def __init__(self, entry: str, config: Config, machine: Machine) -> None:
        self.constants = config.constexprs
        assert entry.endswith(":linear_experts") and config.resident == 1

    def __call__(
        self, grid: tuple[int, ...], *, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor, **given: Any
    ) -> None:
        constants, order, n = self.constants, given["order"], given["N"]
        width, share, pairs = int(constants["BLOCK_M"] or 1), int(constants["SHARE"] or 0), given["PAIRS"]
        assert grid[0] <= MACHINE.multiprocessors and given["M"] == len(given["experts"]) == len(order) // width
        assert x.shape == (len(order), given["K"]) and x.dtype == w.dtype
        for tile, expert in enumerate(given["experts"].tolist()):
            if expert < 0:
                continue
            places = torch.arange(tile * width, (tile + 1) * width)
            own = order[places].long()
            rows = slice(expert * n, (expert + 1) * n)
            sums = x[places].double() @ w[rows].double().T
            if constants["HAS_SCALE"]:
                sums *= given["scale"].reshape(-1)[rows] * given["gain"]
            if constants["HAS_TOKEN_SCALE"]:
                of = own.clamp(max=pairs - 1) // share if share else places
                sums *= given["token_scale"].reshape(-1)[of][:, None]
            if constants["HAS_BIAS"]:
                sums += given["bias"].reshape(-1)[rows]
            results = sums.to(y.dtype)
            if constants["AFTER"]:
                gates = {"silu": torch.nn.functional.silu, "gelu_tanh": _gelu_tanh}[str(constants["AFTER"])]
                results = (gates(results[:, ::2].float()) * results[:, 1::2].float()).to(y.dtype)
            real = own < pairs
            y[places if constants["SORTED"] else own[real]] = results if constants["SORTED"] else results[real]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def sorted_ones() -> Iterator[tuple[str, float]]:
    """Whole mixtures whose tokens are sorted by expert on the way, beside the reference's."""
    machine = Machine.imagined(target("sm_90"))
    experts.interpreting = lambda: False
    experts.SHORTEST, sorted_experts.Kernel = 0, StandIn
    for name in ("f16", "int8", "fp8"):
        for gating in (Gating("gelu_tanh"), Gating("relu2")) if name == "int8" else (Gating(),):
            for on_input in (False, True) if name == "f16" else (False,):
                parts = tall(name, INNER, K, bias=True), tall(name, INNER, K, bias=True), tall(name, K, INNER)
                whole = Mixture(*parts, gating, on_input)
                bound = experts.bind(whole, machine=machine, workspace=Workspace(torch.device("cpu")))
                law = reference_experts.bind(whole)
                ids = torch.stack([torch.randperm(4, generator=GENERATOR)[:2] for _ in range(411)]).int()
                share = 1 if on_input else ACTIVE
                assert bound._sorted(len(ids), ids.numel(), share, torch.float16) is not None
                x = torch.randn(len(ids), K, generator=GENERATOR).half()
                routes = Routes(ids, torch.rand(ids.shape, generator=GENERATOR))
                yield f"sorted {name} {gating.activation} {on_input}", error(bound(x, routes), law(x, routes).double())


def wholes() -> Iterator[tuple[str, float]]:
    """Whole mixtures beside the reference's."""
    for name in SCHEMES:
        for gating in (Gating(), Gating("gelu_tanh", 1.0)) if name in ("f16", "int8") else (Gating(),):
            for on_input in (False, True) if name in ("f16", "int8") else (False,):
                parts = tall(name, INNER, K, bias=True), tall(name, INNER, K, bias=True), tall(name, K, INNER)
                whole = Mixture(*parts, gating, on_input)
                bound = experts.bind(whole, machine=MACHINE, workspace=Workspace(torch.device("cpu")))
                law = reference_experts.bind(whole)
                for case, ids in choices():
                    if case == "many" and name not in ("int4", "fp8"):
                        continue
                    x = torch.randn(len(ids), K, generator=GENERATOR).half()
                    routes = Routes(ids.int(), torch.rand(ids.shape, generator=GENERATOR) + 0.1)
                    found = bound(x, routes)
                    yield f"whole {name} {gating.limit} {on_input} {case}", error(found, law(x, routes).double())


ROUTINGS = {
    "softmax": Routing(torch.empty(0), 2),
    "plain weights": Routing(torch.empty(0), 3, renormalize=False),
    "behind": Routing(torch.empty(0), 2, scores="softmax-behind", bias=torch.randn(12, generator=GENERATOR)),
    "sigmoid": Routing(torch.empty(0), 4, scores="sigmoid", correction=torch.rand(12, generator=GENERATOR), scale=2.5),
    "groups": Routing(
        torch.empty(0), 3, scores="sigmoid", correction=torch.rand(12, generator=GENERATOR) - 0.7, groups=4,
        active_groups=2, group_score="two",
    ),
    "best of groups": Routing(torch.empty(0), 2, groups=3, active_groups=1, renormalize=False, scale=16.0),
    "one": Routing(torch.empty(0), 1, scores="sigmoid", renormalize=False),
}  # fmt: skip
SPARSE = {
    "sparsemixer": Routing(torch.empty(0), 2, scores="sparsemixer", renormalize=False, tolerance=0.02),
    "sparsemixer below zero": Routing(
        torch.empty(0), 3, bias=torch.linspace(-1, -2, 12), scores="sparsemixer", renormalize=False,
        tolerance=0.25, scale=2.0,
    ),
}  # fmt: skip


def routers(
    routings: dict[str, Routing] = ROUTINGS, generator: torch.Generator = GENERATOR
) -> Iterator[tuple[str, float]]:
    """Choices and weights beside the law's, with ties, in tiles and one by one."""
    for name, plain in routings.items():
        for alike in (False, True):
            router = GpuRouter(MACHINE, Workspace(torch.device("cpu")), alike=alike)
            # Whole numbers, whose sums have no rounding: ties are ties in any order of the sums.
            values = torch.randint(-1, 2, (12, 64), generator=generator).float()
            values[7] = values[2]
            routing = replace(plain, weight=values / 4)
            for tokens in (1, 5, 40, 70):
                x = torch.randint(-2, 3, (tokens, 64), generator=generator).half() / 8
                x[0] = 0.0  # every score is the same
                found, law = router.route(routing, x), reference_experts.route(routing, x)
                label = f"{name} {tokens} {alike}"
                yield f"same: experts {label}", 0.0 if torch.equal(found.ids, law.ids) else 1.0
                yield f"router {label}", error(found.weights, law.weights.double())


def sparse_routers() -> Iterator[tuple[str, float]]:
    """The same of SparseMixer, with numbers of their own."""
    yield from routers(SPARSE, torch.Generator().manual_seed(1))


def places() -> Iterator[tuple[str, float]]:
    """Pairs in tiles: each once, in its order, in tiles of its expert; and no tile more than there is room for."""
    router = GpuRouter(MACHINE, Workspace(torch.device("cpu")))
    for pairs, count, width in ((2, 5, 8), (38, 5, 16), (1500, 12, 64), (64, 200, 8)):
        ids = torch.randint(0, max(1, count - 1), (pairs,), generator=GENERATOR).int()
        same = in_order(ids, *router.place(ids, count, width), count, width)
        yield f"same: places {pairs} {count} {width}", 0.0 if same else 1.0


def in_order(ids: torch.Tensor, order: torch.Tensor, of: torch.Tensor, count: int, width: int) -> bool:
    """Whether pairs lie as they should."""
    tiles, pairs = [row.tolist() for row in order.view(-1, width)], len(ids)
    kept = [(expert, [one for one in row if one < pairs]) for expert, row in zip(of.tolist(), tiles, strict=True)
            if expert >= 0]  # fmt: skip
    same = [one for _, row in kept for one in row] == torch.argsort(ids, stable=True).tolist()
    same &= all(int(ids[one]) == expert for expert, row in kept for one in row)
    return same and len(of) == most_tiles(pairs, count, width) and all(row for _, row in kept)


def on_the_way() -> Iterator[tuple[str, float]]:
    """What a router does besides: pairs in tiles, in one program and in several, and the rounding of its input; with
    weights that float16 holds, and with others."""
    router = GpuRouter(MACHINE, Workspace(torch.device("cpu")))
    for count, active, k, width in ((12, 3, 100, 8), (40, 4, 64, 16), (300, 8, 64, 64)):
        for tokens in (1, 7, 16, 50, 75, *((300,) if count == 12 else ())):
            weight = torch.randn(count, k, generator=GENERATOR)
            weight = weight if tokens == 16 else weight.half().float()
            x = torch.randn(tokens, k, generator=GENERATOR).half()
            x[tokens // 2 :] = x[0]  # many to some experts
            spec = (ActSpec("int8", "token"), ActSpec("e4m3fn", "token"))[tokens % 2]
            rounding = Rounding(spec, None, "*fp16" if tokens == 7 else "*i8" if spec.element == "int8" else "*u8",
                                MACHINE)  # fmt: skip
            found = router.route(Routing(weight, active), x, width, rounding)
            law, label = reference_experts.route(Routing(weight, active), x), f"{count} {tokens}"
            yield f"same: routes {label}", 0.0 if torch.equal(found.ids, law.ids) else 1.0
            yield f"other router {label}", error(found.weights, law.weights.double())
            ((made, (order, of)),) = found.tiles.items()
            same = made == width and in_order(found.ids.flatten(), order, of, count, width)
            yield f"same: placed {label}", 0.0 if same else 1.0
            wanted = rounding(x)
            assert found.rounded is not None and found.rounded.key == wanted.key
            same = torch.equal(found.rounded.codes, wanted.codes) and torch.equal(found.rounded.scales, wanted.scales)
            yield f"same: rounded {label}", 0.0 if same else 1.0


def others() -> Iterator[tuple[str, float]]:
    router = GpuRouter(MACHINE, Workspace(torch.device("cpu")))
    x, y = torch.randn(3, 200, generator=GENERATOR).half(), torch.randn(3, 1100, generator=GENERATOR).half()
    vector = torch.randn(200, generator=GENERATOR)
    share = torch.sigmoid(x.double() @ vector.double())
    yield "other gate", error(router.gate_by(x, vector, y), y.double() * share[:, None])
    results, weights = torch.randn(3, 4, 1100, generator=GENERATOR), torch.rand(3, 4, generator=GENERATOR)
    yield (
        "other sum",
        error(
            router.add(results, weights, torch.float32), torch.einsum("tak,ta->tk", results.double(), weights.double())
        ),
    )
    residual = torch.randn(3, 1100, generator=GENERATOR).half()
    same = torch.equal(router.add(results, weights, torch.float16, residual),
                       residual + router.add(results, weights, torch.float16))  # fmt: skip
    yield "same: sum behind a residual", 0.0 if same else 1.0
    yield "other plain sum", error(router.add(results, None, torch.float32), results.double().sum(1))
    weighed = router.weigh(x, weights)
    same = torch.equal(weighed, (x[:, None] * weights[..., None]).half().flatten(0, 1))
    yield "same: weighed inputs", 0.0 if same else 1.0
    order = torch.tensor([3, 0, 11, 0x7FFFFFFF, 7, -9, 1 << 30, 2] * 2).int()  # what empty tiles have is anything
    taken = router.take(x, order, 12)[[0, 1, 2, 4, 7, 8]]
    yield "same: taken inputs", 0.0 if torch.equal(taken, x[torch.tensor([3, 0, 11, 7, 2, 3]) // 4]) else 1.0


if __name__ == "__main__":
    for case in (routers, sparse_routers, places, on_the_way, others, linears, wholes, sorted_ones):
        for result in case():
            print(json.dumps(result), flush=True)
