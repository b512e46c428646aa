"""Whole models: the CPU kernels beside the reference path, and the choice between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FEW, make_model, save, token_ids
from running import run

from isobit.bundled import model_path
from isobit.errors import CapacityError, IsobitError, Unsupported
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.workspace import Workspace
from isobit.models.archs import ARCHS
from isobit.models.config import LayerSpec, SelfAttention
from isobit.models.decoder import Decoder
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import GatedMlp
from isobit.models.ops import table as ops
from isobit.models.place import Place
from isobit.models.weights import load_model
from isobit.targets.table import target

LAYERS = (LayerSpec(SelfAttention(2, 2, 64), GatedMlp(64)),)
WIDE = (LayerSpec(SelfAttention(2, 2, 1024), GatedMlp(64)),)

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)


@torch.inference_mode()
def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Of a prefill, of single tokens behind it, and of a run without a cache."""
    cache = model.new_cache(len(ids), ids.shape[1])
    parts = [run(model, ids[:, :-3], cache)]
    parts += [run(model, ids[:, at : at + 1], cache) for at in range(ids.shape[1] - 3, ids.shape[1])]
    return torch.cat([*parts, run(model, ids)], 1)


def both(folder: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    native = load_model(folder)
    assert native.layer_ops.name == "cpu" and {linear.kernel.name for _, linear in native.linears()} == {"cpu"}
    mixtures = [layer.mlp for layer in native.layers if isinstance(layer.mlp, ExpertsMLP)]  # type: ignore[union-attr]
    assert {mlp.kernel.name for mlp in mixtures} <= {"cpu"}
    found = logits(native, ids)
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    plain = load_model(folder)
    assert plain.layer_ops.name == "reference"
    return found, logits(plain, ids)


@pytest.mark.parametrize("architecture", sorted(ARCHS))
def test_every_family_agrees_with_the_reference(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, wanted = both(save(make_model(architecture), tmp_path / "model"), token_ids(40), monkeypatch)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("stored", ["int8", "fp8"])
@pytest.mark.parametrize("architecture", ["GptOssForCausalLM", "Llama4ForCausalLM", "Olmo2ForCausalLM"])
def test_caches_of_codes_with_sinks_chunks_and_wide_norms(
    architecture: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that falls on the other side of a midpoint moves a code by one step; a wrong key moves everything."""
    folder, ids = save(make_model(architecture), tmp_path / "model"), token_ids(80)
    found = logits(load_model(folder, kv_cache=stored), ids)
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    wanted = logits(load_model(folder, kv_cache=stored), ids)
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3


def test_the_bundled_model_agrees_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = both(Path(model_path()), token_ids(70, batch=1), monkeypatch)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def test_the_choice_and_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.choose(torch.float32, Place(), LAYERS).name == "cpu"
    assert ops.choose(torch.bfloat16, Place(), LAYERS).name == "reference"
    imagined = Machine.imagined(target("sm_86"), 84, None)
    card = Place("cuda", machine=imagined, workspace=Workspace(torch.device("cpu")))
    assert ops.choose(torch.bfloat16, card, LAYERS).name == "triton"
    assert ops.choose(torch.bfloat16, card, WIDE).name == ops.choose(torch.float64, card, LAYERS).name == "reference"
    assert ops.choose(torch.float32, Place(), WIDE).name == "reference"
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    assert ops.choose(torch.float32, Place(), LAYERS).name == "reference"
    monkeypatch.setenv("ISOBIT_KERNEL", "cpu")
    with pytest.raises(Unsupported, match="bfloat16"):
        ops.choose(torch.bfloat16, Place(), LAYERS)


def test_hooks_still_see_every_linear(tmp_path: Path) -> None:
    model = load_model(save(make_model("LlamaForCausalLM"), tmp_path / "model"))
    seen = []
    for name, linear in model.linears():
        linear.register_forward_pre_hook(lambda module, inputs, name=name: seen.append(name))
    with torch.inference_mode():
        run(model, token_ids(5))
    assert sorted(seen) == sorted(name for name, _ in model.linears())


# Whose layers run one by one on the CPU kernels, and why.
BY_LAYER = {
    "CohereForCausalLM": "layer 0 norms queries and keys by weights of each head",
}
ONE_CALL = ("GptOssForCausalLM", "Glm4MoeForCausalLM", "Llama4ForCausalLM", "Olmo2ForCausalLM", "Qwen2MoeForCausalLM")


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=() if name in {*FEW, *ONE_CALL} else pytest.mark.slow, id=name) for name in ARCHS],
)
def test_one_call_for_all_layers_gives_the_same_bits(architecture: str, tmp_path: Path) -> None:
    model = load_model(save(make_model(architecture), tmp_path / "model"))
    if architecture in BY_LAYER:
        assert BY_LAYER[architecture] in str(model.why_by_layer)
        return
    assert model.why_by_layer is None
    ids, calls = token_ids(40), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    together = logits(model, ids)
    handle = model.layers[1].mlp.register_forward_hook(count)
    assert torch.equal(logits(model, ids), together)
    assert calls == 5  # a prefill, three tokens, and a run without a cache
    handle.remove()
    assert torch.equal(logits(model, ids), together) and calls == 5


def test_layers_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    model = load_model(save(make_model("LlamaForCausalLM"), tmp_path / "model"))
    layer = model.layers[1]
    layer.self_attn.k_proj, layer.mlp.down_proj = layer.mlp.down_proj, layer.self_attn.k_proj
    with pytest.raises(IsobitError, match="the linears of an attention do not fit its heads"):
        run(model, token_ids(5))


def test_a_full_cache_is_refused_before_anything_runs(tmp_path: Path) -> None:
    model = load_model(save(make_model("LlamaForCausalLM"), tmp_path / "model"))
    cache = model.new_cache(2, 4)
    with pytest.raises(CapacityError, match="room for 4 tokens, not for 5"):
        run(model, token_ids(5), cache)
    assert cache.lengths[0] == 0
