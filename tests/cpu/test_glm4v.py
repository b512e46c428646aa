"""GLMs that see: what transformers computes for pictures and videos of several sizes, from the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import glm4v_models as glm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.video_utils import VideoMetadata

from isobit.checkpoint.reader import Checkpoint
from isobit.models.batch import Batch, Overlay
from isobit.models.encoders import glm4v as tower_file
from isobit.models.media import Clip, MediaPrompt, Picture
from isobit.models.weights import load_model

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


def logits(folder: Path, tower: tower_file.Tower, prompt: MediaPrompt) -> torch.Tensor:
    """Of all tokens of a prompt, without a cache."""
    model = load_model(folder)
    batch = Batch.of([prompt.ids], positions=[prompt.positions], overlays=[overlay(tower, prompt)])
    with torch.inference_mode():
        return model.forward(batch)


def overlay(tower: tower_file.Tower, prompt: MediaPrompt) -> Overlay:
    rows = [place for placed in prompt.placed for place in placed.places]
    return Overlay(torch.tensor(rows), torch.cat([tower.encode(placed.piece) for placed in prompt.placed]))


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


@pytest.mark.parametrize("case", PROMPTS)
def test_pictures_give_the_logits_of_transformers(saved, case: str) -> None:
    name, model, folder = saved
    prompt, expected, tower = prepared(name, folder, case)
    with torch.inference_mode():
        wanted = model(**expected).logits[0]
    assert float((logits(folder, tower, prompt) - wanted).abs().max()) <= TOLERANCE


def test_text_alone_gives_the_logits_of_transformers(saved) -> None:
    _, model, folder = saved
    ids, decoder = encoded("<|user|>\nwhat is it<|assistant|>\n"), load_model(folder)
    prompt = open_tower(folder).prompt(ids, [])
    assert prompt.ids == tuple(ids)
    assert prompt.positions is None
    with torch.inference_mode():
        assert float((decoder(Batch.of([ids])) - model(torch.tensor([ids])).logits[0]).abs().max()) <= TOLERANCE


def test_step_by_step_equals_the_whole_prompt(saved) -> None:
    """In parts that cut a picture in two, then token by token behind it."""
    name, _, folder = saved
    prompt, _, tower = prepared(name, folder, "two")
    decoder, seen = load_model(folder), overlay(tower, prompt)
    more = encoded(" yes, it is")
    ids = [*prompt.ids, *more]
    behind = torch.arange(prompt.following, prompt.following + len(more))[:, None].expand(-1, 3)
    told = torch.cat([prompt.positions, behind])
    middle = prompt.placed[0].places[3]
    with torch.inference_mode():
        whole = decoder(Batch.of([ids], positions=[told], overlays=[seen]))
        cache, parts = decoder.new_cache(1, len(ids)), []
        for begin, end in [
            (0, middle),
            (middle, len(prompt.ids)),
            *((n, n + 1) for n in range(len(prompt.ids), len(ids))),
        ]:
            inside = (seen.rows >= begin) & (seen.rows < end)
            part = Overlay(seen.rows[inside] - begin, seen.embeds[inside])
            parts.append(decoder(cache.next([ids[begin:end]], positions=[told[begin:end]], overlays=[part]), cache))
    assert float((torch.cat(parts) - whole).abs().max()) <= TOLERANCE


# ---------------------------------------------------------------------- videos


MOVE = "<|begin_of_video|><|video|><|end_of_video|>"
CLIPS = [((13, 20, 30), 4.0), ((1, 40, 24), 1.0), ((5, 9, 70), 0.5)]  # frames, height, width; frames a second


def theirs_with_videos(name: str, folder: Path, text: str, clips: list[Clip]) -> dict[str, torch.Tensor]:
    """What transformers makes of a text and videos: its own functions on frames that it would have taken."""
    given = json.loads((folder / "video_preprocessor_config.json").read_text())
    merge, newer = given["merge_size"], name in NEWER
    processor, source = glm.processor(newer, merge), glm.VideoFunctions(newer)
    values, grids, written = [], [], text
    for clip in clips:
        metadata = VideoMetadata(len(clip.frames), clip.rate, duration=len(clip.frames) / clip.rate)
        metadata.frames_indices = source.sample_frames(metadata, given).tolist()
        patches, grid = source.preprocess(clip.frames[metadata.frames_indices], given)
        values.append(patches)
        grids.append(grid)
        inputs = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [metadata]}
        frames = processor.replace_video_token(inputs, 0).replace("<|image|>", "<|one|>")
        written = written.replace("<|video|>", frames, 1)
    ids = encoded(written.replace("<|one|>", "<|image|>"))
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor(processor.create_mm_token_type_ids([ids])),
        "pixel_values_videos": torch.cat(values),
        "video_grid_thw": torch.tensor(grids),
    }


@pytest.mark.parametrize("which", [[0], [1], [2, 0]], ids=str)
def test_videos_give_what_transformers_gives(saved, which: list[int]) -> None:
    name, model, folder = saved
    clips = [Clip(glm.pixels(*CLIPS[number][0]), CLIPS[number][1]) for number in which]
    text = "<|user|>\n" + "then ".join([MOVE] * len(clips)) + "?<|assistant|>\n"
    expected, tower = theirs_with_videos(name, folder, text, clips), open_tower(folder)
    prompt = tower.prompt(encoded(text), clips)
    assert list(prompt.ids) == expected["input_ids"][0].tolist()
    for placed, (count, rows, columns) in zip(prompt.placed, expected["video_grid_thw"].tolist(), strict=True):
        assert placed.piece.inputs["grid"].tolist() == [[1, rows, columns]] * count
    patches = torch.cat([placed.piece.inputs["patches"] for placed in prompt.placed])
    assert torch.equal(patches, expected["pixel_values_videos"])
    keys = ("input_ids", "mm_token_type_ids", "video_grid_thw")
    positions, delta = model.model.get_rope_index(**{key: expected[key] for key in keys})
    assert torch.equal(prompt.positions, positions[:, 0].T)
    assert prompt.shift == int(delta)
    with torch.inference_mode():
        wanted = model(**expected).logits[0]
    assert float((logits(folder, tower, prompt) - wanted).abs().max()) <= TOLERANCE


def test_a_picture_beside_a_video(saved) -> None:
    """transformers takes both for one kind in its check of numbers, so it is given their embeddings."""
    name, model, folder = saved
    clip, picture = Clip(glm.pixels(6, 20, 20), 2.0), Picture(glm.pixels(30, 20))
    text, tower = f"a{MOVE}b{ONE}c", open_tower(folder)
    prompt = tower.prompt(encoded(text), [clip, picture])
    assert [placed.piece.kind for placed in prompt.placed] == ["video", "image"]
    ids = torch.tensor([prompt.ids])
    kinds = torch.tensor(glm.processor(name in NEWER, 2).create_mm_token_type_ids(ids.tolist()))
    frames, still = (placed.piece.inputs["grid"] for placed in prompt.placed)
    videos = torch.tensor([[len(frames), *frames[0].tolist()[1:]]])
    positions, delta = model.model.get_rope_index(ids, kinds, image_grid_thw=still, video_grid_thw=videos)
    assert torch.equal(prompt.positions, positions[:, 0].T)
    assert prompt.shift == int(delta)
    seen = overlay(tower, prompt)
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(ids).index_copy(1, seen.rows, seen.embeds[None])
        wanted = model(inputs_embeds=embeds, position_ids=positions).logits[0]
    assert float((logits(folder, tower, prompt) - wanted).abs().max()) <= TOLERANCE


def test_frames_are_encoded_a_few_at_a_time_as_all_at_once(saved_as, monkeypatch) -> None:
    _, folder = saved_as("plain")
    tower = open_tower(folder)
    piece = tower.prompt(encoded(MOVE), [Clip(glm.pixels(30, 20, 30), 4.0)]).placed[0].piece
    assert len(piece.inputs["grid"]) > 3
    whole = tower.encode(piece)
    monkeypatch.setattr(tower_file, "_AT_ONCE", 70)
    assert off(tower.encode(piece), whole) <= 1e-5


# ---------------------------------------------------------------------- other files


def moved(folder: Path, out: Path, rename: Callable[[str], str], *, pickled: bool = False) -> Path:
    """The same model with tensors of other names, or in an old file."""
    shutil.copytree(folder, out)
    tensors = {rename(name): value for name, value in load_file(out / "model.safetensors").items()}
    (out / "model.safetensors").unlink()
    if pickled:
        torch.save(tensors, out / "pytorch_model.bin")
    else:
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


VINTAGES: dict[str, Callable[[str], str]] = {
    "as it is": lambda name: name,
    "tower outside": lambda name: name.replace("model.visual.", "visual.").replace("language_model.", ""),
    "wrapped": lambda name: f"language_model.{name.replace('language_model.', '')}" if ".visual." not in name else name,
}  # fmt: skip


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("vintage", VINTAGES)
def test_names_and_files_of_other_vintages(saved_as, tmp_path: Path, vintage: str, pickled: bool) -> None:
    _, folder = saved_as("experts")
    other = moved(folder, tmp_path / "other", VINTAGES[vintage], pickled=pickled)
    prompt, _, tower = prepared("experts", folder, "one")
    again = open_tower(other)
    assert torch.equal(again.encode(prompt.placed[0].piece), tower.encode(prompt.placed[0].piece))
    assert torch.equal(logits(other, again, prompt), logits(folder, tower, prompt))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tower_has_the_dtype_of_the_decoder(saved_as, dtype: torch.dtype) -> None:
    _, folder = saved_as("plain")
    prompt, _, tower = prepared("plain", folder, "one")
    rounded = tower_file.open(Checkpoint.open(folder), dtype).encode(prompt.placed[0].piece)
    assert rounded.dtype == dtype
    assert 0 < off(rounded.float(), tower.encode(prompt.placed[0].piece)) < 0.1


def test_the_same_picture_has_the_same_key(saved_as) -> None:
    _, folder = saved_as("plain")
    tower, ids = open_tower(folder), encoded("<|image|><|image|><|image|>")
    one, two = Picture(glm.pixels(20, 31)), Picture(glm.pixels(20, 31, seed=1))
    keys = [placed.piece.key for placed in tower.prompt(ids, [one, two, Picture(one.pixels.copy())]).placed]
    assert keys[0] == keys[2] != keys[1]


def test_pictures_without_anything_between_them(saved_as) -> None:
    """transformers takes them for one and fails: here each begins where the one before it ends."""
    _, folder = saved_as("plain")
    tower, pictures = open_tower(folder), [Picture(glm.pixels(16, 24)), Picture(glm.pixels(24, 16))]
    prompt = tower.prompt(encoded("<|image|><|image|>"), pictures)
    assert [placed.places for placed in prompt.placed] == [(0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11)]
    assert prompt.positions is not None
    assert prompt.positions[6:].tolist() == [[3, 3 + row, 3 + column] for row in range(3) for column in range(2)]
    assert (prompt.following, prompt.shift) == (6, -6)
