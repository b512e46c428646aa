"""What `isobit quantize` says transformers makes of a mixture's experts, beside what transformers makes of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import make_model, save

from isobit import api
from isobit.checkpoint.engines import DIFFERS, ENGINES, GARBAGE, LOADS, REFUSES, SOME, answers
from isobit.formats.schemes import SCHEMES, scheme

SAYS = {LOADS: " loads this checkpoint", DIFFERS: " loads it, but ", GARBAGE: " loads it and can compute garbage: ",
        REFUSES: " refuses it: ", SOME: ": it reads all experts as "}  # fmt: skip
QWEN, DEEPSEEK, PHI = "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "PhimoeForCausalLM"
ROUTED, DOWN = r"\.experts\.\d+\.", r"\.experts\.\d+\.down"
NEAR, FAR = 0.3, 0.5  # of the size of weights: what 2 bits lose of them is less, what is read wrongly is farther off
CASES = [
    (QWEN, "int4", (), LOADS, "float32"),
    (QWEN, "int3", (), LOADS, "float32"),
    (QWEN, "int8-w8a16", (), LOADS, "float32"),
    (QWEN, "w4a8", (), DIFFERS, "float32"),
    (QWEN, "int4-g64", ((DOWN, "int4-g32"),), REFUSES, "float32"),
    (QWEN, "w4a8-g64", ((DOWN, "w4a8-g32"),), REFUSES, "float32"),
    (QWEN, "int4-g32", ((DOWN, "int4-g128"),), LOADS, "float32"),  # a row of 128 is one group
    (QWEN, "int4", ((ROUTED, "keep"),), REFUSES, "float32"),
    (QWEN, "fp8", ((ROUTED, "keep"),), LOADS, "float32"),
    (QWEN, "int4-g32", ((DOWN, "keep"),), GARBAGE, "float32"),
    (QWEN, "int4-g32", ((DOWN, "fp8"),), GARBAGE, "float32"),
    (QWEN, "fp8", ((DOWN, "int4-g32"),), REFUSES, "float32"),
    (QWEN, "int4-g32", ((DOWN, "int8-w8a16-g32"),), SOME, "float32"),
    (QWEN, "fp8-block", (), REFUSES, "float32"),
    (QWEN, "mxfp4-w16", (), LOADS, "bfloat16"),
    (QWEN, "nvfp4-w16", (), GARBAGE, "bfloat16"),
    (DEEPSEEK, "fp8", ((ROUTED, "int4-g32"),), LOADS, "float32"),  # shared experts have another scheme
    (DEEPSEEK, "int4-g32", ((ROUTED, "keep"),), REFUSES, "float32"),
    (PHI, "fp8", (), DIFFERS, "float32"),
    (PHI, "int4-g32", (), LOADS, "float32"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Architecture -> its weights and their folder."""

    @cache
    def made(architecture: str) -> tuple[dict[str, torch.Tensor], Path]:
        model = make_model(architecture)
        folder = save(model, tmp_path_factory.mktemp(architecture))
        return model.state_dict(), folder

    return made


def loaded(folder: Path, dtype: str) -> dict[str, torch.Tensor] | None:
    """Weights by transformers; None where it refuses."""
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]))  # linears are unpacked by the first forward
    except (RuntimeError, ValueError, AttributeError):
        return None
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


@pytest.mark.parametrize(("architecture", "name", "rules", "verdict", "dtype"), CASES)
def test_experts_are_spoken_of_as_they_load(
    models: Any, tmp_path: Path, architecture: str, name: str, rules: Any, verdict: str, dtype: str
) -> None:
    weights, source = models(architecture)
    said = api.quantize(source, tmp_path / "out", name, rules=rules, progress=False).notes
    (note,) = (note for note in said if note.startswith(ENGINES["transformers"]))
    assert note.startswith(f"{ENGINES['transformers']}{SAYS[verdict]}"), note
    found = loaded(tmp_path / "out", dtype)
    assert (found is None) == (verdict == REFUSES)
    if found is None:
        return
    far = {
        key: float((found[key].float() - value).norm() / value.norm())
        for key, value in weights.items()
        if key.endswith(("gate_up_proj", "experts.down_proj", "router.weight"))
    }
    assert far, "a mixture"
    if verdict in (LOADS, DIFFERS):
        assert max(far.values()) < NEAR, far
    else:
        assert max(far.values()) > FAR, far


def test_routers_are_ignored_by_both_of_their_names(models: Any, tmp_path: Path) -> None:
    """Phi-3.5-MoE's router is a linear of another name in transformers: ``Linear`` would mean it, too."""
    api.quantize(models(PHI)[1], tmp_path / "out", "fp8", progress=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out").quantization_config
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert r"re:model\.layers\.\d+\.block_sparse_moe\.gate$" in config["ignore"]
    assert r"re:model\.layers\.\d+\.mlp\.router$" in config["ignore"]


EXPERTS = [f"model.layers.1.mlp.experts.{number}.{part}_proj" for number in (0, 1) for part in ("down", "gate", "up")]


@pytest.mark.parametrize("name", [name for name, row in SCHEMES.items() if row.weights is not None])
def test_every_scheme_has_an_answer(name: str) -> None:
    for family in ("qwen3_moe", "llama4", "gpt_oss"):
        (there, _) = answers(dict.fromkeys(EXPERTS, scheme(name)), family)
        assert there.verdict in SAYS and there.verdict != SOME
        kept = dict.fromkeys(EXPERTS) | {"model.layers.0.self_attn.q_proj": scheme(name)}
        (there, _) = answers(kept, family)
        refused = next(iter(answers({"model.layers.0.self_attn.q_proj": scheme(name)}))).verdict
        fine = refused == LOADS and (family == "gpt_oss" or (family != "llama4" and "fp8" in name))
        assert (there.verdict == LOADS) == fine, str(there)


def test_without_shapes_other_groups_are_refused() -> None:
    mixed = {module: scheme("int4-g32" if "down" in module else "int4-g64") for module in EXPERTS}
    (there, vllm) = answers(mixed, "qwen3_moe")
    assert there.verdict == REFUSES and "groups of int4-g32, and int4-g64 has others" in str(there)
    assert vllm.verdict == SOME and "were not run there" in str(vllm)
    one = {module: (128, 64) for module in EXPERTS}
    assert answers(mixed, "qwen3_moe", shapes=one)[0].verdict == LOADS
