"""HunyuanOCR: tower, positions and logits equal transformers', in every layout that its checkpoints have."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import hunyuan_models as tiny
import pytest
import torch
import transformers
from hunyuan_models import LAYOUTS, picture, words

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, ModelError, UsageError
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.media.values import Clip, Picture, Sound
from isobit.models.batch import Batch, Overlay
from isobit.models.encoders.hunyuan_vl import HunyuanTower
from isobit.models.media import MediaPrompt
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

# Pixels: even, odd, narrow, long, fewer and more than the model takes, and with as many rows as there are colours.
SIZES = [(32, 32), (37, 51), (5, 190), (64, 7), (1, 1), (3, 40), (200, 333), (16, 16)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Layout and seed to (transformers' model, folder), each made once."""

    @cache
    def make(layout: str = "nested", seed: int = 0) -> tuple[Any, Path]:
        model = tiny.make(seed)
        return model, tiny.save(model, tmp_path_factory.mktemp(layout), layout)

    return make


def tower(folder: Path) -> HunyuanTower:
    return HunyuanTower(Checkpoint.open(folder), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_embeddings_equal_transformers(saved, layout: str) -> None:
    model, folder = saved(layout, LAYOUTS.index(layout))
    mine = tower(folder)
    for number, (height, width) in enumerate(SIZES):
        image = picture(height, width, number)
        given = tiny.prepared([image])
        (wanted,) = model.get_image_features(given["pixel_values"], given["image_grid_thw"]).pooler_output
        piece = mine.piece(image)
        found = mine.encode(piece)
        assert found.shape == (piece.tokens, 64)
        assert (found - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_does_not_depend_on_what_comes_beside_it(saved, layout: str) -> None:
    _, folder = saved(layout, LAYOUTS.index(layout))
    mine = tower(folder)
    pieces = [mine.piece(picture(height, width)) for height, width in SIZES]
    alone = [mine.encode(piece) for piece in pieces]
    assert all(torch.equal(one, mine.encode(piece)) for one, piece in zip(alone, pieces, strict=True))
    assert len({piece.key for piece in pieces}) == len(pieces)
    assert mine.piece(picture(*SIZES[1])).key == pieces[1].key != mine.piece(picture(*SIZES[1], seed=1)).key


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([(37, 51)], (4, None, 9)),
        ([(5, 190), (64, 7)], (None, 3, None, 2)),
        ([(1, 1), (200, 333), (32, 32)], (1, None, None, None, 40)),
        ([], (12,)),
    ],
)
def test_positions_equal_transformers(saved, sizes: list[tuple[int, int]], parts: tuple[int | None, ...]) -> None:
    model, folder = saved()
    pictures = [picture(*size) for size in sizes]
    made = tower(folder).prompt(words(*parts), pictures)
    ids = torch.tensor([made.ids])
    if not pictures:
        assert (made.ids, made.placed, made.positions, made.shift) == (tuple(words(*parts)), (), None, 0)
        return
    grid = tiny.prepared(pictures)["image_grid_thw"]
    wanted, deltas = model.model.get_rope_index(ids, (ids == tiny.TOKEN).int(), grid)
    assert made.positions is not None and torch.equal(made.positions.T, wanted[:, 0])
    assert made.shift == int(deltas) and made.following == len(made.ids) + int(deltas)
    places = [place for one in made.placed for place in one.places]
    assert places == [place for place, id in enumerate(made.ids) if id == tiny.TOKEN]
    assert [one.piece.tokens for one in made.placed] == [
        rows // 2 * (columns // 2 + 1) + 2 for _, rows, columns in grid.tolist()
    ]


def overlay(mine: HunyuanTower, made: MediaPrompt) -> Overlay | None:
    if not made.placed:
        return None
    rows = torch.tensor([place for one in made.placed for place in one.places])
    return Overlay(rows, torch.cat([mine.encode(one.piece) for one in made.placed]))


PROMPTS: list[tuple[tuple[int | None, ...], list[tuple[int, int]]]] = [
    ((4, None, 9), [(37, 51)]),
    ((None, 3, None, 2), [(5, 190), (64, 40)]),
    ((30,), []),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_logits_equal_transformers(saved, layout: str, seed: int) -> None:
    model, folder = saved(layout, seed)
    mine, decoder = tower(folder), load_model(folder)
    for parts, sizes in PROMPTS:
        pictures = [picture(*size) for size in sizes]
        made = mine.prompt(words(*parts, seed=seed), pictures)
        with torch.inference_mode():
            batch = Batch.of([made.ids], positions=[made.positions], overlays=[overlay(mine, made)])
            found = decoder.forward(batch)
        assert (found - tiny.logits(model, made.ids, pictures)).abs().max() <= 1e-4


ODD_TEXT = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 24, "attention_bias": True, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e5, "alpha": 9.0, "factor": 1.0,
                        "mrope_section": [1, 2, 5, 3, 1]},
}  # fmt: skip
ODD_VISION = {
    "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "patch_size": 5, "spatial_merge_size": 3,
    "max_image_size": 35, "interpolate_mode": "bicubic", "hidden_act": "gelu_pytorch_tanh", "text_hidden_size": 48,
}  # fmt: skip


