"""What GLM-ASR hears: spectrograms, numbers of tokens, embeddings and prompts, as transformers makes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glmasr_tiny import RATE, SIZES, make, noise, processor
from safetensors.torch import load_file, save_file

from isobit.checkpoint.reader import Checkpoint
from isobit.engine import conversation
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError, IsobitError, ModelError, UsageError
from isobit.media.values import Picture, Sound
from isobit.models.encoders.glmasr import GlmAsrTower, resampled

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=SIZES)
def made(request, tmp_path_factory) -> tuple[Any, Path]:
    """transformers' model, and its folder."""
    folder = tmp_path_factory.mktemp("glmasr")
    return make(folder, seed=list(SIZES).index(request.param), **SIZES[request.param]), folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return make(folder), folder


def tower(folder: Path) -> GlmAsrTower:
    return GlmAsrTower(Checkpoint.open(folder), torch.float32)


def asked(folder: Path, sounds: int = 1, instruction: str = "Please transcribe this audio into text") -> list[int]:
    """Token ids of a request, with one for each sound."""
    tokenizer = Tokenizer.from_folder(folder)
    content = [*[{"type": "audio"}] * sounds, {"type": "text", "text": instruction}]
    messages = [{"role": "user", "content": content}]
    assert tokenizer.chat_template is not None
    return conversation.encode(tokenizer, tokenizer.chat_template, messages, add_generation_prompt=True)


def sounds(few: bool = False) -> dict[str, np.ndarray]:
    found = {
        f"{seconds} s": noise(seconds) for seconds in ((1, 31) if few else (0.07, 0.5, 1, 29.9, 30, 30.01, 31, 70))
    }
    return found | {"silence": np.zeros(RATE, np.float32), "one sample": np.eye(1, 2000, 5, np.float32)[0]}


@torch.no_grad()
def test_embeddings_and_prompts_equal_transformers(made) -> None:
    model, folder = made
    own, theirs, ids = tower(folder), processor(folder), asked(folder)
    for name, samples in sounds(few=model.config.audio_config.num_key_value_heads != 4).items():
        wanted = theirs.apply_transcription_request(samples)
        prompt = own.prompt(ids, [Sound(samples, RATE)])
        assert list(prompt.ids) == wanted["input_ids"][0].tolist(), name
        (placed,) = prompt.placed
        assert torch.equal(placed.piece.inputs["input_features"], wanted["input_features"]), name
        heard = model.get_audio_features(wanted["input_features"], wanted["input_features_mask"]).pooler_output
        got = own.encode(placed.piece)
        assert got.shape == heard.shape == (placed.piece.tokens, model.config.text_config.hidden_size)
        assert (got - heard).abs().max() <= TOLERANCE, name
        assert prompt.positions is None and prompt.shift == 0
        token = model.config.audio_token_id
        assert placed.places == tuple(place for place, id in enumerate(prompt.ids) if id == token)


def test_the_prompt_is_the_documented_one(plain) -> None:
    _, folder = plain
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.decode(asked(folder), skip_special=False) == (
        "<|user|>\n<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\nPlease transcribe this audio into text"
        "<|assistant|>\n"
    )
    (theirs,) = processor(folder).apply_transcription_request(noise(1), tokenize=False)
    assert tokenizer.decode(asked(folder), skip_special=False) == theirs
    assert tower(folder).hearing.instruction == "Please transcribe this audio into text"


def test_two_sounds_in_one_prompt_stand_in_their_order(plain) -> None:
    _, folder = plain
    own = tower(folder)
    first, second = Sound(noise(2), RATE), Sound(noise(3, seed=1), RATE)
    both = own.prompt(asked(folder, 2), [first, second])
    alone = [own.prompt(asked(folder), [one]).placed[0] for one in (first, second)]
    assert [one.piece.key for one in both.placed] == [one.piece.key for one in alone]
    assert [len(one.places) for one in both.placed] == [25, 37]
    assert both.placed[0].places[-1] < both.placed[1].places[0]
    other = own.prompt(asked(folder, 2), [second, first])
    assert [one.piece.key for one in other.placed] == [one.piece.key for one in both.placed][::-1]
    assert len({one.piece.key for one in both.placed}) == 2


