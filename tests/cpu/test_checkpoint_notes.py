"""What people should know about a checkpoint is said by every command that meets it, and stands in every JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import save_model

import isobit
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main
from isobit.errors import CheckpointWarning

KV_CACHE = "quantized KV cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized checkpoint whose configuration asks for something that isobit does otherwise."""
    root = tmp_path_factory.mktemp("notes")
    isobit.quantize(save_model(root / "plain", context=64), root / "q", "int8", progress=False)
    config = json.loads((root / "q" / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "dynamic": False}
    (root / "q" / "config.json").write_text(json.dumps(config))
    (root / "q" / "chat_template.jinja").write_text("[{{ messages[0].content }}]")
    return root / "q"


COMMANDS: dict[str, list[str]] = {
    "plan": ["--target", "a6000"], "info": [], "generate": ["x", "--max-tokens", "1"], "chat": ["--max-tokens", "1"],
    "eval": ["--tokens", "8", "--ctx", "8", "-q"],
}  # fmt: skip


def notes_of(command: str, document: Any) -> list[str]:
    found = document["model"]["notes"] if command == "plan" else document["notes"]
    return list(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_it(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    assert main([command, str(folder), *COMMANDS[command], "--json"]) == 0
    out, err = capsys.readouterr()
    assert notes_of(command, json.loads(out)) == list(Checkpoint.open(folder).notes)
    assert sum(KV_CACHE in line for line in err.splitlines()) == (command != "info")
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    assert main([command, str(folder), *COMMANDS[command]]) == 0
    out, err = capsys.readouterr()
    assert sum(KV_CACHE in line for line in (out + err).splitlines()) == 1


def test_python_warns(folder: Path) -> None:
    with pytest.warns(CheckpointWarning, match=KV_CACHE):
        model = isobit.load(folder)
    assert model.notes == Checkpoint.open(folder).notes and KV_CACHE in model.notes[0]
    assert KV_CACHE in isobit.info(folder).notes[0]


def test_nothing_to_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder.parent / "plain"), "x", "--max-tokens", "1"]) == 0
    assert "note" not in capsys.readouterr().err
