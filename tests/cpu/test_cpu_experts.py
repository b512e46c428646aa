"""Mixtures of experts on the CPU kernels: each instruction set against float64 from the same codes, in every format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from families import make_model, save
from test_batch_invariant import PARAMS, essence, prompts_for
from test_cpu_linear import QUANTIZED, expected, normal
from tokenizers_for_tests import byte_level, write_folder
from torch import Tensor

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import FormatError, IsobitError
from isobit.formats.rules import Policy
from isobit.formats.schemes import Scheme, scheme
from isobit.kernels import mixtures, reference_experts
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.experts import CpuMixture, CpuRouter
from isobit.kernels.grouped import Gating, Grouped, Mixture, Routes, Routing
from isobit.models.experts import ExpertsMLP
from isobit.models.place import Place
from isobit.models.stacking import stack
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)

EXPERTS, ACTIVE, HIDDEN, INNER, TOKENS = 5, 2, 128, 192, 9
PLAIN = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=cpu_library.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def row_of(name: str) -> Scheme:
    return scheme({"int3": "int3-g32"}.get(name, name))  # whose groups fit these shapes


def inner_of(row: Scheme) -> int:
    """Whole groups of what goes into down; else a number that blocks do not divide."""
    assert row.weights is not None
    return 256 if row.weights.group or row.weights.block else INNER


def read(row: Scheme, n: int, k: int, seed: int) -> LinearWeight:
    assert row.weights is not None
    weight = quantize_weight(normal(n, k, seed=seed) / k**0.5, row.weights, search="absmax", scale_dtype=torch.bfloat16)
    static = row.activations is not None and not row.activations.dynamic
    return LinearWeight(
        weight, row.activations, torch.tensor([0.02 + seed / 1000]) if static else None, normal(n, seed=seed)
    )


def role(row: Scheme, n: int, k: int, seed: int, count: int = EXPERTS) -> tuple[Grouped, list[LinearWeight]]:
    reads = [read(row, n, k, seed + i) for i in range(count)]
    return stack(reads, [str(i) for i in range(count)], Path("x"), Place()), reads


def routes(tokens: int, active: int = ACTIVE, experts: int = EXPERTS) -> Routes:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :active].contiguous()
    return Routes(ids.to(torch.int32), torch.rand(tokens, active, generator=generator))


def exact(row: Scheme, part: LinearWeight, x: Tensor) -> Tensor:
    assert part.bias is not None
    return expected(x, part.weight, row, part.input_scale) + part.bias.double()  # type: ignore[arg-type]


def close(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm() / wanted.norm()) < 5e-4


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_format_is_that_of_float64(name: str, isa: str) -> None:
    row = row_of(name)
    inner = inner_of(row)
    made = [
        role(row, *shape, seed) for shape, seed in (((inner, HIDDEN), 0), ((inner, HIDDEN), 20), ((HIDDEN, inner), 40))
    ]
    gate, up, down = (reads for _, reads in made)
    bound = mixtures.bind(Mixture(*(part for part, _ in made)), device="cpu", alike=True)
    assert bound.kernel.name == "cpu" and isinstance(bound.run, CpuMixture)
    x, where, shown = normal(TOKENS, HIDDEN), routes(TOKENS), []
    found = bound.run(x, where, shown.append)
    # What goes into down is shown expert by expert, tokens in their order.
    rows = torch.cat(shown)
    order = torch.argsort(where.ids.flatten(), stable=True).tolist()
    total = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
    for at, pair in enumerate(order):
        token, slot = divmod(pair, ACTIVE)
        expert = int(where.ids[token, slot])
        given = x[token : token + 1]
        wanted = F.silu(exact(row, gate[expert], given)) * exact(row, up[expert], given)
        assert close(rows[at : at + 1], wanted), "what goes into down"
        total[token] += where.weights[token, slot].double() * exact(row, down[expert], rows[at : at + 1])[0]
    assert close(found, total)
    for token in range(TOKENS):
        one = Routes(where.ids[token : token + 1], where.weights[token : token + 1])
        assert torch.equal(bound.run(x[token : token + 1], one), found[token : token + 1]), "alone"


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("kind", ["plain", "limit", "on-input", "gelu"])
def test_plain_weights_agree_with_the_reference(dtype: torch.dtype, kind: str) -> None:
    def plain(n: int, k: int, seed: int) -> Grouped:
        return Grouped(
            (normal(EXPERTS * n, k, seed=seed) / k**0.5).to(dtype), EXPERTS, n, n, normal(EXPERTS, n, seed=seed)
        )

    gating = Gating("gelu" if kind == "gelu" else "silu", 1.0 if kind == "limit" else None)
    mixture = Mixture(
        plain(INNER, HIDDEN, 1), plain(INNER, HIDDEN, 2), plain(HIDDEN, INNER, 3), gating, kind == "on-input"
    )
    native, law = CpuMixture(mixture, alike=False), reference_experts.bind(mixture)
    for tokens in (0, 1, 3, 70, 300):
        x, where = normal(tokens, HIDDEN), routes(tokens)
        wanted = law(x, where)
        torch.testing.assert_close(
            native(x, where), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max() if tokens else 1)
        )


ROUTINGS = {
    "softmax": Routing(normal(24, HIDDEN), 4),
    "softmax-kept": Routing(normal(24, HIDDEN), 4, bias=normal(24), renormalize=False),
    "softmax-behind": Routing(normal(24, HIDDEN), 4, scores="softmax-behind", bias=normal(24)),
    "sigmoid": Routing(normal(24, HIDDEN), 4, correction=normal(24) / 10, scores="sigmoid", scale=2.5),
    "groups": Routing(
        normal(24, HIDDEN), 4, correction=normal(24), scores="sigmoid", groups=4, active_groups=2, group_score="two"
    ),
    "best-groups": Routing(normal(24, HIDDEN), 4, groups=6, active_groups=3),
    "one": Routing(normal(1, HIDDEN), 1, scores="sigmoid", renormalize=False),
    "sparsemixer": Routing(normal(24, HIDDEN), 2, scores="sparsemixer", renormalize=False, tolerance=0.4),
    "sparsemixer-equal": Routing(torch.zeros(6, HIDDEN), 2, scores="sparsemixer", renormalize=False, tolerance=0.02),
    "sparsemixer-below": Routing(
        normal(24, HIDDEN) / 9, 3, bias=normal(24).abs() / 9 - 2, scores="sparsemixer", renormalize=False, tolerance=0.1
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROUTINGS)
def test_routers_agree_with_the_law(kind: str, isa: str) -> None:
    routing, x = ROUTINGS[kind], normal(50, HIDDEN) / 8
    found, wanted = CpuRouter(routing)(x), reference_experts.route(routing, x)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.weights, wanted.weights, rtol=1e-5, atol=0)
    alone = CpuRouter(routing)(x[7:8])
    assert torch.equal(alone.ids, found.ids[7:8]) and torch.equal(alone.weights, found.weights[7:8])


def test_equal_scores_go_to_the_lower_number() -> None:
    routing = Routing(torch.zeros(12, HIDDEN), 3, bias=torch.tensor([0.0] * 5 + [1.0] + [0.0] * 4 + [1.0, 0.0]))
    found = CpuRouter(routing)(normal(2, HIDDEN))
    assert found.ids.tolist() == [[5, 10, 0]] * 2 == reference_experts.route(routing, normal(2, HIDDEN)).ids.tolist()


@pytest.mark.parametrize(("experts", "k"), [(3, 1), (5, 256), (6, 96), (7, 33), (33, 100), (128, 512)])
def test_experts_whose_routers_have_equal_rows_tie_wherever_these_stand(experts: int, k: int, isa: str) -> None:
    """Also where the last rows are computed by themselves: by another order of sums these would differ in a bit."""
    weight, active = normal(experts, k, seed=1), min(experts, 4)
    alike = sorted({0, 1, experts // 2, experts - 1})
    weight[alike] = weight[0].clone()
    route = CpuRouter(Routing(weight, active))
    for tokens in (1, 2, 65):
        for ids in route(normal(tokens, k, seed=tokens)).ids.tolist():
            chosen = [expert for expert in ids if expert in alike]
            assert chosen == alike[: len(chosen)]


def test_what_does_not_fit_is_refused() -> None:
    row = scheme("int8")
    parts = [role(row, *shape, 0)[0] for shape in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))]
    native, x, where = CpuMixture(Mixture(*parts), alike=False), normal(3, HIDDEN), routes(3)
    for beyond in (-1, EXPERTS):
        wrong = where.ids.clone()
        wrong[1, 1] = beyond
        with pytest.raises(IsobitError, match="an expert that is not there"):
            native(x, replace(where, ids=wrong))
    for bad in (x[:, 1:], normal(2, HIDDEN), torch.empty(3, HIDDEN, device="meta")):
        with pytest.raises(FormatError, match="input of experts"):
            native(bad, where)
    with pytest.raises(FormatError, match="experts of tokens"):
        native(x, replace(where, ids=where.ids.long()))
    with pytest.raises(FormatError, match="weights of experts"):
        native(x, replace(where, weights=where.weights[:, :1]))
    with pytest.raises(IsobitError, match="different numbers of experts"):
        CpuMixture(Mixture(parts[0], role(row, INNER, HIDDEN, 0, 4)[0], parts[2]), alike=False)(x, where)


@pytest.mark.parametrize("name", ["int4"])
def test_a_request_is_the_same_whatever_is_beside_it(name: str, tmp_path: Path) -> None:
    """Experts included, in batch-invariant mode."""
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    made = make_model("Qwen3MoeForCausalLM", **sizes, max_position_embeddings=1024)
    quantize(save(made, tmp_path / "source"), tmp_path / name, Policy(scheme(name)), progress=False)
    model = load_model(tmp_path / name, batch_invariant=True)
    experts = [layer.mlp for layer in model.layers if isinstance(layer.mlp, ExpertsMLP)]
    assert model.why_by_layer is None and experts and {mlp.kernel.name for mlp in experts} == {"cpu"}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path / "tokenizer", byte_level()))
    prompts, params = prompts_for(model.config.vocab_size), replace(PARAMS, max_tokens=3)
    alone = [essence(LLM(model, tokenizer, prefix_cache=False).generate([ids], params)[0]) for ids in prompts]
    assert list(map(essence, LLM(model, tokenizer).generate(prompts, params))) == alone
    assert list(map(essence, LLM(model, tokenizer, sequences=3, chunk=7).generate(prompts, params))) == alone
