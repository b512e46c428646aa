"""GLMs that see: what transformers computes for pictures and videos of several sizes, from the same weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import glm4v_models as glm
import numpy as np
import pytest
import torch

from isobit.checkpoint.reader import Checkpoint
from isobit.models.encoders import glm4v as tower_file
from isobit.models.media import MediaPrompt, Picture

TOLERANCE = 1e-4
# Of each family a model like the published ones, and one whose sizes are unlike them in every way.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"architecture": glm.PLAIN},
    "newer": {"architecture": glm.NEWER, "seed": 1},
    "experts": {"architecture": glm.EXPERTS, "seed": 2},
    "odd": {
        "architecture": glm.PLAIN,
        "seed": 3,
        "text": {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1, "rope_parameters": {
            "rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5, "mrope_section": [5, 4, 7]}},
        "vision": {"depth": 3, "hidden_size": 72, "num_heads": 3, "patch_size": 3, "image_size": 33,
                   "spatial_merge_size": 3, "out_hidden_size": 192, "attention_bias": True, "intermediate_size": 56},
    },
    "odd experts": {
        "architecture": glm.EXPERTS,
        "seed": 4,
        "text": {"hidden_size": 96, "num_attention_heads": 6, "head_dim": 32, "n_group": 2, "topk_group": 1,
                 "n_shared_experts": 2, "first_k_dense_replace": 2, "attention_bias": False, "rope_parameters": {
                     "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
                     "mrope_section": [2, 8, 6]}},
        "vision": {"depth": 1, "out_hidden_size": 96, "patch_size": 5, "image_size": 20},
    },
}  # fmt: skip
NEWER = ("newer", "odd experts")  # whose videos are taken as GLM-4.6V's are


@pytest.fixture(scope="module")
def saved_as(tmp_path_factory):
    """Name of a model to (transformers model, folder), each made once."""

    @cache
    def make(name):
        model = glm.make(**MODELS[name])
        return model, glm.save(model, tmp_path_factory.mktemp("glm"), newer=name in NEWER)

    return make


@pytest.fixture(params=MODELS)
def saved(request, saved_as):
    return request.param, *saved_as(request.param)


def open_tower(folder: Path) -> tower_file.Tower:
    return tower_file.open(Checkpoint.open(folder), torch.float32)


def encoded(text: str) -> list[int]:
    return glm.tokenizer().encode(text, add_special_tokens=False).ids


def theirs(name: str, folder: Path, text: str, pictures: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of a text and pictures."""
    merge = json.loads((folder / "preprocessor_config.json").read_text())["merge_size"]
    processor = glm.processor(name in NEWER, merge)
    read = glm.picture_processor(folder)(pictures, return_tensors="pt", input_data_format="channels_last")
    read = {key: torch.as_tensor(value) for key, value in read.items()}
    for number in range(len(pictures)):
        text = text.replace("<|image|>", processor.replace_image_token(read, number).replace("image", "one"), 1)
    ids = encoded(text.replace("<|one|>", "<|image|>"))
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor(processor.create_mm_token_type_ids([ids])),
        "pixel_values": read["pixel_values"],
        "image_grid_thw": read["image_grid_thw"],
    }


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def prepared(name: str, folder: Path, case: str) -> tuple[MediaPrompt, dict[str, torch.Tensor], tower_file.Tower]:
    """A prompt by the tower, and by transformers."""
    text, sizes = PROMPTS[case]
    pictures = [glm.pixels(*size) for size in sizes]
    tower = open_tower(folder)
    return tower.prompt(encoded(text), [Picture(one) for one in pictures]), theirs(name, folder, text, pictures), tower


ONE = "<|begin_of_image|><|image|><|end_of_image|>"
PROMPTS = {
    "one": (f"<|user|>\n{ONE}what is it<|assistant|>\n", [(20, 31)]),
    "two": (f"<|user|>\n{ONE}and{ONE}?<|assistant|>\n", [(33, 57), (57, 17)]),
    "three sizes": (f"a{ONE}{ONE} b{ONE}", [(3, 50), (100, 40), (1, 1)]),
    "at the very ends": ("<|image|>between<|image|>", [(40, 8), (16, 24)]),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_pictures_are_what_transformers_makes_of_them(saved, case: str) -> None:
    """Tokens, positions and embeddings."""
    name, model, folder = saved
    prompt, expected, tower = prepared(name, folder, case)
    assert list(prompt.ids) == expected["input_ids"][0].tolist()
    positions, delta = model.model.get_rope_index(**{key: expected[key] for key in expected if key != "pixel_values"})
    assert torch.equal(prompt.positions, positions[:, 0].T)
    assert prompt.shift == int(delta)
    with torch.inference_mode():
        found = model.model.get_image_features(expected["pixel_values"], expected["image_grid_thw"]).pooler_output
    assert [len(one) for one in found] == [placed.piece.tokens for placed in prompt.placed]
    seen = [tower.encode(placed.piece) for placed in prompt.placed]
    assert max(off(ours, theirs) for ours, theirs in zip(seen, found, strict=True)) <= TOLERANCE
