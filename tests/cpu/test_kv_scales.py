"""Scales of FP8 key-value caches: every spelling loads, changes nothing, is kept for the cache, and is told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, quantize_tiny, tiny_model
from running import run
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.checkpoint.kvscales import NOTE, kv_names
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.evaluation.info import describe
from isobit.evaluation.measure import bytes_per_token
from isobit.formats.schemes import scheme
from isobit.models.planning import plans
from isobit.models.weights import load_model

IDS = torch.arange(12)[None]
LAYERS, HEADS = CONFIG["num_hidden_layers"], CONFIG["num_key_value_heads"]
SPELLINGS = {
    "compressed-tensors": ("k_scale", "v_scale"),
    "vLLM": ("attn.k_scale", "attn.v_scale"),
    "ModelOpt": ("k_proj.k_scale", "v_proj.v_scale"),
    "fused": ("qkv_proj.k_scale", "qkv_proj.v_scale"),
    "Quark": ("k_proj.output_scale", "v_proj.output_scale"),
    "AutoFP8": ("kv_scale",),
    "AutoFP8 in vLLM": ("attn.kv_scale",),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kv")
    tiny_model().save_pretrained(root / "plain")
    quantize_tiny(root / "plain", root / "fp8", dict.fromkeys(linears(), scheme("fp8")) | {"lm_head": None})
    return root / "fp8"


def changed(source: Path, target: Path, scales: dict[str, Tensor], kind: str = "safetensors", **section: Any) -> Path:
    tensors, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    target.mkdir()
    config["quantization_config"] |= section
    (target / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(tensors | scales, target / "pytorch_model.bin")
    else:
        save_file(tensors | scales, target / "model.safetensors", {"format": "pt"})
    return target


def of_layers(names: tuple[str, ...], *values: Tensor) -> dict[str, Tensor]:
    return {
        f"model.layers.{i}.self_attn.{name}": value * (i + 1)
        for i in range(LAYERS)
        for name, value in zip(names, values, strict=True)
    }


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@torch.inference_mode()
def test_every_spelling(source: Path, tmp_path: Path, spelling: str, kind: str) -> None:
    names = SPELLINGS[spelling]
    shape = {"vLLM": (1,), "ModelOpt": (), "Quark": (1, 1)}.get(spelling, (1,))
    values = [torch.full(shape, 0.25 * (i + 1), dtype=torch.bfloat16 if spelling == "fused" else torch.float32)
              for i in range(len(names))]  # fmt: skip
    scheme_of_cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    section = {"kv_cache_scheme": scheme_of_cache} if spelling == "compressed-tensors" else {}
    folder = changed(source, tmp_path / "model", of_layers(names, *values), kind, **section)
    model = load_model(folder)
    assert torch.equal(run(model, IDS), run(load_model(source), IDS))
    for i, layer in enumerate(model.layers):
        held = layer.self_attn.kv_scales
        assert held.keys.tolist() == [0.25 * (i + 1)] and held.queries is None
        assert held.values.tolist() == [(0.25 if len(names) == 1 else 0.5) * (i + 1)]
    # Every command tells, and counts neither weights nor bytes of them.
    assert NOTE in model.notes and NOTE in describe(folder).notes
    work = plans(folder, targets=["sm_90"])[0]
    assert NOTE in work.notes
    assert describe(folder).parameters == describe(source).parameters
    assert bytes_per_token(Checkpoint.open(folder)) == bytes_per_token(Checkpoint.open(source))


def test_one_scale_a_head_and_zero_points_of_zero(source: Path, tmp_path: Path) -> None:
    scales = of_layers(("k_scale", "v_scale"), torch.rand(HEADS, 1, 1) + 0.1, torch.rand(HEADS) + 0.1)
    zeros = of_layers(("k_zero_point", "v_zero_point"), torch.zeros(HEADS, 1, 1, dtype=torch.int8), torch.zeros(1))
    queries = {"model.layers.1.self_attn.q_scale": torch.tensor([2.0])}
    folder = changed(source, tmp_path / "model", scales | zeros | queries)
    held = load_model(folder).layers[1].self_attn.kv_scales
    assert torch.equal(held.keys, scales["model.layers.1.self_attn.k_scale"].reshape(-1))
    assert held.queries.tolist() == [2.0] and held.values.shape == (HEADS,)


def test_a_checkpoint_may_have_some_of_them(source: Path, tmp_path: Path) -> None:
    folder = changed(source, tmp_path / "model", {"model.layers.1.self_attn.k_scale": torch.ones(1)})
    first, second = (layer.self_attn.kv_scales for layer in load_model(folder).layers)
    assert first.keys is first.values is second.values is None and second.keys.tolist() == [1.0]


WRONG: dict[str, tuple[str, Tensor, str]] = {
    "zero": ("k_scale", torch.zeros(1), "no positive finite"),
    "negative": ("v_scale", torch.tensor([-1.0]), "no positive finite"),
    "NaN": ("k_proj.k_scale", torch.tensor(float("nan")), "no positive finite"),
    "infinite": ("kv_scale", torch.tensor([float("inf")]), "no positive finite"),
    "integer": ("k_scale", torch.ones(1, dtype=torch.int32), r"is I32 \[1\]"),
    "complex": ("k_scale", torch.ones(1, dtype=torch.complex64), "is C64"),
    "three for two heads": ("v_scale", torch.ones(3), r"F32 \[3\]; .* each of 2 heads"),
    "none": ("v_scale", torch.ones(0), r"F32 \[0\]"),
    "asymmetric": ("k_zero_point", torch.ones(1, dtype=torch.int8), "is not zero"),
    "another layer": ("../../7.self_attn.k_scale", torch.ones(1), "surplus"),
    "another projection": ("k_proj.v_scale", torch.ones(1), "surplus"),
    "outputs of o_proj": ("o_proj.output_scale", torch.ones(1), "surplus"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_scale_of_a_cache_is_refused_by_name(source: Path, tmp_path: Path, case: str) -> None:
    name, value, why = WRONG[case]
    tensor = f"model.layers.0.self_attn.{name}".replace("0.self_attn.../../", "")
    with pytest.raises(CheckpointError, match=f"{tensor}.*{why}"):
        load_model(changed(source, tmp_path / "model", {tensor: value}))


def test_two_spellings_agree_or_are_refused(source: Path, tmp_path: Path) -> None:
    two = {f"model.layers.0.self_attn.{name}": torch.ones(1) for name in ("k_scale", "attn.k_scale", "kv_scale")}
    load_model(changed(source, tmp_path / "same", two))
    two["model.layers.0.self_attn.kv_scale"] = torch.tensor([2.0])
    with pytest.raises(CheckpointError, match="another scale for the same"):
        load_model(changed(source, tmp_path / "other", two))


def test_names() -> None:
    found = kv_names([f"model.layers.0.self_attn.{name}" for names in SPELLINGS.values() for name in names], 1)
    assert len(found) == sum(map(len, SPELLINGS.values()))
    assert (
        kv_names(["model.layers.0.self_attn.k_proj.weight_scale", "model.layers.0.self_attn.k_scale2", "k_scale"], 1)
        == ()
    )
    assert kv_names(["model.layers.1.self_attn.k_scale"], 1) == ()
