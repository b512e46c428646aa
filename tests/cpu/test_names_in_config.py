"""A quantization config may call modules by the names that their tensors have in the file, and by a model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, quantize_tiny, save_tiny, write
from running import run
from safetensors.torch import load_file

from isobit.checkpoint.reader import Checkpoint
from isobit.evaluation.info import describe
from isobit.formats.schemes import Scheme, scheme
from isobit.models.contents import contents
from isobit.models.planning import described
from isobit.models.weights import load_model

IDS = torch.arange(20)[None]
ROUNDED, KEPT, PLAIN = "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"
PREFIXES = ("", "language_model.model.", "_orig_mod.model.")


def arguments(act: bool) -> dict[str, Any]:
    kind = {"type": "float", "num_bits": 8, "symmetric": True}
    found: dict[str, Any] = {"weights": kind | {"strategy": "channel", "dynamic": False}}
    return found | ({"input_activations": kind | {"strategy": "token", "dynamic": True}} if act else {})


def config(kept: str, ignored: str) -> dict[str, Any]:
    groups = {
        "group_0": {"targets": ["Linear"], **arguments(True)},
        "group_1": {"targets": [kept], **arguments(False)},
    }
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups,
            "ignore": ["lm_head", ignored]}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under a model's own names: one layer keeps its activations, one is not quantized."""
    root = tmp_path_factory.mktemp("own")
    fp8: dict[str, Scheme | None] = {name: scheme("fp8") for name in linears() if not name.endswith(f"0.{PLAIN}")}
    quantize_tiny(save_tiny(root / "source"), root / "model", fp8)
    file = root / "model" / "config.json"
    names = [f"model.layers.{layer}" for layer in (1, 0)]
    section = config(f"{names[0]}.{KEPT}", f"{names[1]}.{PLAIN}")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": section}))
    return root / "model"


def renamed(own: Path, target: Path, prefix: str, section: dict[str, Any], kind: str) -> Path:
    stored = load_file(own / "model.safetensors")
    tensors = {(prefix + name[6:] if name.startswith("model.") else name): data for name, data in stored.items()}
    found = json.loads((own / "config.json").read_text()) | {"quantization_config": section}
    if kind == "safetensors":
        return write(target, found, tensors)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(found))
    torch.save(tensors, target / "pytorch_model.bin")
    return target


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", ["{}layers.1.{}", r"re:^{}layers\.1\.{}$"])
@torch.inference_mode()
def test_names_in_the_file_count(own: Path, tmp_path: Path, prefix: str, form: str, kind: str) -> None:
    section = config(form.format(prefix, KEPT), form.replace("1", "0").format(prefix, PLAIN))
    folder = renamed(own, tmp_path / "model", prefix, section, kind)
    model, expected = load_model(folder), load_model(own)
    assert torch.equal(run(model, IDS), run(expected, IDS))
    found = contents(Checkpoint.open(folder)).ck.quantization
    assert found is not None
    for name, quantized, rounded in (
        ("1." + KEPT, True, False),
        ("0." + PLAIN, False, False),
        ("0." + KEPT, True, True),
    ):
        group = found.group_for(f"model.layers.{name}")
        assert (group is not None, group is not None and group.activations is not None) == (quantized, rounded), name
    plan = described(json.loads((folder / "config.json").read_text()), folder)
    assert plan.stored is not None
    assert plan.stored(f"model.layers.1.{KEPT}")[1] is None
    assert plan.stored(f"model.layers.0.{PLAIN}") == (None, None)
    for notes in (model.notes, plan.notes, describe(folder).notes):
        assert not [note for note in notes if "match no layer" in note]


@torch.inference_mode()
def test_a_model_s_own_names_still_count(own: Path, tmp_path: Path) -> None:
    section = json.loads((own / "config.json").read_text())["quantization_config"]
    folder = renamed(own, tmp_path / "model", "", section, "safetensors")
    assert torch.equal(run(load_model(folder), IDS), run(load_model(own), IDS))


@torch.inference_mode()
def test_a_tied_matrix_stored_as_the_head_rounds_what_the_head_is_given(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    codes = quantize_tiny(source, tmp_path / "untied", {"lm_head": scheme("fp8")})["lm_head"]
    tensors = load_file(tmp_path / "untied" / "model.safetensors")
    settings = json.loads((tmp_path / "untied" / "config.json").read_text())
    del tensors["model.embed_tokens.weight"]
    write(tmp_path / "tied", settings | {"tie_word_embeddings": True}, tensors)
    write(tmp_path / "untied", settings, tensors | {"model.embed_tokens.weight": codes.dequantize()})
    tied, untied = load_model(tmp_path / "tied"), load_model(tmp_path / "untied")
    assert tied.config.tie_word_embeddings
    assert CONFIG["vocab_size"] == run(tied, IDS).shape[-1]
    assert torch.equal(run(tied, IDS), run(untied, IDS))