def test_half_a_minute_is_heard_the_same_whatever_comes_behind_it(plain) -> None:
    _, folder = plain
    own, samples = tower(folder), noise(70)
    whole = own.encode(own.piece(Sound(samples, RATE)))
    parts = [own.encode(own.piece(Sound(samples[at : at + 30 * RATE], RATE))) for at in (0, 30 * RATE, 60 * RATE)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_are_heard_as_if_they_had_been_recorded_at_16_khz(rate: int) -> None:
    def tone(rate: int) -> np.ndarray:
        time = np.arange(rate * 2) / rate
        return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.cos(2 * np.pi * 1234.5 * time)).astype(np.float32)

    got, wanted = resampled(Sound(tone(rate), rate), RATE), tone(RATE)
    assert got.dtype == np.float32 and len(got) == len(wanted)
    assert np.abs(got - wanted)[400:-400].max() < 1e-3  # at its ends a sound is cut off
    assert len(resampled(Sound(np.ones(7, np.float32), rate), RATE)) == -(-7 * RATE // rate)


def test_nothing_is_resampled_that_has_the_right_rate() -> None:
    samples = noise(0.1)
    assert resampled(Sound(samples, RATE), RATE) is samples


@pytest.mark.parametrize(
    ("sound", "said"),
    [
        (Sound(np.zeros(0, np.float32), RATE), "no samples"),
        (Sound(np.zeros((9, 2), np.float32), RATE), "one channel"),
        (Sound(np.zeros(900, np.float32), RATE), "too short to be heard"),
        (Sound(np.full(RATE, np.nan, np.float32), RATE), "NaN"),
        (Sound(np.full(RATE, np.inf, np.float32), RATE), "NaN or infinite"),
        (Sound(np.full(RATE, 1e19, np.float32) * np.sign(noise(1)), RATE), "too large to be heard"),
        (Sound(np.zeros(100, np.float32), 1), "1 samples a second"),
        (Sound(np.zeros(655 * 1000 + 1, np.float32), 1000), "655 at most"),
        (Picture(np.zeros((2, 2, 3), np.uint8)), "no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_heard_is_refused_with_the_reason(plain, sound: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tower(plain[1]).prompt(asked(plain[1]), [sound])


def test_places_and_sounds_are_counted(plain) -> None:
    _, folder = plain
    own, sound = tower(folder), Sound(noise(1), RATE)
    with pytest.raises(UsageError, match="0 places for sounds .*there are 1 sounds"):
        own.prompt([5, 6], [sound])
    with pytest.raises(UsageError, match="1 places for sounds .*there are 0 sounds"):
        own.prompt(asked(folder), [])
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "?"}]}]
    (shaped,) = own.messages(messages, [sound])
    assert shaped == {"role": "user", "content": [{"type": "audio", "audio": "sound"}, messages[0]["content"][1]]}
    assert own.messages([{"role": "system", "content": "Hear."}], []) == [{"role": "system", "content": "Hear."}]
    for media in ([], [sound, sound]):
        with pytest.raises(UsageError, match="1 parts of type audio"):
            own.messages(messages, media)
    with pytest.raises(UsageError, match="no image"):
        own.messages(messages, [Picture(np.zeros((2, 2, 3), np.uint8))])


def test_a_text_that_looks_like_a_sound_is_none(plain) -> None:
    _, folder = plain
    ids = asked(folder, instruction="what does <|pad|> mean?")
    prompt = tower(folder).prompt(ids, [Sound(noise(1), RATE)])
    assert len(prompt.ids) == len(ids) + 11


def test_names_of_the_model_within_transformers_are_read_too(plain, tmp_path) -> None:
    _, folder = plain
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    inner = ("audio_tower.", "multi_modal_projector.")
    named = {f"model.{name}" if name.startswith(inner) else name: value for name, value in tensors.items()}
    save_file(named, tmp_path / "model.safetensors")
    piece = tower(folder).piece(Sound(noise(1), RATE))
    assert torch.equal(tower(tmp_path).encode(piece), tower(folder).encode(piece))


def changed(folder: Path, target: Path, *, config: Any = None, tensors: Any = None, settings: Any = None) -> Path:
    """A copy with other keys or tensors."""
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    for name, change in (("config.json", config), ("processor_config.json", settings)):
        if change is not None:
            found = json.loads((target / name).read_text())
            change(found)
            (target / name).write_text(json.dumps(found))
    if tensors is not None:
        found = load_file(target / "model.safetensors")
        tensors(found)
        save_file(found, target / "model.safetensors")
    return target


