"""Files that are no files, and JSON without end: refused by name, at once, by everything that reads them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import write

import isobit
from isobit.checkpoint.files import is_file, is_folder, is_there, read_file
from isobit.checkpoint.jsonfile import parse_json, short
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import read_header
from isobit.errors import CheckpointError, IsobitError, UsageError
from isobit.evaluation.corpus import read_corpus
from isobit.evaluation.info import describe
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.planning import read_config
from isobit.quantizer.calibrate import read_text
from isobit.quantizer.driver import predict, quantize

LONG = "n" * 300  # no file system of ours takes a name of more than 255 bytes


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def nothing(path: Path) -> None:
    path.symlink_to("gone")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = {
    "pipe": (pipe, "not a regular file but a pipe"),
    "device": (device, "not a regular file but a device"),
    "folder": (folder, "not a regular file but a folder"),
    "socket": (listening, "not a regular file but a socket"),
    "nothing": (nothing, "No such file"),
    "circle": (circle, "Too many levels of symbolic links"),
}

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    make, message = KINDS[kind]
    make(tmp_path / "x")
    for read in (lambda path: read_file(path, 10), read_header, read_config):
        if kind == "folder" and read is read_config:
            continue  # a model's folder
        with pytest.raises(CheckpointError, match=message) as caught:
            read(tmp_path / "x")
        assert str(tmp_path / "x") in str(caught.value)
    for read_words in (read_corpus, lambda path: read_text(path, Policy(scheme("fp8-static")))):
        with pytest.raises(UsageError, match=f"{message}|no files to read"):
            read_words(tmp_path / "x")
    assert is_there(tmp_path / "x") and not is_file(tmp_path / "x") and is_folder(tmp_path / "x") == (kind == "folder")


@each_kind
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "generation_config.json"],
)
def test_every_file_of_a_model_is_asked_for_its_kind(tmp_path: Path, kind: str, name: str) -> None:
    source = write(tmp_path / "src")
    if name == "pytorch_model.bin":
        (source / "model.safetensors").unlink()
    (source / name).unlink(missing_ok=True)
    KINDS[kind][0](source / name)
    commands: list[Callable[[], object]] = [lambda: predict(source, tmp_path / "out", Policy(scheme("fp8")))]
    if name != "generation_config.json":
        commands += [lambda: Checkpoint.open(source), lambda: describe(source)]
    for command in commands:
        with pytest.raises(IsobitError, match=name):
            command()


def test_a_link_to_a_file_is_a_file_and_a_folder_of_licences_is_left_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    (source / "config.json").rename(source / "real.json")
    (source / "config.json").symlink_to("real.json")
    (source / "LICENSES").mkdir()
    quantize(source, tmp_path / "out", Policy(scheme("fp8")), progress=False)
    assert not (tmp_path / "out" / "config.json").is_symlink() and not (tmp_path / "out" / "LICENSES").exists()


def test_a_companion_that_leads_out_of_the_folder_is_left_out_with_a_word(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    (tmp_path / "elsewhere.json").write_text("{}")
    (source / "added_tokens.json").symlink_to(tmp_path / "elsewhere.json")
    report = quantize(source, tmp_path / "out", Policy(scheme("fp8")), progress=False)
    assert any("added_tokens.json" in note and "leads out of the folder" in note for note in report.notes)
    assert not (tmp_path / "out" / "added_tokens.json").exists()


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in (LONG, "a\0b", "/".join(["d"] * 3000)):
        path = tmp_path / name
        assert not is_file(path) and not is_folder(path) and not is_there(path)
        with pytest.raises(CheckpointError):
            read_file(path, 10)


def test_a_file_of_any_size_costs_no_more_than_its_limit(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than 10 bytes"):
        read_file(tmp_path / "x", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"a": -' + "9" * 70 + "}", "a number of 71 digits"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ('{"a":' * 80 + "1" + "}" * 80, "nested too deeply"),
        ('{"' + "k" * 10000 + '": 1, "' + "k" * 10000 + '": 2}', "is given twice"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ("\ufeff{}", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("", "not valid JSON"),
        ("nul", "not valid JSON"),
    ],
)
def test_json_without_end_or_sense(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_json(text.encode(), Path("c.json"), "the file")
    assert len(str(caught.value)) < 300 and str(caught.value).startswith("c.json: ")


def test_what_transformers_writes_is_read() -> None:
    written = {"model_max_length": 1000000000000000019884624838656, "time_step_limit": [0.0, float("inf")], "e": "😀"}
    assert parse_json(json.dumps(written).encode(), Path("c"), "it") == written
    assert parse_json(b'{"digits": "' + b"1" * 500 + b'", "n": 5}', Path("c"), "it")["n"] == 5
    nested: object = 1
    for _ in range(60):
        nested = [nested]
    assert parse_json(json.dumps({"a": nested}).encode(), Path("c"), "it")["a"] == nested


def test_short_is_short_whatever_it_is_given() -> None:
    deep: object = "x"
    for _ in range(500):
        deep = {"k" * 1000: [deep] * 50}
    for value in ("a" * 10**7, [10**60] * 10**6, deep, "\x1b[31m", "\u202e", b"\0" * 10**6):
        assert len(short(value)) <= 80 and short(value).isprintable()
    assert short("ä") == "'ä'"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("[" + ",".join(["9" * 4000] * 2000) + "]", "a number of 4000 digits"),
        ("[" + ",".join(["9" * 60] * 100_000) + "]", "100000 axes"),
        ("[" + ",".join(["9" * 60] * 60) + "]", "impossibly large"),
        ("[" + ",".join(["281474976710656"] * 63) + ", 0]", "impossibly large"),
        ("[" + ",".join(["1"] * 65) + "]", "65 axes"),
        ("[" * 300 + "]" * 300, "nested too deeply"),
    ],
)
def test_shapes_without_end(tmp_path: Path, shape: str, message: str) -> None:
    header = ('{"t": {"dtype": "U8", "shape": ' + shape + ', "data_offsets": [0, 0]}}').encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 500


def test_many_axes_of_one_are_read(tmp_path: Path) -> None:
    source = write(tmp_path / "src", {"t": torch.ones([1] * 64)})
    assert Checkpoint.open(source).read("t").shape == (1,) * 64


def test_a_home_folder_of_nobody() -> None:
    for command in (isobit.info, isobit.load, lambda name: isobit.quantize(name, "out")):
        with pytest.raises(IsobitError, match="home folder"):
            command("~nobody-of-that-name/model")
    with pytest.raises(IsobitError, match="home folder"):
        read_config("~nobody-of-that-name/model")
