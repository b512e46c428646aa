"""What config.json asks for reaches every command: refused by the same words, or run as far as it says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_model

from isobit.cli.main import main

COMMANDS: dict[str, list[str]] = {
    "plan": ["--target", "a6000"], "info": ["--json"], "generate": ["x"], "chat": [], "eval": [],
    "quantize": ["--scheme", "int8", "--out", "OUT"], "compile": ["--target", "sm_86", "-o", "OUT"],
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "soft caps and experts": {"attn_logit_softcapping": 50.0, "num_experts": 8, "something_new": "\x1b[31m"},
    "dual chunks": {"dual_chunk_attention_config": {"chunk_size": 262144}},
    "ropes that disagree": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 2.0}},
    "another architecture": {"architectures": ["LlamaForSequenceClassification"]},
}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("case", CASES)
def test_every_command_says_the_same(
    case: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    folder = save_model(tmp_path / "m", context=64)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CASES[case]))
    said = {}
    for command, options in COMMANDS.items():
        options = [str(tmp_path / "out") if option == "OUT" else option for option in options]
        status = main([command, str(folder), *options])
        out, err = capsys.readouterr()
        if command == "info":
            assert status == 0
            said[command] = json.loads(out)["notes"][-1].removeprefix("isobit does not run this: ")
        else:
            assert status == 2 and not out
            said[command] = err.strip().removeprefix("isobit: error: ")
    assert said["plan"].startswith("config.json") and said == dict.fromkeys(said, said["plan"])
    assert not (tmp_path / "out").exists() and "\x1b" not in said["plan"]


def test_a_family_is_refused_before_the_files_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}')
    options = {**COMMANDS, "bench": [], "serve": ["--port", "0"], "certify": ["--against", str(folder)]}
    del options["info"]  # which describes what lies there
    for command, words in options.items():
        words = [str(tmp_path / "out") if word == "OUT" else word for word in words]
        assert main([command, str(folder), *words]) == 2
        assert "isobit: error: config.json: Mamba (MambaForCausalLM) has layers" in capsys.readouterr().err


def test_yarn_runs_to_its_stretched_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "m", context=32)
    config = json.loads((folder / "config.json").read_text())
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": rope}))
    assert main(["generate", str(folder), "x" * 100, "--max-tokens", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "up to 128 tokens" in err and any("yarn stretches 32" in note for note in json.loads(out)["notes"])
    assert main(["generate", str(folder), "x" * 128]) == 2
    assert "context holds 128" in capsys.readouterr().err