DAMAGE: dict[str, tuple[dict[str, Any], type[IsobitError], str]] = {
    "no encoder": ({"tensors": lambda all: all.pop("audio_tower.conv1.weight")}, CheckpointError, "no encoder"),
    "a missing matrix": (
        {"tensors": lambda all: all.pop("multi_modal_projector.linear_2.weight")}, CheckpointError, "linear_2"),
    "a missing bias": (
        {"tensors": lambda all: all.pop("audio_tower.layers.1.self_attn.v_proj.bias")}, CheckpointError, "missing"),
    "another shape": (
        {"tensors": lambda all: all.update({"audio_tower.conv2.bias": torch.zeros(7)})}, CheckpointError, "conv2.bias"),
    "NaN": (
        {"tensors": lambda all: all["audio_tower.norm.weight"].fill_(float("nan"))}, CheckpointError, "NaN"),
    "no whole heads": (
        {"config": lambda keys: keys["audio_config"].update(num_attention_heads=5)}, ModelError, "heads"),
    "a projector that does not fit": (
        {"config": lambda keys: keys["audio_config"].update(intermediate_size=64)}, ModelError, "4 x hidden_size"),
    "another encoder": (
        {"config": lambda keys: keys["audio_config"].update(model_type="whisper")}, ModelError, "whisper"),
    "a key that nobody knows": (
        {"config": lambda keys: keys["audio_config"].update(conv_stride=3)}, ModelError, "conv_stride"),
    "another activation": ({"config": lambda keys: keys.update(projector_hidden_act="odd")}, ModelError, "odd"),
    "a token that is none": ({"config": lambda keys: keys.update(audio_token_id=9999)}, ModelError, "audio_token_id"),
    "bands that disagree": (
        {"settings": lambda keys: keys["feature_extractor"].update(feature_size=80)}, ModelError, "num_mel_bins = 128"),
    "noise": ({"settings": lambda keys: keys["feature_extractor"].update(dither=0.1)}, ModelError, "dither"),
    "no whole tokens": (
        {"settings": lambda keys: keys["feature_extractor"].update(hop_length=170)}, ModelError, "whole number"),
    "a length that is none": ({"settings": lambda keys: keys.update(max_audio_len=-1)}, ModelError, "max_audio_len"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(plain, tmp_path, name: str) -> None:
    change, kind, said = DAMAGE[name]
    with pytest.raises(kind, match=said):
        tower(changed(plain[1], tmp_path, **change))


def test_settings_of_the_processor_are_used(plain, tmp_path) -> None:
    def change(keys: dict[str, Any]) -> None:
        keys["feature_extractor"] |= {"chunk_length": 10}
        keys |= {"max_audio_len": 20, "default_transcription_prompt": "Write it down."}

    own = tower(changed(plain[1], tmp_path, settings=change))
    assert own.hearing.instruction == "Write it down." and own.hearing.longest == 20
    assert own.piece(Sound(noise(15), RATE)).inputs["input_features"].shape == (2, 128, 1000)
    with pytest.raises(UsageError, match="20 at most"):
        own.piece(Sound(noise(20.5), RATE))


def test_without_a_file_of_settings_they_are_the_published_ones(plain, tmp_path) -> None:
    folder = changed(plain[1], tmp_path)
    (folder / "processor_config.json").unlink()
    piece = tower(folder).piece(Sound(noise(31), RATE))
    assert piece.key == tower(plain[1]).piece(Sound(noise(31), RATE)).key


def test_the_settings_of_transformers_4_are_read(plain, tmp_path) -> None:
    folder = changed(plain[1], tmp_path)
    keys = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(keys["feature_extractor"] | {"chunk_length": 10}))
    assert tower(folder).piece(Sound(noise(15), RATE)).inputs["input_features"].shape == (2, 128, 1000)


def test_without_transformers_it_is_said_what_to_install(plain, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.glmasr.modeling_glmasr", None)
    with pytest.raises(UsageError, match=r"isobit\[media\]"):
        tower(plain[1])


def test_making_a_tower_draws_no_random_numbers(plain) -> None:
    before = torch.get_rng_state()
    tower(plain[1])
    assert torch.equal(before, torch.get_rng_state()) and torch.get_default_dtype() == torch.float32
