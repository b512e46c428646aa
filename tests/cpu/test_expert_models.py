"""Mixtures of experts: who is chosen, what is computed, how they are stored, quantized and read again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import make_model, save, token_ids
from running import run
from safetensors.torch import load_file, save_file
from tiny import save_tokenizer
from torch import Tensor
from transformers.models.phimoe.modeling_phimoe import sparsemixer

import isobit
from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, ModelError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy, parse_rule
from isobit.formats.schemes import SCHEMES, scheme
from isobit.kernels import mixtures
from isobit.kernels.grouped import Gating, Grouped, Mixture, Routes, Routing
from isobit.kernels.reference_experts import route
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.contents import contents
from isobit.models.experts import ExpertsMLP
from isobit.models.hf_experts import EXPERT_KEYS
from isobit.models.place import Place
from isobit.models.stacking import stack
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight

EXPERTS, HIDDEN, INNER = 5, 256, 128


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


# ---------------------------------------------------------------------- who is chosen


def routing(logits: Tensor, active: int, **changes: object) -> Routes:
    """The routes of tokens whose router gives these logits."""
    return route(Routing(logits.T.contiguous(), active, **changes), torch.eye(len(logits)))  # type: ignore[arg-type]


def test_of_equal_scores_the_expert_with_the_lower_number_is_chosen() -> None:
    found = routing(torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0], [2.0] * 6, [0.0, 0.0, 0.0, 0.0, 0.0, 9.0]]), 3)
    assert found.ids.tolist() == [[1, 3, 4], [0, 1, 2], [5, 0, 1]] and found.ids.dtype == torch.int32
    assert torch.allclose(found.weights[:2], torch.full((2, 3), 1 / 3)) and found.weights.dtype == torch.float32


def test_ties_behind_a_correction_and_among_groups() -> None:
    logits = torch.zeros(1, 8)
    correction = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5])
    found = routing(logits, 2, scores="sigmoid", correction=correction)
    assert found.ids.tolist() == [[1, 3]] and found.weights.tolist() == [[0.5, 0.5]]  # the correction is no weight
    grouped = routing(
        logits, 3, scores="sigmoid", correction=correction, groups=4, active_groups=2, group_score="two", scale=2.0
    )
    assert grouped.ids.tolist() == [[1, 3, 0]]  # groups 0 and 1 are as good as 2 and 3
    assert torch.allclose(grouped.weights, torch.full((1, 3), 2 / 3))


def test_a_group_that_takes_no_part_has_none_of_the_chosen_whatever_it_scores() -> None:
    logits = torch.tensor([[9.0, -9.0, 3.0, 3.0, 1.0, 1.0]])
    best = routing(logits, 2, scores="sigmoid", groups=3, active_groups=1, group_score="max")
    assert best.ids.tolist() == [[0, 1]]
    two = routing(logits, 2, scores="sigmoid", groups=3, active_groups=1, group_score="two")
    assert two.ids.tolist() == [[2, 3]]


def test_weights_of_every_kind_are_what_their_names_say() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    whole = torch.softmax(logits[0], 0)
    plain = routing(logits, 2, renormalize=False)
    assert plain.ids.tolist() == [[1, 2]] and torch.allclose(plain.weights[0], whole[[1, 2]])
    chosen = routing(logits, 2, scores="softmax-behind", renormalize=False)
    assert torch.allclose(chosen.weights[0], torch.softmax(torch.tensor([3.0, 2.0]), 0))
    sigmoid = routing(logits, 2, scores="sigmoid", renormalize=False, scale=1.5)
    assert torch.allclose(sigmoid.weights[0], 1.5 * torch.sigmoid(torch.tensor([3.0, 2.0])))
    nothing = routing(torch.full((1, 4), -200.0), 2, scores="sigmoid")
    assert nothing.weights.tolist() == [[0.0, 0.0]]  # and no 0 / 0


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_sparsemixer_is_that_of_transformers(noise: float) -> None:
    logits = random(200, 16) * torch.linspace(0.1, 8, 200)[:, None]
    logits[50:100] -= 3  # below zero, where the size of the other logit counts
    logits[100:130] = (2 * logits[100:130]).round() / 2  # with ties
    logits[130], logits[131], logits[132, 3:9] = 0.0, -1.5, 0.0
    weights, ids = sparsemixer(logits, noise, training=False)
    found = routing(logits, 2, scores="sparsemixer", renormalize=False, tolerance=2 * noise)
    assert torch.equal(found.ids.long(), ids) and torch.allclose(found.weights, weights, rtol=1e-6, atol=0)
    assert (found.weights.sum(-1) > 1.5).any()  # weights of a token need not make one


# ---------------------------------------------------------------------- what is computed


def matrices(name: str | None, rows: int, columns: int, seed: int) -> tuple[Grouped, list[Tensor]]:
    """Experts of one role in a scheme, and what each computes with."""
    plain = [random(rows, columns, seed=seed + number) for number in range(EXPERTS)]
    row = None if name is None else scheme(name)
    reads, values = [], []
    for weight in plain:
        if row is None:
            reads.append(LinearWeight(weight))
            values.append(weight)
            continue
        assert row.weights is not None
        made = quantize_weight(weight, row.weights, search="absmax", scale_dtype=torch.float32)
        static = row.activations is not None and not row.activations.dynamic
        reads.append(LinearWeight(made, row.activations, torch.tensor([0.02]) if static else None))
        values.append(made.dequantize())
    names = [f"experts.{number}" for number in range(EXPERTS)]
    return stack(iter(reads), names, Path("x"), Place()), values


def oracle(x: Tensor, routes: Routes, gate: list[Tensor], up: list[Tensor], down: list[Tensor]) -> Tensor:
    result = torch.zeros(x.shape, dtype=torch.float64)
    for token, (ids, weights) in enumerate(zip(routes.ids.tolist(), routes.weights.tolist(), strict=True)):
        given = x[token].double()
        for expert, weight in zip(ids, weights, strict=True):
            inner = F.silu(gate[expert].double() @ given) * (up[expert].double() @ given)
            result[token] += weight * (down[expert].double() @ inner)
    return result


ROUTES = {
    "some": [[0, 3], [3, 1], [4, 0], [1, 0]],
    "all to one": [[2, 0]] * 7,
    "one token": [[4, 1]],
    "each alone": [[0], [1], [2], [3], [4]],
}


@pytest.mark.parametrize("name", [None, "int8-w8a16", "int4-g16", "fp8-block", "int8", "fp8-static"])
@pytest.mark.parametrize("which", ROUTES)
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_the_weighted_sum_of_the_experts_of_each_token(
    monkeypatch: pytest.MonkeyPatch, kernel: str, which: str, name: str | None
) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    ids = torch.tensor(ROUTES[which], dtype=torch.int32)
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1))
    (gate, gates), (up, ups), (down, downs) = (
        matrices(name, rows, columns, seed)
        for rows, columns, seed in ((INNER, HIDDEN, 10), (INNER, HIDDEN, 20), (HIDDEN, INNER, 30))
    )
    x = random(len(ids), HIDDEN, seed=5)
    routes = Routes(ids, weights)
    bound = mixtures.bind(Mixture(gate, up, down), device="cpu")
    assert bound.kernel.name == kernel
    found, wanted = bound.run(x, routes), oracle(x, routes, gates, ups, downs)
    error = float((found - wanted).norm() / wanted.norm())
    assert error <= (1e-5 if gate.activations is None else 0.1)
    assert (error > 1e-5) == (gate.activations is not None)
    assert torch.equal(bound.run(x[:0], Routes(ids[:0], weights[:0])), x[:0])
    # A token alone is what it is among others: the law has one order of the sum.
    alone = torch.cat([bound.run(x[i : i + 1], Routes(ids[i : i + 1], weights[i : i + 1])) for i in range(len(ids))])
    assert torch.allclose(found, alone, atol=1e-6)


def test_weights_on_the_input_are_no_weights_of_the_result() -> None:
    (gate, gates), (up, ups), (down, downs) = (matrices(None, *sizes) for sizes in (
        (INNER, HIDDEN, 10), (INNER, HIDDEN, 20), (HIDDEN, INNER, 30)))  # fmt: skip
    x, ids = random(2, HIDDEN, seed=5), torch.tensor([[1], [4]], dtype=torch.int32)
    routes = Routes(ids, torch.tensor([[0.5], [0.25]]))
    found = mixtures.bind(Mixture(gate, up, down, on_input=True), device="cpu").run(x, routes)
    ones = Routes(ids, torch.ones(2, 1))
    assert torch.allclose(found.double(), oracle(x * routes.weights, ones, gates, ups, downs), atol=1e-6)


def test_the_clamped_gate_is_gpt_oss_s() -> None:
    (gate, gates), (up, ups), (down, downs) = (matrices(None, *sizes) for sizes in (
        (INNER, HIDDEN, 10), (INNER, HIDDEN, 20), (HIDDEN, INNER, 30)))  # fmt: skip
    x = 4 * random(1, HIDDEN, seed=5)
    mixture = Mixture(gate, up, down, Gating(limit=0.3))
    found = mixtures.bind(mixture, device="cpu").run(
        x, Routes(torch.tensor([[2]], dtype=torch.int32), torch.ones(1, 1))
    )
    first, second = (gates[2] @ x[0]).clamp(max=0.3), (ups[2] @ x[0]).clamp(-0.3, 0.3)
    wanted = downs[2] @ ((second + 1) * first * torch.sigmoid(1.702 * first))
    assert torch.allclose(found[0], wanted, atol=1e-6) and float((gates[2] @ x[0]).max()) > 0.3


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_blocks_that_rows_of_an_expert_do_not_fill_are_its_own(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """As other tools write them: 160 rows are two blocks of 128, and the next expert begins with another."""
    spec = scheme("fp8-block").weights
    assert spec is not None
    sizes = {"gate": (160, 72), "up": (160, 72), "down": (72, 160)}
    parts, values = {}, {}
    for seed, (role, (rows, columns)) in enumerate(sizes.items()):
        codes = [random(rows, columns, seed=seed + 10 * n).to(torch.float8_e4m3fn).view(torch.uint8) for n in range(3)]
        scales = [0.5 + torch.rand(-(-rows // 128), -(-columns // 128)) for _ in codes]
        made = [QTensor(spec, (rows, columns), *both) for both in zip(codes, scales, strict=True)]
        values[role] = [one.dequantize() for one in made]
        parts[role] = stack((LinearWeight(one) for one in made), ["0", "1", "2"], Path("x"), Place())
    assert [part.stride for part in parts.values()] == [256, 256, 128]
    for role, part in parts.items():
        assert all(torch.equal(part.expert(n).dequantize(), values[role][n]) for n in range(3))
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    x, ids = random(4, 72, seed=9), torch.tensor([[0, 2], [1, 0], [2, 1], [2, 0]], dtype=torch.int32)
    routes = Routes(ids, torch.rand(4, 2))
    bound = mixtures.bind(Mixture(**parts), device="cpu")
    found, wanted = bound.run(x, routes), oracle(x, routes, values["gate"], values["up"], values["down"])
    assert bound.kernel.name == kernel and float((found - wanted).norm() / wanted.norm()) <= 1e-5


def test_experts_of_different_formats_are_refused_by_name() -> None:
    one = LinearWeight(random(8, 32))
    row = scheme("int8").weights
    assert row is not None
    other = LinearWeight(quantize_weight(random(8, 32), row, search="absmax", scale_dtype=torch.float32))
    with pytest.raises(CheckpointError, match=r"experts\.1 has another format than experts\.0"):
        stack(iter((one, other)), ["experts.0", "experts.1"], Path("x"), Place())


def test_what_depends_on_the_batch_is_refused_where_it_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    parts = [matrices(None, *sizes)[0] for sizes in ((INNER, HIDDEN, 1), (INNER, HIDDEN, 2), (HIDDEN, INNER, 3))]
    with pytest.raises(Unsupported, match="how many tokens come at once"):
        mixtures.bind(Mixture(*parts), device="cpu", alike=True)


# ---------------------------------------------------------------------- how they are stored


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "GptOssForCausalLM", "MiniMaxM2ForCausalLM",
                                          "GraniteMoeForCausalLM", "Ernie4_5_MoeForCausalLM"])  # fmt: skip
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@torch.inference_mode()
def test_what_transformers_holds_is_read_as_what_it_saves(architecture: str, kind: str, tmp_path: Path) -> None:
    """The names and stacked tensors of ``state_dict()``, which torch.save and older tools write."""
    model = make_model(architecture)
    folder = save(model, tmp_path / "saved")
    held = tmp_path / "held"
    held.mkdir()
    (held / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    if kind == "bin":
        torch.save(state, held / "pytorch_model.bin")
    else:
        save_file(state, held / "model.safetensors")
    ids = token_ids(12)
    assert torch.equal(run(load_model(held), ids), run(load_model(folder), ids))


@pytest.mark.parametrize("place", ["mlp.experts", "block_sparse_moe.experts"])
@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "GraniteMoeForCausalLM", "MiniMaxM2ForCausalLM"])
def test_linears_of_experts_may_have_their_usual_names(architecture: str, place: str, tmp_path: Path) -> None:
    """As llm-compressor 0.14 writes them, one by one."""
    model = make_model(architecture)
    folder = save(model, tmp_path / "saved")
    found = contents(Checkpoint.open(folder))
    usual = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    tensors = {}
    for name in found.expected:
        inside = name.partition(".block_sparse_moe.experts.")
        number, _, rest = inside[2].partition(".")
        linear = rest.removesuffix(".weight")
        new = f"{inside[0]}.{place}.{number}.{usual[linear]}.weight" if inside[1] else name
        tensors[new] = found.ck.read(name).clone()
    assert sum(".gate_proj." in name for name in tensors) > 4
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, other / "model.safetensors")
    ids = token_ids(12)
    assert torch.equal(run(load_model(other), ids), run(load_model(folder), ids))


def test_a_stack_of_another_size_is_named(tmp_path: Path) -> None:
    folder = save(make_model("GptOssForCausalLM"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    save_file(tensors | {name: tensors[name][:4].contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"experts\.gate_up_proj'.*\[4, 256, 256\].*\[5, 256, 256\]"):
        load_model(folder)


# ---------------------------------------------------------------------- quantized


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(make_model("Qwen3MoeForCausalLM"), tmp_path_factory.mktemp("source"), torch.bfloat16)
    save_tokenizer(folder)
    return folder


THIN = ("int4", "fp8-static", "fp8-block")
WALK = [pytest.param(name, marks=[] if name in THIN else pytest.mark.slow) for name, row in SCHEMES.items()
        if row.weights is not None and row.weights.group != 40]  # fmt: skip


@pytest.mark.parametrize("name", WALK)
@torch.inference_mode()
def test_every_scheme_quantizes_and_runs_and_transformers_has_the_same_weights(
    source: Path, name: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    quantize(source, out, Policy(scheme(name)), progress=False)
    stored = Checkpoint.open(out)
    config = json.loads((out / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    assert any("gate" in one for one in ignored) and not [one for one in ignored if "experts" in one]
    ids = token_ids(24)
    found, wanted = run(load_model(out), ids), run(load_model(source), ids)
    assert float((found - wanted).norm() / wanted.norm()) < (0.25 if "8" in name and "4" not in name else 1.0)
    if name not in ("int4", "fp8"):
        return
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.bfloat16, quantization_config=transformers.CompressedTensorsConfig(dequantize=True)
    )
    layer = theirs.model.layers[1].mlp.experts
    for expert in range(6):
        gate, up, down = (
            read_linear(stored, f"model.layers.1.mlp.experts.{expert}.{part}_proj").weight
            for part in ("gate", "up", "down")
        )
        both = torch.cat([gate.dequantize(), up.dequantize()])
        assert torch.equal(layer.gate_up_proj[expert], both.bfloat16())
        assert torch.equal(layer.down_proj[expert], down.dequantize().bfloat16())


def test_experts_of_a_layer_share_their_static_scales_also_those_without_a_token(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", Policy(scheme("fp8-static")), progress=False)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for layer in (1, 2):
        found = {
            part: {float(tensors[f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.input_scale"])
                   for number in range(6)}
            for part in ("gate", "up", "down")
        }  # fmt: skip
        assert all(len(scales) == 1 and min(scales) > 1e-6 for scales in found.values())
        assert found["gate"] == found["up"] != found["down"]


def test_rules_reach_experts_and_leave_routers_alone(source: Path, tmp_path: Path) -> None:
    policy = Policy(scheme("int8"), (parse_rule(r"\.experts\.=int4"), parse_rule("self_attn=keep")))
    quantize(source, tmp_path / "out", policy, progress=False)
    names = {name.removeprefix("model.layers.1.") for name in Checkpoint.open(tmp_path / "out").tensors}
    assert "mlp.experts.5.up_proj.weight_packed" in names and "self_attn.q_proj.weight" in names
    assert "mlp.gate.weight" in names and "mlp.gate.weight_scale" not in names
    run(load_model(tmp_path / "out"), token_ids(5))


def test_stacked_experts_that_nobody_quantizes_stay_stacked(tmp_path: Path) -> None:
    folder = save(make_model("GptOssForCausalLM"), tmp_path / "source", torch.bfloat16)
    quantize(folder, tmp_path / "cast", Policy(scheme("f16")), progress=False)
    quantize(folder, tmp_path / "kept", Policy(scheme("int8"), (parse_rule("experts=keep"),)), progress=False)
    quantize(folder, tmp_path / "coded", Policy(scheme("int8")), progress=False)
    for name, stacked in (("cast", True), ("kept", True), ("coded", False)):
        tensors = Checkpoint.open(tmp_path / name).tensors
        assert ("model.layers.0.mlp.experts.gate_up_proj" in tensors) == stacked
        assert ("model.layers.0.mlp.experts.3.up_proj.weight_scale" in tensors) != stacked
        assert contents(Checkpoint.open(tmp_path / name)).config.family == "gpt_oss"
        run(load_model(tmp_path / name), token_ids(5))
    source, cast = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "cast"))
    assert {name: tensor.half() for name, tensor in source.items()}.keys() == cast.keys()
    assert all(torch.equal(source[name].half(), cast[name]) for name in cast)


def test_static_scales_that_differ_round_each_expert_by_its_own() -> None:
    row = scheme("fp8-static")
    parts = {}
    for role, (rows, columns, seed) in {"gate": (16, 32, 1), "up": (16, 32, 2), "down": (32, 16, 3)}.items():
        assert row.weights is not None
        made = [quantize_weight(random(rows, columns, seed=seed + n), row.weights, search="absmax",
                                scale_dtype=torch.float32) for n in range(2)]  # fmt: skip
        reads = [LinearWeight(one, row.activations, torch.tensor([0.01 * (n + 1)])) for n, one in enumerate(made)]
        parts[role] = stack(iter(reads), ["0", "1"], Path("x"), Place())
    x, weights = random(1, 32), torch.ones(1, 1)
    whole = mixtures.bind(Mixture(**parts), device="cpu", keep_values=False)
    for expert in range(2):
        one = {role: replace(part, input_scale=part.input_scale[expert : expert + 1]) for role, part in parts.items()}
        ids = torch.tensor([[expert]], dtype=torch.int32)
        alone = mixtures.bind(Mixture(**one), device="cpu").run(x, Routes(ids, weights))
        assert torch.equal(whole.run(x, Routes(ids, weights)), alone)


def test_static_scales_that_differ_are_refused_on_gpus_by_plans_and_loading(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    quantize(source, folder, Policy(scheme("fp8-static")), progress=False)
    assert isobit.plan(str(folder), targets=["h200"])[1][0][0].action == "native"
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.4.down_proj"
    tensors[f"{name}.input_scale"] = tensors[f"{name}.input_scale"] * 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (gpu, cpu) = isobit.plan(str(folder), targets=["h200", "laptop"])[1]
    assert gpu[0].action == "refused" and cpu[0].action == "legalized"
    (said,) = gpu[0].reasons
    first, parts = name.replace("4", "0"), ("differ from expert to expert", "by one", "--device cpu", "isobit quantize")
    for part in (f"{first}.input_scale is", f"{name}.input_scale", *parts):
        assert part in said, said
    isobit.load(folder)  # the CPU rounds each by its own
    files = [f"{name.replace('4', str(number))}" for number in range(6)]
    reads = [LinearWeight(random(8, 8), None, torch.tensor([1.0 + (number == 4)])) for number in range(6)]
    stack(iter(reads), files, Path("x"), Place())
    with pytest.raises(Unsupported, match="input_scale is 1, .*4.down_proj.input_scale 2") as error:
        stack(iter(reads), files, Path("x"), Place("cuda"))
    assert error.value.instead and "--device cpu" in error.value.instead


def test_experts_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    folder = save(make_model("MixtralForCausalLM"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    single = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    assert single in tensors
    inner, hidden = tensors[single].shape
    count = sum(name.startswith("model.layers.0.block_sparse_moe.experts.") for name in tensors) // 3
    tensors["model.layers.0.block_sparse_moe.experts.gate_up_proj"] = torch.zeros(count, 2 * inner, hidden)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="is there by itself and as a part of .*gate_up_proj"):
        load_model(folder)


@pytest.mark.parametrize("architecture, part", [
    ("MixtralForCausalLM", "gate.weight"), ("Glm4MoeForCausalLM", "gate.e_score_correction_bias"),
    ("GptOssForCausalLM", "router.bias"),
])  # fmt: skip
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_experts_are_chosen_by_is_a_number(architecture: str, part: str, number: float, tmp_path: Path) -> None:
    folder = save(make_model(architecture), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = [name for name in tensors if name.endswith(part)][-1]
    tensors[name].view(-1)[-1] = number
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds NaN or infinite numbers") as found:
        load_model(folder)
    assert found.value.tensor == name


def test_a_router_of_no_tokens() -> None:
    routes = route(Routing(torch.randn(8, 4), 2, groups=4, active_groups=2), torch.empty(0, 4))
    assert routes.ids.shape == (0, 2)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("Glm4MoeForCausalLM", {"num_experts_per_tok": 6, "n_group": 4, "topk_group": 1}, "topk_group"),
        ("Qwen3MoeForCausalLM", {"num_experts": 65536}, "num_experts"),
        ("MixtralForCausalLM", {"num_local_experts": 4096, "num_hidden_layers": 500}, "experts in all layers"),
        ("Ernie4_5_MoeForCausalLM", {"use_bias": True}, "use_bias"),
        ("MixtralForCausalLM", {"num_hidden_layers": 10_000}, "num_hidden_layers"),
    ],
)
def test_counts_and_options_that_cannot_be_run(architecture: str, changes: dict[str, object], message: str) -> None:
    config = family(ARCHS[architecture]).tiny() | {"architectures": [architecture]} | changes
    with pytest.raises(ModelError, match=message):
        model_config(config)


# ---------------------------------------------------------------------- against transformers, where routing is extreme

MIXED = [
    name for name, file in ARCHS.items()
    if any(key in family(file).tiny() for key in EXPERT_KEYS)
]  # fmt: skip
OFTEN = ("DeepseekV3ForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM", "MixtralForCausalLM", "Qwen2MoeForCausalLM")


def in_pairs(model: Any, experts: int) -> None:
    """Makes every second expert the same as the one in front, for the router, too: all choices are between equals."""
    for name, part in [*model.named_parameters(), *model.named_buffers()]:
        if re.search(r"\.(experts|router|gate|moe_statics|input_linear|output_linear)\b|correction", name):
            for axis in (0, -1) if "correction" in name else (0,):
                if part.dim() and part.shape[axis] == experts:
                    part.data.copy_(part.data.index_select(axis, torch.arange(experts) // 2 * 2))


@pytest.mark.parametrize("architecture", [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in MIXED])  # fmt: skip
@torch.inference_mode()
def test_ties_and_one_choice_for_all_tokens_equal_transformers(architecture: str, tmp_path: Path) -> None:
    tiny = family(ARCHS[architecture]).tiny()
    key = next(name for name in EXPERT_KEYS if name in tiny)
    groups = {"n_group": 2, "topk_group": 1} if "n_group" in tiny else {}  # the two of a pair are in the same
    model = make_model(architecture, **{key: 8}, **groups)
    for case in ("ties", "all alike"):
        if case == "ties":
            in_pairs(model, 8)
        else:  # every token has the same choice
            table = model.get_input_embeddings().weight
            table.copy_(table[:1].expand_as(table).clone())
        ids, loaded = token_ids(40), load_model(save(model, tmp_path / case))
        for tokens in (ids, ids[:1, :1]):  # and a token alone
            assert (run(loaded, tokens) - model(tokens).logits).abs().max() <= 1e-4
        mixture = next(layer.mlp for layer in loaded.layers if isinstance(layer.mlp, ExpertsMLP))
        x = torch.randn(5, loaded.config.hidden_size) if case == "ties" else torch.ones(5, loaded.config.hidden_size)
        chosen = route(mixture.routing, x).ids.long()
        if case == "ties":  # of two equal ones the first is there whenever the second is
            both = [set(row) for row in chosen.tolist()]
            assert all(one - 1 in row for row in both for one in row if one % 2)
        else:
            assert len({tuple(row) for row in chosen.tolist()}) == 1
