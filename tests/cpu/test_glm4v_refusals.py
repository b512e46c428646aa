"""What GLMs that see do not take: media, files and configurations, each refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glm4v_models as glm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, ModelError, UsageError
from isobit.models.archs import model_config
from isobit.models.encoders import glm4v as tower_file
from isobit.models.media import Clip, Picture, Sound

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return glm.save(glm.make(glm.PLAIN), tmp_path_factory.mktemp("glm"))


@pytest.fixture(scope="module")
def tower(folder: Path) -> tower_file.Tower:
    return tower_file.open(Checkpoint.open(folder), torch.float32)


def ids(text: str) -> list[int]:
    return glm.tokenizer().encode(text, add_special_tokens=False).ids


def picture(height: int = 16, width: int = 16) -> Picture:
    return Picture(np.zeros((height, width, 3), np.uint8))


def clip(count: int = 2, height: int = 16, width: int = 16, rate: float = 1.0) -> Clip:
    return Clip(np.zeros((count, height, width, 3), np.uint8), rate)


@pytest.mark.parametrize(
    ("text", "media", "why"),
    [
        ("<|image|>", [], "places for 1 picture, and none are given"),
        ("hello", [picture()], "places for none, and 1 picture are given"),
        ("<|image|>", [picture(), picture()], "places for 1 picture, and 2 pictures"),
        ("<|image|><|image|>", [picture()], "places for 2 pictures, and 1 picture"),
        ("<|image|>", [clip()], "places for 1 picture, and 1 video"),
        ("<|video|><|image|>", [clip(), clip()], "places for 1 picture and 1 video, and 2 videos"),
        ("<|image|>", [Sound(np.zeros(9, np.float32), 16000)], "1 sound"),
        ("<|image|>", [picture(0, 16)], "16 x 0 pixels: there is nothing to see"),
        ("<|image|>", [picture(16, 0)], "there is nothing to see"),
        ("<|image|>", [picture(1, 201)], "1.* x .*201"),
        ("<|image|>", [picture(3000, 8)], "8 x 3000 pixels cannot be read"),
        ("<|video|>", [clip(0)], "0 frames"),
        ("<|video|>", [clip(2, 0, 5)], "5 x 0"),
        ("<|video|>", [clip(2, 8, 1700)], "too long"),
        ("<|video|>", [clip(rate=0.0)], "0 a second"),
    ],
)
def test_media_that_do_not_fit_the_prompt(tower, text: str, media: list[Any], why: str) -> None:
    if why == "1.* x .*201":  # smaller than a patch, it is made larger first: 8 x 1608
        why = "201 x 1 pixels cannot be read"
    with pytest.raises(UsageError, match=why):
        tower.prompt(ids(text), media)


def test_the_longest_that_is_read(tower) -> None:
    assert tower.prompt(ids("<|image|>"), [picture(8, 1600)]).placed[0].piece.tokens > 0
    assert tower.prompt(ids("<|image|>"), [picture(1, 1)]).placed[0].piece.tokens > 0
    assert tower.prompt(ids("<|video|>"), [clip(1, 8, 1600)]).placed[0].piece.tokens > 0


@pytest.mark.parametrize(
    ("parts", "media", "why"),
    [
        ([IMAGE], [], "parts for 1 picture, and none"),
        ([], [picture()], "parts for none, and 1 picture"),
        ([IMAGE, VIDEO], [clip(), picture()], "in the same order"),
        ([{"type": "audio"}], [Sound(np.zeros(9, np.float32), 16000)], "hear"),
        ([IMAGE, VIDEO, IMAGE], [picture(), picture()], "2 pictures and 1 video"),
    ],
)
def test_messages_have_a_part_for_each(tower, parts: list[dict[str, str]], media: list[Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        tower.messages([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}], media)


def test_messages_stay_as_they_are(tower) -> None:
    given = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [VIDEO, IMAGE]}]
    assert tower.messages(given, [clip(), picture()]) == given
    assert tower.messages(given[:1], []) == given[:1]


# ---------------------------------------------------------------------- files


def changed(folder: Path, out: Path, name: str, change: Callable[[Any], None]) -> Path:
    shutil.copytree(folder, out)
    if name.endswith(".json"):
        value = json.loads((out / name).read_text())
        change(value)
        (out / name).write_text(json.dumps(value))
    else:
        tensors = load_file(out / name)
        change(tensors)
        save_file(tensors, out / name, {"format": "pt"})
    return out


PICTURES, VIDEOS = "preprocessor_config.json", "video_preprocessor_config.json"
VISUAL = "model.visual."


def vision(**keys: Any) -> Callable[[Any], None]:
    return lambda config: config["vision_config"].update(keys)


def without(name: str) -> Callable[[Any], None]:
    return lambda tensors: tensors.pop(VISUAL + name)


@pytest.mark.parametrize(
    ("file", "change", "error", "why"),
    [
        (PICTURES, lambda s: s.update(patch_size=14), ModelError, "patch_size = 14: the tower's is 4"),
        (PICTURES, lambda s: s.update(merge_size=0), ModelError, "merge_size"),
        (PICTURES, lambda s: s.update(size={"shortest_edge": 10**12}), ModelError, "shortest_edge"),
        (PICTURES, lambda s: s["size"].update(shortest_edge=9000), ModelError, "longest_edge is 4608"),
        (PICTURES, lambda s: s.update(size=[1, 2]), ModelError, "size"),
        (PICTURES, lambda s: s.update(image_mean=[0.5]), ModelError, "three numbers"),
        (PICTURES, lambda s: s.update(image_std=[0.5, 0, 1]), ModelError, "above 0"),
        (PICTURES, lambda s: s.update(image_processor_type="SiglipImageProcessor"), ModelError, "Siglip"),
        (PICTURES, lambda s: s.update(do_resize=False), ModelError, "do_resize"),
        (VIDEOS, lambda s: s.update(fps=0), ModelError, "fps"),
        (VIDEOS, lambda s: s.update(temporal_patch_size=4), ModelError, "temporal_patch_size = 4"),
        (VIDEOS, lambda s: s.update(video_processor_type="Qwen2VLVideoProcessor"), ModelError, "Qwen2VL"),
        (VIDEOS, lambda s: s.update(resample=0), ModelError, "resample"),
        ("config.json", vision(depth=0), ModelError, "depth"),
        ("config.json", vision(num_heads=5), ModelError, "four times num_heads"),
        ("config.json", vision(out_hidden_size=64), ModelError, "the decoder's hidden_size is 128"),
        ("config.json", vision(patch_size=[4, 4]), ModelError, "patch_size"),
        ("config.json", vision(hidden_act="no such"), ModelError, "hidden_act"),
        ("config.json", vision(image_size=1 << 20), ModelError, "image_size"),
        ("config.json", vision(rms_norm_eps=0.0), ModelError, "rms_norm_eps"),
        ("config.json", vision(rms_norm_eps=-0.5), ModelError, "rms_norm_eps"),
        ("config.json", vision(rms_norm_eps=1e308), ModelError, "rms_norm_eps"),
        ("config.json", vision(rms_norm_eps="1"), ModelError, "rms_norm_eps"),
        ("config.json", vision(attention_bias=2), ModelError, "attention_bias"),
        ("config.json", vision(out_hidden_size=None), ModelError, "hidden_size is 128"),
        ("config.json", vision(attention_dropout=0.5), ModelError, "attention_dropout"),
        ("config.json", vision(hidden_size=1 << 24, intermediate_size=1 << 24), CheckpointError, "model.visual"),
        ("config.json", vision(depth=3), CheckpointError, "blocks.2"),
        ("config.json", lambda c: c.update(video_token_id=c["image_token_id"]), ModelError, "_token_id is the same"),
        ("config.json", vision(rope_parameters={"rope_type": "yarn", "factor": 2.0}), ModelError, "rope_type"),
        ("config.json", lambda c: c.update(vision_config=[]), ModelError, "vision_config"),
        ("model.safetensors", without("blocks.1.attn.qkv.weight"), CheckpointError, "blocks.1.attn.qkv"),
        ("model.safetensors", without("downsample.bias"), CheckpointError, "downsample.bias"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(folder, tmp_path, file: str, change: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        tower_file.open(Checkpoint.open(changed(folder, tmp_path / "it", file, change)), torch.float32)


@pytest.mark.parametrize(
    "keys",
    [{"rms_norm_eps": None}, {"attention_bias": None}, {"hidden_act": None}, {"attention_dropout": 0},
     {"attention_bias": 0}, {"attention_dropout": None}, {"initializer_range": 1}, {"rope_parameters": None}],
)  # fmt: skip
def test_null_and_whole_numbers_are_what_they_mean(folder, tower, tmp_path, keys: dict[str, Any]) -> None:
    made = changed(folder, tmp_path / "it", "config.json", vision(**keys))
    other = tower_file.open(Checkpoint.open(made), torch.float32)
    piece = tower.prompt(ids("<|image|>"), [Picture(glm.pixels(20, 24))]).placed[0].piece
    assert torch.equal(other.encode(piece), tower.encode(piece))


def test_an_epsilon_that_is_a_whole_number(folder, tower, tmp_path) -> None:
    made = [changed(folder, tmp_path / str(n), "config.json", vision(rms_norm_eps=n)) for n in (1, 1.0)]
    one, same = (tower_file.open(Checkpoint.open(path), torch.float32) for path in made)
    piece = tower.prompt(ids("<|image|>"), [Picture(glm.pixels(20, 24))]).placed[0].piece
    assert torch.equal(one.encode(piece), same.encode(piece))
    assert not torch.equal(one.encode(piece), tower.encode(piece))


def test_without_files_of_settings_the_processors_usual_ones_count(folder: Path, tmp_path: Path) -> None:
    """Those of the published models, whose patches have 14 pixels: another tower is refused."""
    shutil.copytree(folder, tmp_path / "it", ignore=shutil.ignore_patterns("*preprocessor*"))
    with pytest.raises(ModelError, match="patch_size = 14: the tower's is 4"):
        tower_file.open(Checkpoint.open(tmp_path / "it"), torch.float32)


def text(**keys: Any) -> dict[str, Any]:
    config = {"architectures": [glm.PLAIN], "model_type": "glm4v"} | glm.family("glm4v").tiny()
    return config | {"text_config": config["text_config"] | keys}


def rope(**keys: Any) -> dict[str, Any]:
    usual = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    return text(rope_parameters=usual | keys)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (text(head_dim=64), "hidden_size / num_attention_heads = 32"),
        (text(attention_bias=False), "attention_bias"),
        (text(model_type="glm4_moe_text"), "glm4v_text"),
        (text(unknown_thing=3), "unknown_thing"),
        (rope(mrope_section=[4, 4]), "three numbers"),
        (rope(mrope_section=[2, 3, 4]), "mrope_section"),
        (rope(mrope_section=None, partial_rotary_factor=1.0), r"\[8, 12, 12\]"),
        (text() | {"unknown_thing": 3}, "unknown_thing"),
        (text() | {"text_config": None, "hidden_size": 100}, "hidden_size"),
    ],
)
def test_configurations_that_ask_for_something_else(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        model_config(config)


def test_experts_with_norms_of_queries_are_refused() -> None:
    config = {"architectures": [glm.EXPERTS]} | glm.family("glm4v_moe").tiny()
    config["text_config"]["use_qk_norm"] = True
    with pytest.raises(ModelError, match="transformers leaves out"):
        model_config(config)
