"""Static activation scales: measured on a text by the source model, the same for layers that share their input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import hashes, tensors, write
from tokenizers import Tokenizer, models, pre_tokenizers

from isobit.bundled import heldout_path
from isobit.checkpoint.layout import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.models.weights import load_model
from isobit.quantizer import calibrate
from isobit.quantizer.driver import quantize

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


def test_the_default_text_is_not_the_evaluation_text() -> None:
    text = calibrate.read_text(None, STATIC)
    assert text is not None and len(text) > 20_000
    lines = {line.strip() for line in heldout_path().read_text(encoding="utf-8").splitlines() if len(line.strip()) > 60}
    assert not lines & {line.strip() for line in text.splitlines()}


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
