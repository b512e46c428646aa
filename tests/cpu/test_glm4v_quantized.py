"""GLMs that see, quantized: every scheme is written and read, and the tower stays as it is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import glm4v_models as glm
import pytest
import torch
import transformers

from isobit.checkpoint.reader import Checkpoint
from isobit.evaluation.info import describe
from isobit.formats.rules import Policy
from isobit.formats.schemes import SCHEMES, scheme
from isobit.models.batch import Batch, Overlay
from isobit.models.encoders.table import open_tower
from isobit.models.media import MediaPrompt, Picture
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

FAST = ("int4-g32", "fp8")
NAMES = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name, row in SCHEMES.items()
    if row.weights is not None and not row.needs_calibration
]
WIDE = {"int3": "int3-g32"}  # of widths that 40 does not divide
KEPT = 20 + 8  # tensors of a tower of two layers


@pytest.fixture(scope="module")
def saved_as(tmp_path_factory):
    @cache
    def make(architecture: str) -> tuple[Any, Path]:
        model = glm.make(architecture, seed=9)
        return model, glm.save(model, tmp_path_factory.mktemp("glm"))

    return make


def seen(folder: Path) -> tuple[MediaPrompt, Overlay]:
    tower = open_tower(Checkpoint.open(folder), torch.float32)
    assert not isinstance(tower, str)
    ids = glm.tokenizer().encode("<|user|>\n<|begin_of_image|><|image|><|end_of_image|>what is it?").ids
    prompt = tower.prompt(ids, [Picture(glm.pixels(30, 44))])
    return prompt, Overlay(torch.tensor(prompt.placed[0].places), tower.encode(prompt.placed[0].piece))


def logits(folder: Path) -> torch.Tensor:
    prompt, overlay = seen(folder)
    with torch.inference_mode():
        return load_model(folder).forward(Batch.of([prompt.ids], positions=[prompt.positions], overlays=[overlay]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("architecture", [glm.PLAIN, glm.EXPERTS])
def test_every_scheme_is_written_and_read(saved_as, tmp_path: Path, architecture: str, name: str) -> None:
    _, folder = saved_as(architecture)
    quantize(folder, tmp_path / "out", Policy(scheme(WIDE.get(name, name))), progress=False)
    before, after = Checkpoint.open(folder), Checkpoint.open(tmp_path / "out")
    tower = [tensor for tensor in before.tensors if ".visual." in tensor]
    assert len(tower) == KEPT - 1
    assert all(torch.equal(after.read(tensor), before.read(tensor)) for tensor in tower)
    assert not [tensor for tensor in after.tensors if tensor.startswith("model.layers.")], (
        "names stay those of the model"
    )
    exact, found = logits(folder), logits(tmp_path / "out")
    assert 1e-4 < float((found - exact).norm() / exact.norm()) < (1.0 if "fp4" in name or "2" in name else 0.6)
    assert not [note for note in describe(tmp_path / "out").notes if "does not load" in note]


@pytest.mark.parametrize("architecture", [glm.PLAIN, glm.EXPERTS])
def test_a_quantized_copy_is_transformers_too(saved_as, tmp_path: Path, architecture: str) -> None:
    _, folder = saved_as(architecture)
    quantize(folder, tmp_path / "out", Policy(scheme("int8-w8a16")), progress=False)
    model = getattr(transformers, architecture).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    prompt, _ = seen(tmp_path / "out")
    piece = prompt.placed[0].piece.inputs
    ids = torch.tensor([prompt.ids])
    kinds = torch.tensor(glm.processor(False, 2).create_mm_token_type_ids(ids.tolist()))
    with torch.inference_mode():
        wanted = model(
            input_ids=ids, mm_token_type_ids=kinds, pixel_values=piece["patches"], image_grid_thw=piece["grid"]
        ).logits[0]  # fmt: skip
    found = logits(tmp_path / "out")
    # transformers holds experts in the dtype of their scales, bfloat16, also where float32 is asked for.
    assert float((found - wanted).norm() / wanted.norm()) <= (1e-4 if architecture == glm.PLAIN else 2e-3)
