"""Static activation scales: measured on a text by the source model, the same for layers that share their input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import hashes, tensors, write
from tokenizers import Tokenizer, models, pre_tokenizers

import isobit
from isobit.bundled import HELDOUT_NAME, heldout_path
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.occupant import REPORT
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, Unsupported, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.models.weights import load_model
from isobit.quantizer import calibrate
from isobit.quantizer.driver import predict, quantize

STATIC = Policy(scheme("fp8-static"))
LAYER = "model.layers.0"


def source(tmp_path: Path, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """A tiny model with a tokenizer whose vocabulary are printable characters."""
    folder = write(tmp_path / "src", weights)
    vocabulary = {chr(32 + i): i for i in range(95)} | {"[unk]": 95}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_scales_are_the_largest_inputs_over_448(tmp_path: Path) -> None:
    folder = source(tmp_path)
    ck = Checkpoint.open(folder)
    text = "def f(x):\n    return x + 1\n"
    modules = {name for name, _ in load_model(ck).linears() if name != "lm_head"}
    scales = calibrate.input_scales(ck, modules, text)
    assert scales.keys() == modules
    # By hand, for the first layer: its input is the embedding, normalized.
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    weights = {name: tensor.float() for name, tensor in tensors().items()}
    x = weights["model.embed_tokens.weight"][ids]
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weights[f"{LAYER}.input_layernorm.weight"]
    assert scales[f"{LAYER}.self_attn.q_proj"] == pytest.approx(x.abs().max().item() / 448, rel=2**-7)
    for scale in scales.values():
        assert scale == float(torch.tensor(scale).bfloat16())  # no cast to a 16-bit dtype changes it
    assert scales[f"{LAYER}.self_attn.q_proj"] >= x.abs().max().item() / 448 * (1 - 1e-6)


def test_layers_that_share_their_input_share_their_scale(tmp_path: Path) -> None:
    ck = Checkpoint.open(source(tmp_path))
    modules = {name for name, _ in load_model(ck).linears()}
    scales = calibrate.input_scales(ck, modules, "some words " * 40)
    for i in range(2):
        qkv = {scales[f"model.layers.{i}.self_attn.{part}_proj"] for part in "qkv"}
        gate_up = {scales[f"model.layers.{i}.mlp.{part}_proj"] for part in ("gate", "up")}
        assert len(qkv) == len(gate_up) == 1


def test_a_static_checkpoint_works_with_the_default_text_and_says_so(tmp_path: Path) -> None:
    quantize(source(tmp_path), tmp_path / "out", STATIC, progress=False)
    found = read_linear(Checkpoint.open(tmp_path / "out"), f"{LAYER}.mlp.down_proj")
    assert found.input_scale is not None and found.input_scale.dtype == torch.float32 and found.input_scale.item() > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["input_activations"]["dynamic"] is False


def test_the_users_text_is_what_counts(tmp_path: Path) -> None:
    folder = source(tmp_path)
    for name, text in (("a", "aaaa"), ("b", "bbbb"), ("again", "aaaa")):
        (tmp_path / f"{name}.txt").write_text(text)
        quantize(folder, tmp_path / name, STATIC, calibration=tmp_path / f"{name}.txt", progress=False)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "again")
    assert hashes(tmp_path / "a")["model.safetensors"] != hashes(tmp_path / "b")["model.safetensors"]


# Whoever changes the text changes every fp8-static checkpoint that is calibrated on it: say so in the changelog.
HELDOUT_SHA256 = "568841d42441f0ee858a34012c8f1c6e2066e8eaa395ec534cf14ca716acfc63"


def test_the_default_text_is_the_bundled_one_and_the_note_says_so(tmp_path: Path) -> None:
    assert hashlib.sha256(heldout_path().read_bytes()).hexdigest() == HELDOUT_SHA256
    assert calibrate.read_text(None, STATIC) == heldout_path().read_text(encoding="utf-8")
    folder = source(tmp_path)
    report = quantize(folder, tmp_path / "out", STATIC, progress=False)
    named = quantize(folder, tmp_path / "named", STATIC, calibration=heldout_path(), progress=False)
    weights = [hashes(tmp_path / name)["model.safetensors"] for name in ("out", "named")]
    assert weights[0] == weights[1]
    said = [note for note in report.notes if "calibrated" in note]
    assert len(said) == 1 and HELDOUT_NAME in said[0] and "eval" in said[0] and "--calibration" in said[0]
    assert said[0] in predict(folder, tmp_path / "next", STATIC).notes
    assert not [note for note in named.notes if "calibrated" in note]


def test_another_version_of_isobit_gives_the_same_bytes(tmp_path: Path) -> None:
    """One whose own source code differs: the default text has nothing to do with it."""
    folder, here = source(tmp_path), Path(isobit.__file__).parent
    other = tmp_path / "site" / "isobit"
    other.mkdir(parents=True)
    for entry in here.iterdir():
        if entry.name != "version.py" and entry.name != "__pycache__":
            (other / entry.name).symlink_to(entry)
    (other / "version.py").write_text('__version__ = "99.0"\n')
    (other / "aaaa.py").write_text("ZZ = '" + "~" * 4000 + "'\n")
    quantize(folder, tmp_path / "ours", STATIC, progress=False)
    command = [
        sys.executable,
        "-m",
        "isobit",
        "quantize",
        str(folder),
        "-s",
        "fp8-static",
        "-o",
        str(tmp_path / "theirs"),
    ]
    environment = os.environ | {"PYTHONPATH": str(other.parent)}
    done = subprocess.run([*command, "-q", "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "99.0" in (tmp_path / "theirs" / REPORT).read_text()
    ours, theirs = hashes(tmp_path / "ours"), hashes(tmp_path / "theirs")
    assert {name for name in ours if ours[name] != theirs.get(name)} <= {REPORT} and ours.keys() == theirs.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_is_refused_by_name_before_anything_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "no model"
    for policy, place, error, words in (
        (STATIC, {"device": "cuda"}, Unsupported, "running on a GPU"),
        (STATIC, {"lowering": "sm_86"}, UsageError, "add --device cuda"),
        (STATIC, {"device": "tpu"}, UsageError, "unknown device 'tpu'"),
        (Policy(scheme("int4")), {"device": "cuda"}, UsageError, "no scheme here has"),
    ):
        for run in (quantize, predict):
            with pytest.raises(error, match=words):
                run(missing, tmp_path / "out", policy, **place)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_only_static_schemes_need_a_text(tmp_path: Path) -> None:
    assert calibrate.read_text(None, Policy(scheme("fp8"))) is None
    assert calibrate.read_text(None, Policy(scheme("fp8"), (Rule("down_proj", "fp8-static"),))) is not None


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UsageError, match="empty.txt is empty"):
        calibrate.read_text(tmp_path / "empty.txt", STATIC)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        calibrate.read_text(tmp_path / "none.txt", STATIC)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    folder = write(tmp_path / "src")
    with pytest.raises(CheckpointError, match="tokenizer.json: is missing"):
        quantize(folder, tmp_path / "out", STATIC, progress=False)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = source(tmp_path)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"a": 65', '"a": 6500'))
    with pytest.raises(CheckpointError, match="beyond the model's vocabulary of 96"):
        quantize(folder, tmp_path / "out", STATIC, progress=False)


def test_embeddings_have_no_static_scales(tmp_path: Path) -> None:
    policy = Policy(scheme("fp8"), (Rule("embed_tokens", "fp8-static"),))
    with pytest.raises(UsageError, match="for linear layers.*model.embed_tokens"):
        quantize(source(tmp_path), tmp_path / "out", policy, progress=False)


def test_activations_that_are_not_finite(tmp_path: Path) -> None:
    weights = tensors()
    weights[f"{LAYER}.mlp.gate_proj.weight"].fill_(3e38)
    with pytest.raises(CheckpointError, match="down_proj are not finite"):
        quantize(source(tmp_path, weights), tmp_path / "out", STATIC, progress=False)