@torch.no_grad()
def test_sizes_unlike_the_published_ones(tmp_path: Path) -> None:
    model = tiny.make(11, vision=ODD_VISION, **ODD_TEXT)
    settings = {"patch_size": 5, "merge_size": 3, "min_pixels": 400}
    folder = copied(tiny.save(model, tmp_path / "made"), tmp_path / "copy", **settings)
    mine, decoder = tower(folder), load_model(folder)
    pictures = [picture(33, 61), picture(7, 90)]
    made = mine.prompt(words(3, None, 1, None, 8), pictures)
    found = decoder.forward(Batch.of([made.ids], positions=[made.positions], overlays=[overlay(mine, made)]))
    assert (found - tiny.logits(model, made.ids, pictures, **settings)).abs().max() <= 1e-4


@torch.inference_mode()
def test_decoding_equals_prefill(saved) -> None:
    _, folder = saved()
    mine, decoder = tower(folder), load_model(folder)
    made = mine.prompt(words(4, None, 9), [picture(37, 51)])
    assert made.positions is not None and made.following is not None
    answer = words(6, seed=9)
    ids = [*made.ids, *answer]
    behind = torch.arange(made.following, made.following + len(answer))[:, None].expand(-1, made.positions.shape[1])
    positions = torch.cat((made.positions, behind))
    whole = decoder.forward(Batch.of([ids], positions=[positions], overlays=[overlay(mine, made)]))
    cache = decoder.new_cache(1, len(ids))
    first = cache.next([made.ids], positions=[made.positions], overlays=[overlay(mine, made)])
    found = [decoder.forward(first, cache)]
    for number, id in enumerate(answer):
        batch = cache.next([[id]], positions=[behind[number : number + 1]])
        found.append(decoder.forward(batch, cache))
    assert (torch.cat(found) - whole).abs().max() <= 1e-4


WRONG_MEDIA: list[tuple[list[Any], tuple[int | None, ...], str]] = [
    ([picture(3, 601)], (None,), "601 by 3 pixels.*200 times"),
    ([Picture(picture(4, 4).pixels[:0])], (None,), "4 by 0 pixels"),
    ([picture(9, 9)] * 2, (None, 2), "1 places for images .token 303., and there are 2"),
    ([], (None, 2), "1 places for images .token 303., and there are 0"),
    ([picture(9, 9)], (5,), "0 places for images .token 303., and there are 1"),
    ([Sound(torch.zeros(9).numpy(), 16000)], (None,), "takes no audio"),
    ([Clip(picture(9, 9).pixels[None], 2.0)], (None,), "takes no video"),
]


@pytest.mark.parametrize(("media", "parts", "said"), WRONG_MEDIA)
def test_what_cannot_be_seen_is_refused(saved, media: list[Any], parts: tuple[int | None, ...], said: str) -> None:
    mine = tower(saved()[1])
    with pytest.raises(UsageError, match=said):
        mine.prompt(words(*parts), media)


def test_a_placeholder_without_its_marks_is_refused(saved) -> None:
    mine = tower(saved()[1])
    for ids in ([tiny.TOKEN], [7, tiny.TOKEN, tiny.END], [tiny.START, tiny.TOKEN], [tiny.END, tiny.TOKEN, tiny.START]):
        with pytest.raises(UsageError, match="not between the marks.*301 and 302.*chat template"):
            mine.prompt(ids, [picture(9, 9)])


def test_an_image_too_small_for_a_tower_that_merges_nothing_is_refused(tmp_path: Path) -> None:
    model = tiny.make(1, vision={"spatial_merge_size": 1})
    folder = copied(tiny.save(model, tmp_path / "made"), tmp_path / "copy", merge_size=1, min_pixels=16)
    mine = tower(folder)
    with pytest.raises(UsageError, match="16 by 3 pixels, which makes 4 by 1 patches.*larger"):
        mine.piece(picture(3, 16))
    assert mine.piece(picture(8, 16)).tokens == 2 * 5 + 2


def test_messages_have_as_many_images_as_there_are(saved) -> None:
    mine, image = tower(saved()[1]), picture(9, 9)
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "read it"}]},
    ]
    assert mine.messages(messages, [image]) == messages and mine.kinds == {"image"}
    for media, said in (([], "1 parts.*0 images"), ([image] * 2, "1 parts.*2 images")):
        with pytest.raises(UsageError, match=said):
            mine.messages(messages, media)
    with pytest.raises(UsageError, match="takes no audio"):
        mine.messages(messages, [Sound(torch.zeros(9).numpy(), 16000)])


