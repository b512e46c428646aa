"""isobit quantize --from-quantized: a quantized source counts as the numbers it stands for, and only when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import make_model, save
from safetensors.torch import load_file, save_file
from test_gguf_models import write_gguf

import isobit
from isobit.api.quantizing import predict
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.formats.qtensor import QTensor

SIZES = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}


def plain_copy(source: Path, folder: Path) -> Path:
    """A folder with the numbers of a quantized one in float32."""
    ck = Checkpoint.open(source)
    tensors = {}
    for name in ck.tensors:
        module, _, part = name.rpartition(".")
        if part in ("weight", "weight_packed") and len(ck.tensors[name].shape) == 2:
            weight = read_linear(ck, module).weight
            tensors[f"{module}.weight"] = weight.dequantize() if isinstance(weight, QTensor) else weight.float()
        elif part in ("weight", "bias"):
            tensors[name] = ck.read(name).clone()
    folder.mkdir()
    config = {key: value for key, value in ck.config.items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("first", ["gguf", "int8", "int4-asym", "fp8-block"])
def test_the_same_as_from_its_numbers(tmp_path: Path, first: str) -> None:
    model = make_model("LlamaForCausalLM", **SIZES)
    if first == "gguf":
        source = write_gguf(tmp_path / "m.gguf", model, "llama", "Q4_1")
    else:
        source = tmp_path / "first"
        isobit.quantize(save(model, tmp_path / "m"), source, first, progress=False)
    with pytest.raises(CheckpointError, match="is quantized already.*--from-quantized"):
        isobit.quantize(source, tmp_path / "twice", "int4-g32", progress=False)
    report = isobit.quantize(source, tmp_path / "twice", "int4-g32", progress=False, from_quantized=True)
    assert report.notes[0].startswith("the source is quantized (") and report.relative_squared_error > 0
    ck = Checkpoint.open(source)
    sizes = sum(info.nbytes for name, info in ck.tensors.items() if name.endswith("weight_shape"))
    assert ck.nbytes - sizes <= report.source_bytes <= ck.nbytes  # as it is stored, not as it is read
    plain = isobit.quantize(plain_copy(source, tmp_path / "plain"), tmp_path / "once", "int4-g32", progress=False)
    assert report.relative_squared_error == pytest.approx(plain.relative_squared_error, rel=1e-12)
    twice, once = (load_file(tmp_path / name / "model.safetensors") for name in ("twice", "once"))
    assert twice.keys() == once.keys()
    assert all(torch.equal(twice[name], tensor) for name, tensor in once.items())
    Checkpoint.open(tmp_path / "twice").require_readable()


def test_a_plain_source_is_taken_as_ever(tmp_path: Path) -> None:
    source = save(make_model("LlamaForCausalLM", **SIZES), tmp_path / "m")
    report = isobit.quantize(source, tmp_path / "out", "int8", progress=False, from_quantized=True)
    assert not any("the source is quantized" in note for note in report.notes)


def test_prediction(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM", **SIZES), "llama", "Q8_0")
    found = predict(source, tmp_path / "out", "int4-g32", from_quantized=True)
    report = isobit.quantize(source, tmp_path / "out", "int4-g32", progress=False, from_quantized=True)
    assert found.bits_per_weight == pytest.approx(report.bits_per_weight) and found.quantized == sum(
        one.quantized for one in report.modules
    )
