"""Checkpoints of methods that isobit does not run are refused by name, by every command alike."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, save, walked
from safetensors.torch import load_file, save_file
from tiny import save_model

from isobit.checkpoint.methods import METHODS
from isobit.cli.main import main
from isobit.errors import CheckpointError, IsobitError
from isobit.models.pack import requests
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.targets.table import TARGETS

COMMANDS = ("plan", "info", "generate", "chat", "eval", "quantize", "compile")
GPTQ = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}
Change = dict[str, Any]

# What is changed in a folder of plain weights, and what every command then says.
CASES: dict[str, tuple[Change, str]] = {
    "bitnet": ({"config": {"quantization_config": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}}},
        "'bitnet' (BitNet)"),
    "no method that anyone knows": ({"config": {"quantization_config": {"quant_method": "zip"}}}, "'zip'"),
    "no method at all": ({"config": {"quantization_config": {"x": 1}}}, "that isobit does not know"),
    "exl2": ({"config": {"quantization_config": {"quant_method": "exl2", "bits": 4}}, "pack": True}, "'exl2' (ExLlama"),
    "gptq without a name": ({"config": {"quantization_config": GPTQ}}, "GPTQ (AutoGPTQ"),
    "legacy AutoSmoothQuant": ({"files": {"quant_config.json": {"qkv": "per-tensor"}}}, "AutoSmoothQuant"),
    "HQQ's pickle": ({"files": {"qmodel.pt": {}}}, "HQQ in a pickle"),
    "mlx": ({"config": {"quantization": {"group_size": 64, "bits": 4}}}, "MLX"),
    "mlx, both keys": ({"config": {"quantization": {"group_size": 64, "bits": 4},
                                   "quantization_config": {"group_size": 64, "bits": 4}}}, "MLX"),
    "a key nobody knows": ({"config": {"quantization": "int4"}}, "that isobit does not know"),
    "tensors of exl2 alone": ({"pack": True}, "ExLlamaV2"),
    "tensors of exl2 alone, in a .bin": ({"pack": True, "bin": True}, "ExLlamaV2"),
    "under text_config": ({"config": {"text_config": {"quantization_config": {"quant_method": "exl3"}}}}, "ExLlamaV2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("plain") / "m", context=64)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


def changed(plain: Path, folder: Path, change: Change) -> Path:
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change.get("config", {})))
    for name, content in change.get("files", {}).items():
        (folder / name).write_text(json.dumps(content))
    if change.get("pack"):
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            n, k = tensors.pop(name).shape
            prefix = name.removesuffix("weight")
            tensors[f"{prefix}q_weight"] = torch.zeros(k // 8, n, dtype=torch.int32)
            tensors[f"{prefix}q_scale"] = torch.zeros(k // 128, n // 8, dtype=torch.int32)
            tensors[f"{prefix}q_groups"] = torch.zeros(2 * (k // 128), dtype=torch.int16)
            tensors[f"{prefix}q_scale_max"] = torch.ones(k // 128, dtype=torch.float16)
        (folder / "model.safetensors").unlink()
        if change.get("bin"):
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def answer(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says about a folder: its error, or for `info`, which describes everything, its note."""
    if command == "compile":
        with pytest.raises(IsobitError) as found:
            requests(folder, TARGETS["sm_86"], None)
        return str(found.value)
    options = {
        "plan": ["--target", "a6000"],
        "info": ["--json"],
        "generate": ["x"],
        "quantize": ["--scheme", "int8", "--out", str(folder.parent / "out")],
    }
    status = main([command, str(folder), *options.get(command, [])])
    out, err = capsys.readouterr()
    if command == "info":
        assert status == 0
        return "\n".join(json.loads(out)["notes"])
    assert status == 2 and out == "", f"{command}: {out}"
    assert not (folder.parent / "out").exists()
    return err.removeprefix("isobit: error: ").strip()


@pytest.mark.parametrize("case", CASES)
def test_every_command_refuses_by_the_same_name(
    plain: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    change, words = CASES[case]
    folder = changed(plain, tmp_path / "m", change)
    answers = {command: answer(command, folder, capsys) for command in COMMANDS}
    first = answers["generate"]
    assert first.startswith("quantization method") and words in first, first
    assert "instead: quantize the original model with isobit" in first
    assert answers == dict.fromkeys(answers, first)


SECTIONS: list[dict[str, Any]] = [
    {"quant_method": "bitnet", "quantization_mode": "online"},
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {"g": {
        "targets": ["re:.*(mlp|moe|feed_forward).*"],
        "input_activations": {"num_bits": 4, "type": "int", "strategy": "token", "dynamic": True}}}},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}}},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("architecture", walked())
def test_plain_weights_are_never_taken_for_what_a_config_asks_for(tmp_path: Path, architecture: str, kind: str) -> None:
    """Every family, both kinds of files: loading and planning refuse alike."""
    folder = save(make_model(architecture), tmp_path)
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    load_model(folder)
    for section in SECTIONS:
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
        words = []
        for ask in (lambda: load_model(folder), lambda: plans(folder, targets=["a6000"])):
            with pytest.raises(IsobitError) as found:
                ask()
            words.append(str(found.value))
        assert words[0] == words[1]


def test_info_names_the_method_of_files_beside_the_configuration(plain: Path, tmp_path: Path) -> None:
    from isobit.evaluation.info import describe

    folder = changed(plain, tmp_path / "m", {"files": {"quant_config.json": {"w_bit": 4, "zero_point": True}}})
    assert describe(folder).quantization == "awq"
    assert describe(plain).quantization is None


def test_a_plan_of_a_file_looks_beside_it(plain: Path, tmp_path: Path) -> None:
    folder = changed(plain, tmp_path / "m", {"files": {"quantize_config.json": GPTQ}})
    with pytest.raises(CheckpointError, match=r"remove quantization_config \(or the file beside config.json"):
        plans(folder / "config.json", targets=["a6000"])
    shutil.copy(folder / "config.json", folder / "other.json")  # a configuration alone: nothing belongs to it
    assert plans(folder / "other.json", targets=["a6000"], scheme_names=["int8"])


def test_a_folder_of_gguf_files_is_not_planned_as_plain_weights(plain: Path, tmp_path: Path) -> None:
    folder = changed(plain, tmp_path / "m", {})
    (folder / "model-Q8_0.gguf").write_bytes(b"GGUF")
    plans(folder, targets=["a6000"], scheme_names=["int8"])  # there are plain weights beside it
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-Q8_0.gguf: the version, but the file ends 0 bytes later"):
        plans(folder, targets=["a6000"], scheme_names=["int8"])


def test_modelopt_with_a_quantized_cache_alone_keeps_its_weights(plain: Path, tmp_path: Path) -> None:
    side = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    folder = changed(plain, tmp_path / "m", {"files": {"hf_quant_config.json": side}})
    assert plans(folder, targets=["a6000"], scheme_names=["int8"])


@pytest.mark.parametrize("value", [3, "gptq", [1], True])
def test_a_section_that_is_no_object(plain: Path, tmp_path: Path, value: object) -> None:
    folder = changed(plain, tmp_path / "m", {"config": {"quantization_config": value}})
    with pytest.raises(CheckpointError, match="quantization_config must be a JSON object"):
        plans(folder, targets=["a6000"])


def test_the_table_names_every_method_once() -> None:
    names = [name for row in METHODS for name in row.names]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