def copied(folder: Path, out: Path, **preprocessing: Any) -> Path:
    """A folder with other settings of its processor, whose tensors can be changed."""
    out.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    settings = json.loads((out / "preprocessor_config.json").read_text()) | preprocessing
    (out / "preprocessor_config.json").write_text(json.dumps(settings))
    return out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"patch_size": 14}, "patch_size = 14"), ({"merge_size": 4}, "merge_size = 4"),
        ({"temporal_patch_size": 2}, "temporal_patch_size = 2"), ({"do_resize": False}, "do_resize = False"),
        ({"min_pixels": 9999}, "9999 pixels at least and 4096 at most"), ({"image_std": [1, 0, 1]}, "image_std"),
        ({"image_mean": [0.5]}, "image_mean"), ({"max_pixels": "many"}, "max_pixels = 'many'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(saved, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    folder = copied(saved()[1], tmp_path / "copy", **wrong)
    with pytest.raises(ModelError, match=said) as error:
        tower(folder)
    assert "preprocessor_config.json" in str(error.value)


def test_sizes_in_the_settings_are_read_as_transformers_reads_them(saved, tmp_path: Path) -> None:
    size = {"shortest_edge": 1024, "longest_edge": 2048}
    settings = {"size": size, "min_pixels": None, "max_pixels": None}
    mine = tower(copied(saved()[1], tmp_path / "one", **settings))
    assert mine.piece(picture(8, 8)).inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    mine = tower(copied(saved()[1], tmp_path / "two", **settings | {"min_pixels": 64}))
    assert mine.piece(picture(8, 8)).inputs["image_grid_thw"].tolist() == [[1, 2, 2]]
    bare = copied(saved()[1], tmp_path / "three")
    (bare / "preprocessor_config.json").unlink()
    rows, columns = tower(bare).piece(picture(8, 8)).inputs["image_grid_thw"][0, 1:].tolist()
    assert rows * 4 == columns * 4 == 512


def test_a_tower_that_does_not_fit_is_refused(saved, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(saved("renamed")[1], tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    front, file = "model.vision_tower.", folder / "model.safetensors"
    convolution = f"{front}patch_merger.proj_conv.weight"
    for wrong, said in (
        ({convolution: None}, "missing"),
        ({convolution: tensors[convolution][:-1]}, "shape"),
        ({f"{front}layers.1.mlp.fc1.weight": torch.full((64, 32), torch.nan)}, "NaN"),
        ({f"{front}layers.1.mlp.fc1.bias": None}, "missing"),
        (dict.fromkeys(name for name in tensors if name.startswith(front)), "no tower that sees"),
    ):
        kept = {name: value.contiguous() for name, value in (tensors | wrong).items() if value is not None}
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=said) as error:
            tower(folder)
        assert front in str(error.value)


def test_the_published_model_has_as_many_weights_as_its_paper_says() -> None:
    """0.996 billion: 539 million of them in the decoder (tests/pure/test_hunyuan_vl_config.py)."""
    from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLVisionTransformer

    with torch.device("meta"):
        module = HunYuanVLVisionTransformer(transformers.HunYuanVLVisionConfig(text_hidden_size=1024))
    seeing = sum(parameter.numel() for parameter in module.parameters())
    assert round((seeing + 539_010_048) / 1e9, 3) == 0.996


SLOW = ("fp8", "int4-g32", "fp8-w8a16", "bf16")
SCHEMES = ["int8-w8a16", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantized_it_loads_here_and_in_transformers(saved, tmp_path: Path, layout: str, name: str) -> None:
    model, folder = saved(layout, LAYOUTS.index(layout))
    before = Checkpoint.open(folder)
    quantize(folder, tmp_path / "out", Policy(scheme(name)), progress=False)
    after = Checkpoint.open(tmp_path / "out")
    kept = [tensor for tensor in before.tensors if "vit." in tensor or "vision_tower." in tensor]
    assert len(kept) == 47
    for tensor in kept:
        assert torch.equal(after.read(tensor), before.read(tensor).to(after.info(tensor).torch_dtype))
    pictures = [picture(37, 51)]
    mine, decoder = tower(tmp_path / "out"), load_model(tmp_path / "out")
    made = mine.prompt(words(4, None, 9), pictures)
    theirs = transformers.HunYuanVLForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        found = decoder.forward(Batch.of([made.ids], positions=[made.positions], overlays=[overlay(mine, made)]))
        exact = tiny.logits(model, made.ids, pictures)
        assert 1e-4 < (found - exact).norm() / exact.norm() < 0.3
        wanted = tiny.logits(theirs, made.ids, pictures)
    assert (found - wanted).norm() / wanted.norm() <= (2e-2 if scheme(name).activations else 1e-4)
