"""Opening and reading checkpoint folders: shards, indexes that lie, companions, threads, maps."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, write
from safetensors.torch import save_file

from isobit.checkpoint import store
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError

A = {"a.weight": torch.arange(12.0).reshape(4, 3), "n.weight": torch.ones(5, dtype=torch.bfloat16)}
B = {"b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(3, 2)}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(folder: Path) -> Path:
    return write(folder, CONFIG, {ONE: A, TWO: B})


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file is not None}
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("mmap", [False, True])
def test_reads_what_was_written(tmp_path: Path, mmap: bool) -> None:
    ck = Checkpoint.open(sharded(tmp_path / "m"))
    assert ck.config == CONFIG and set(ck.tensors) == set(A | B) and ck.dtype == torch.float32
    for name, tensor in (A | B).items():
        found = ck.read(name, mmap=mmap)
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    assert torch.equal(ck.read("a.weight", slice(1, 3)), A["a.weight"][1:3])
    assert ck.read("a.weight", slice(2, 2)).shape == (0, 3)
    with pytest.raises(CheckpointError, match="has 4 rows; 3 to 5 were asked for"):
        ck.read("a.weight", slice(3, 5))
    with pytest.raises(CheckpointError, match="'c.weight'.*is missing"):
        ck.read("c.weight")


def test_misaligned_data_is_copied_not_mapped(tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, {"x": torch.ones(1)})
    header = json.dumps(
        {
            "odd": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    data = b"\7" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    ck = Checkpoint.open(folder)
    assert ck.read("x", mmap=True).tolist() == [1.5, -2.0] and ck.read("odd", mmap=True).tolist() == [7]


def test_streaming_reads_own_their_memory(tmp_path: Path) -> None:
    ck = Checkpoint.open(write(tmp_path, CONFIG, A))
    ck.read("a.weight").zero_()
    mapped = ck.read("a.weight", mmap=True)
    assert torch.equal(mapped, A["a.weight"])
    mapped.zero_()  # a private page: the file stays as it is
    assert torch.equal(ck.read("a.weight"), A["a.weight"])


def test_reads_from_many_threads(tmp_path: Path) -> None:
    tensors = {f"t{i}.weight": torch.full((64, 64), float(i)) for i in range(40)}
    ck = Checkpoint.open(write(tmp_path, CONFIG, tensors))

    def same(job: int) -> bool:
        name = f"t{job % 40}.weight"
        return torch.equal(ck.read(name, mmap=job % 2 == 0), tensors[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(400)))


def test_fingerprint_changes_with_files_only(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    first = Checkpoint.open(folder).fingerprint()
    assert Checkpoint.open(folder).fingerprint() == first
    os.utime(folder / TWO, (1, 1))
    assert Checkpoint.open(folder).fingerprint() != first


def test_companions_are_carried_but_never_code_or_links_out(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    keep = ["tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE", "License.txt", "NOTICE.md"]
    for name in [*keep, "modeling_x.py", "README.md", "license_check.py", "training_args.bin"]:
        (folder / name).write_text("x")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    (tmp_path / "secret").write_text("key")
    (folder / "vocab.json").symlink_to(tmp_path / "secret")
    found = [path.relative_to(folder).as_posix() for path in Checkpoint.open(folder).companions]
    assert sorted(found) == sorted([*keep, "additional_chat_templates/tool_use.jinja"])


def test_a_hub_cache_snapshot_is_a_folder_of_links(tmp_path: Path) -> None:
    real = write(tmp_path / "real", CONFIG, A)
    (real / "tokenizer.json").write_text("{}")
    blobs = tmp_path / "models--o--n" / "blobs"
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for i, path in enumerate(real.iterdir()):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    ck = Checkpoint.open(snapshot)
    assert torch.equal(ck.read("a.weight"), A["a.weight"])
    assert [path.name for path in ck.companions] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("changes", "tensor", "message"),
    [
        ({"b.weight": "gone.safetensors"}, None, "names 'gone.safetensors', which is missing"),
        ({"b.weight": "../x.safetensors"}, None, "not the plain name of a file"),
        ({"b.weight": "/etc/passwd"}, None, "not the plain name of a file"),
        ({"b.weight": "a\\b"}, None, "not the plain name of a file"),
        ({"b.weight": ""}, None, "not the plain name of a file"),
        ({"b.weight": 7}, "b.weight", "does not name a file"),
        ({"c.weight": TWO}, "c.weight", "where the index says it is"),
        ({"b.weight": ONE}, "b.weight", "where the index says it is"),
        ({"a.weight": None}, "a.weight", "is not in the index"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, changes: dict[str, Any], tensor: str | None, message: str) -> None:
    folder = sharded(tmp_path / "m")
    edit_index(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert caught.value.tensor == tensor and str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", '{"weight_map": "x"}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index.json"):
        Checkpoint.open(folder)


def test_a_shard_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / TWO).rename(tmp_path / "outside")
    (folder / TWO).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        Checkpoint.open(folder)
    (tmp_path / "outside").unlink()
    with pytest.raises(CheckpointError, match="link to nothing"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file(B | {"a.weight": A["a.weight"]}, folder / TWO)
    with pytest.raises(CheckpointError, match="given twice, here and in model-00001") as caught:
        Checkpoint.open(folder)
    assert caught.value.tensor == "a.weight"


def test_a_truncated_shard_names_file_and_tensor(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    data = (folder / ONE).read_bytes()
    (folder / ONE).write_bytes(data[:-3])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        Checkpoint.open(folder)
    assert caught.value.file == str(folder / ONE) and caught.value.tensor in A


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_cut_off_after_opening(tmp_path: Path, mmap: bool) -> None:
    ck = Checkpoint.open(write(tmp_path, CONFIG, A))
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match="cut off"):
        ck.read("a.weight", mmap=mmap)


def test_two_answers_to_where_the_weights_are(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file(A, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="both model.safetensors and model.safetensors.index.json"):
        Checkpoint.open(folder)


def test_other_files_do_not_confuse(tmp_path: Path) -> None:
    folder = write(tmp_path, CONFIG, A)
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"junk")
    assert set(Checkpoint.open(folder).tensors) == set(A)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no weights here.*`isobit plan` needs none of them"),
        (["adapter_model.safetensors"], "is an adapter: merge it"),
        ([ONE, TWO], "their index is missing"),
        (["consolidated.safetensors", "x.pt"], "Found consolidated.safetensors, x.pt instead"),
        (["x.gguf", "y.gguf"], "holds several GGUF files, name the one that is meant: x.gguf, y.gguf"),
    ],
)
def test_no_weights(tmp_path: Path, files: list[str], message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_no_folder_no_config_bad_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match="config.json is missing"):
        Checkpoint.open(tmp_path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"a":1,"a":2}', "given twice"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * (17 << 20) + '"}')
    with pytest.raises(CheckpointError, match="larger than"):
        Checkpoint.open(tmp_path)


def test_a_checkpoint_without_float_tensors_has_no_dtype(tmp_path: Path) -> None:
    ck = Checkpoint.open(write(tmp_path, CONFIG, {"x": torch.ones(2, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="no tensor has one of the dtypes"):
        _ = ck.dtype


PARTS = [(None, None), (slice(2, 5), None), (None, slice(8, 24)), (slice(3, 7), slice(1, 2)),
         (slice(0, 7), slice(0, 40)), (slice(4, 4), slice(3, 9)), (slice(None, 3), slice(5, None)),
         (None, slice(6, 6))]  # fmt: skip


@pytest.mark.parametrize("kind", ["safetensors", "bin", "transposed bin"])
@pytest.mark.parametrize("limits", [(1 << 15, 4 << 20), (16, 4 << 20), (1 << 15, 200)], ids=["default", "apart", "few"])
def test_rows_and_columns_are_those_of_the_whole(
    tmp_path: Path, kind: str, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_WORTH_SKIPPING", limits[0])
    monkeypatch.setattr(store, "_AT_ONCE", limits[1])
    whole = {"a": torch.randn(7, 40), "b": torch.randn(7, 40, 3).bfloat16(), "c": torch.arange(280).to(torch.int32)}
    whole["c"] = whole["c"].reshape(40, 7).t() if kind == "transposed bin" else whole["c"].reshape(7, 40)
    if kind == "safetensors":
        ck = Checkpoint.open(write(tmp_path, CONFIG, whole))
    else:
        write(tmp_path, CONFIG, {"x": torch.ones(1)})
        (tmp_path / "model.safetensors").unlink()
        torch.save(whole, tmp_path / "pytorch_model.bin")
        ck = Checkpoint.open(tmp_path)
    for name, value in whole.items():
        for rows, columns in PARTS:
            for mmap in (False, True):
                found = ck.read(name, rows, columns, mmap=mmap)
                expected = value[rows or slice(None), columns or slice(None)]
                assert found.is_contiguous() and found.dtype == value.dtype and torch.equal(found, expected)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [(slice(0, 5), None, "has 4 rows; 0 to 5 were"), (None, slice(1, 4), "has 3 columns; 1 to 4 were"),
     (slice(-2, 4), None, "-2 to 4 were"), (slice(3, 2), None, "3 to 2 were"),
     (None, slice(0, 3, 2), "0 to 3 in steps of 2 were"), (None, slice(2, 1), "2 to 1 were")],
)  # fmt: skip
def test_parts_that_are_not_there_are_refused(
    tmp_path: Path, rows: slice | None, columns: slice | None, message: str
) -> None:
    ck = Checkpoint.open(write(tmp_path, CONFIG, A))
    with pytest.raises(CheckpointError, match=f"a.weight'.*{message} asked for"):
        ck.read("a.weight", rows, columns)
    with pytest.raises(CheckpointError, match="has 0 columns; 0 to 0 were asked for"):
        ck.read("n.weight", None, slice(0, 0))
    with pytest.raises(CheckpointError, match="has 0 columns; 0 to 1 were asked for"):
        ck.read("n.weight", None, slice(0, 1))


def test_columns_read_no_more_than_they_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.arange(6 * 40000, dtype=torch.float32).reshape(6, 40000)
    ck = Checkpoint.open(write(tmp_path, CONFIG, {"w": wide}))
    read: list[int] = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read.append(len(buffers[0])) or real(fd, buffers, at))
    assert torch.equal(ck.read("w", slice(1, 4), slice(8, 16)), wide[1:4, 8:16])
    assert read == [32, 32, 32]


def test_a_file_cut_off_after_it_was_opened_is_refused_by_columns_too(tmp_path: Path) -> None:
    ck = Checkpoint.open(write(tmp_path, CONFIG, {"w": torch.ones(64, 64)}))
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="'w'.*cut off"):
        ck.read("w", None, slice(60, 64))
