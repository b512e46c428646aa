"""Old .bin checkpoints: tensors are read, anything that could run code is refused."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError

BASE = torch.arange(24.0).reshape(4, 6)
TENSORS = {"a.weight": BASE, "a.t": BASE.t(), "a.part": BASE[1:3], "b.weight": torch.ones(3, dtype=torch.bfloat16)}


def folder_with(path: Path, **files: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name, value in files.items():
        torch.save(value, path / f"{name}.bin")
    return path


@pytest.mark.parametrize("zip_format", [True, False])
def test_reads_both_of_torchs_formats(tmp_path: Path, zip_format: bool) -> None:
    folder_with(tmp_path)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    ck = Checkpoint.open(tmp_path)
    assert ck.dtype == torch.float32 and ck.tensors["a.t"].shape == (6, 4) and ck.tensors["a.t"].nbytes == 96
    for name, tensor in TENSORS.items():
        found = ck.read(name, mmap=True)
        assert torch.equal(found, tensor) and found.is_contiguous() and found.dtype == tensor.dtype
    assert torch.equal(ck.read("a.t", slice(2, 5)), BASE.t()[2:5])
    ck.read("a.weight").zero_()
    assert torch.equal(ck.read("a.weight"), BASE)


def test_shards_and_their_index(tmp_path: Path) -> None:
    one, two = "pytorch_model-00001-of-00002", "pytorch_model-00002-of-00002"
    folder_with(tmp_path, **{one: {"a": torch.ones(2)}, two: {"b": torch.zeros(2)}})
    index = {"weight_map": {"a": f"{one}.bin", "b": f"{two}.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    ck = Checkpoint.open(tmp_path)
    assert ck.read("a").tolist() == [1, 1] and ck.read("b").tolist() == [0, 0]
    index["weight_map"]["c"] = f"{two}.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'c'.*where the index says"):
        Checkpoint.open(tmp_path)


class Evil:
    """Runs a command when it is unpickled by a careless loader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zip_format", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, zip_format: bool) -> None:
    folder_with(tmp_path)
    value = {"a": torch.ones(1), "b": Evil(tmp_path / "ran")}
    torch.save(value, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(CheckpointError, match="could run code") as caught:
        Checkpoint.open(tmp_path)
    assert not (tmp_path / "ran").exists() and "pytorch_model.bin" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(1)], "holds a list, not a dictionary"),
        ({"a": torch.ones(1), "epoch": 3}, "entry 'epoch' is a int"),
        ({7: torch.ones(1)}, "not a named tensor"),
        ({"a": torch.eye(2).to_sparse()}, "not a plain dense tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_other_contents(tmp_path: Path, value: Any, message: str) -> None:
    folder_with(tmp_path, pytorch_model=value)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    folder_with(tmp_path, pytorch_model=TENSORS)
    path = tmp_path / "pytorch_model.bin"
    whole = path.read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="pytorch_model.bin"):
            Checkpoint.open(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "not a model")
    with pytest.raises(CheckpointError, match="cannot be read as a torch file"):
        Checkpoint.open(tmp_path)
