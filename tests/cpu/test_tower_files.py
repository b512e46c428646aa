"""What every tower begins with: the settings of processors, and weights in whatever format each is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, write
from torch import nn

from isobit.checkpoint import ctrender
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.formats.schemes import SCHEMES
from isobit.models.encoders.processors import processor_class, settings
from isobit.models.encoders.weights import filled


def put(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_settings_are_looked_for_as_transformers_looks(tmp_path: Path) -> None:
    assert settings(tmp_path, "image_processor") == ({}, tmp_path / "preprocessor_config.json")
    put(tmp_path, preprocessor_config={"patch_size": 14, "processor_class": "One"})
    assert settings(tmp_path, "image_processor")[0]["patch_size"] == 14
    assert settings(tmp_path, "video_processor")[0]["patch_size"] == 14  # of videos, where nothing else is
    put(tmp_path, video_preprocessor_config={"patch_size": 15})
    assert settings(tmp_path, "video_processor") == ({"patch_size": 15}, tmp_path / "video_preprocessor_config.json")
    assert processor_class(tmp_path) == "One"
    put(tmp_path, processor_config={"processor_class": "Two", "video_processor": {"patch_size": 16}})
    assert settings(tmp_path, "video_processor")[0]["patch_size"] == 16
    assert settings(tmp_path, "image_processor")[0]["patch_size"] == 14  # which the file of all does not speak of
    assert processor_class(tmp_path) == "Two"
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="processor_config"):
        settings(tmp_path, "image_processor")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 32)
        self.inner = nn.Sequential(nn.Linear(32, 16), nn.Conv2d(16, 4, 2))
        self.last = nn.Linear(16, 8, bias=False)


def stored(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {f"model.visual.{name}": value.clone() for name, value in Small().state_dict().items()} | changes


def fill(
    folder: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32, **config: Any
) -> nn.Module:
    ck = Checkpoint.open(write(folder, CONFIG | config, tensors))
    return filled(Small, ck, lambda name: f"model.visual.{name}", dtype=dtype)


def test_a_module_has_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    tensors = stored()
    found = fill(tmp_path, tensors).state_dict()
    assert {f"model.visual.{name}" for name in found} == {*tensors}
    assert all(torch.equal(value, tensors[f"model.visual.{name}"]) for name, value in found.items())
    assert {value.dtype for value in fill(tmp_path, tensors, torch.bfloat16).state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("said", ["quantized", "ignored", "nothing"])
@pytest.mark.parametrize("scales", [(16, 1), (16,)])
def test_an_fp8_linear_is_its_codes_times_its_scales(tmp_path: Path, scales: tuple[int, ...], said: str) -> None:
    """Its own tensors say so, whatever the configuration says of it."""
    codes = torch.randn(16, 32).to(torch.float8_e4m3fn)
    scale = (torch.rand(scales) + 0.5).to(torch.bfloat16)
    module = "model.visual.inner.0"
    quantization = ctrender.render({module: None if said == "ignored" else SCHEMES["fp8"], "other": SCHEMES["fp8"]})
    tensors = stored(**{f"{module}.weight": codes, f"{module}.weight_scale": scale})
    config = {} if said == "nothing" else {"quantization_config": quantization}
    found = fill(tmp_path, tensors, **config)
    assert torch.equal(found.get_parameter("inner.0.weight"), codes.float() * scale.float().reshape(16, 1))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("inner.0.weight", torch.zeros(16, 31), "has shape"),
        ("inner.0.bias", None, "is missing"),
        ("inner.1.weight", torch.zeros(4, 16, 2, 3), "has shape"),
        ("inner.1.bias", torch.full((4,), torch.nan), "NaN"),
        ("last.weight", torch.full((8, 16), torch.inf), "NaN or infinite"),
        ("last.bias", torch.zeros(8), "surplus"),
        ("table.weight", None, "missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, value: torch.Tensor | None, why: str) -> None:
    tensors = stored()
    tensors.pop(f"model.visual.{name}", None)
    if value is not None:
        tensors[f"model.visual.{name}"] = value
    with pytest.raises(CheckpointError, match=why) as caught:
        fill(tmp_path, tensors)
    assert name in str(caught.value)
