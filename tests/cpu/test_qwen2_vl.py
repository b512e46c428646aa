"""Qwen2-VL and Qwen2.5-VL see pictures: embeddings, positions, logits and greedy answers equal transformers'."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hunyuan_models import picture
from tokenizers_for_tests import byte_level, write_folder

from isobit.checkpoint.reader import Checkpoint
from isobit.engine.generate import load_llm
from isobit.engine.params import SamplingParams
from isobit.errors import ModelError, UsageError
from isobit.media.values import Clip, Picture, Sound
from isobit.models.batch import Batch, Overlay
from isobit.models.encoders.qwen2_vl import QwenTower
from isobit.models.media import MediaPrompt
from isobit.models.weights import load_model

IMAGE, VIDEO, BEGIN, END = 315, 316, 313, 314
TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "Qwen2VLForConditionalGeneration": {
        "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
    "Qwen2_5_VLForConditionalGeneration": {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
        "fullatt_block_indexes": [1], "window_size": 16},
}  # fmt: skip
PROCESSOR = {"min_pixels": 64, "max_pixels": 4096, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
CASES: list[tuple[list[int | None], list[tuple[int, int]]]] = [
    ([5, None, 9], [(37, 51)]),
    ([None, 3, None, 30], [(5, 190), (64, 40)]),
    ([20, None, 0, None, 1, None, 2], [(1, 1), (3, 64), (200, 333)]),
    ([30], []),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Architecture to (transformers' model, folder), each made once."""

    @cache
    def make(architecture: str) -> tuple[Any, Path]:
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(len(architecture))
        cls = getattr(transformers, architecture)
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": BEGIN}
        config = cls.config_class(text_config=TEXT, vision_config=VISION[architecture], vision_end_token_id=END, **ids)
        model = cls(config).float().eval()
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                parameter.data.uniform_(0.5, 1.5)
        folder = write_folder(tmp_path_factory.mktemp(architecture), byte_level())
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        return model, folder

    return make


@pytest.fixture(params=VISION)
def one(request, saved):
    return saved(request.param)


def words(parts: list[int | None], seed: int = 0) -> list[int]:
    numbers = torch.Generator().manual_seed(seed)
    found: list[int] = []
    for part in parts:
        text = [BEGIN, IMAGE, END] if part is None else torch.randint(5, 300, (part,), generator=numbers).tolist()
        found += text
    return found


def prepared(pictures: list[Picture]) -> dict[str, torch.Tensor]:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    made = Qwen2VLImageProcessorPil(**PROCESSOR)([Image.fromarray(one.pixels) for one in pictures], return_tensors="pt")
    return dict(made)


def inputs(prompt: MediaPrompt, pictures: list[Picture]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([prompt.ids])
    media = prepared(pictures) | {"mm_token_type_ids": (ids == IMAGE).int()} if pictures else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media}


def tower(folder: Path) -> QwenTower:
    return QwenTower(Checkpoint.open(folder), torch.float32)


@torch.no_grad()
def test_embeddings_positions_and_logits_equal_transformers(one: tuple[Any, Path]) -> None:
    model, folder = one
    mine, decoder = tower(folder), load_model(folder)
    for number, (parts, sizes) in enumerate(CASES):
        pictures = [picture(*size, seed=number) for size in sizes]
        prompt = mine.prompt(words(parts, number), pictures)
        given, overlay = inputs(prompt, pictures), None
        if pictures:
            seen = [mine.encode(placed.piece) for placed in prompt.placed]
            wanted = model.get_image_features(given["pixel_values"], given["image_grid_thw"]).pooler_output
            assert all((a - b).abs().max() <= 1e-4 for a, b in zip(seen, wanted, strict=True))
            positions, deltas = model.model.get_rope_index(
                given["input_ids"], given["mm_token_type_ids"], given["image_grid_thw"]
            )
            assert prompt.positions is not None and torch.equal(prompt.positions.T, positions[:, 0])
            assert prompt.shift == int(deltas)
            rows = [place for placed in prompt.placed for place in placed.places]
            overlay = Overlay(torch.tensor(rows), torch.cat(seen))
        found = decoder.forward(Batch.of([prompt.ids], positions=[prompt.positions], overlays=[overlay]))
        assert (found - model(**given).logits[0]).abs().max() <= 1e-4


def test_answers_alone_beside_others_and_behind_a_prefix(one: tuple[Any, Path]) -> None:
    model, folder = one
    llm = load_llm(folder, "float32", "cpu", cache_tokens=4096)
    assert llm.tower is not None and not [note for note in llm.notes if "vision" in note]
    greedy = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    prompts, wanted = [], []
    for number, (parts, sizes) in enumerate(CASES):
        pictures = [picture(*size, seed=number) for size in sizes]
        prompts.append(llm.tower.prompt(words(parts, number), pictures))
        made = model.generate(
            **inputs(prompts[-1], pictures), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        wanted.append(made[0, len(prompts[-1].ids) :].tolist())
    assert [[*answer.token_ids] for answer in llm.generate(prompts, greedy)] == wanted
    again = [llm.generate(prompt, greedy)[0] for prompt in prompts]
    assert [[*answer.token_ids] for answer in again] == wanted and sum(one.usage.cached_tokens for one in again) > 64


def test_what_is_not_taken_is_refused(one: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = one
    mine, clip = tower(folder), Clip(picture(9, 9).pixels[None], 2.0)
    parts: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "video"}]}]
    for media, ids, said in (
        ([clip], [IMAGE], "no videos yet"),
        ([Sound(torch.zeros(9).numpy(), 16000)], [IMAGE], "takes no audio"),
        ([picture(3, 601)], [IMAGE], "601 by 3 pixels"),
        ([picture(9, 9)], [5], "0 places for images"),
    ):
        with pytest.raises(UsageError, match=said):
            mine.prompt(ids, media)
    with pytest.raises(UsageError, match="no videos yet"):
        mine.messages(parts, [clip])
    with pytest.raises(UsageError, match="no videos yet"):
        mine.messages(parts, [])
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for wrong, said in (
        ({"depth": 0}, "depth = 0"), ({"num_heads": 5}, "num_heads = 5"), ({"hidden_act": "x"}, "hidden_act = 'x'"),
        ({"patch_size": [4, 4]}, "patch_size = "),
    ):  # fmt: skip
        changed = config | {"vision_config": config["vision_config"] | wrong}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=said):
            tower(tmp_path)
