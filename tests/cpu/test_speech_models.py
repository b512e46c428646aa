"""The models of a pipeline of speech against the same in numpy, transformers and torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from speech_reference import flow_velocity, hertz, multiplied, throat, vocoded
from tiny_speech import (
    CODES,
    CONFIG,
    ENCODER,
    MEL,
    Numbers,
    encoder_tensors,
    flow_tensors,
    recording,
    vocoder_tensors,
)

from isobit.media import Sound
from isobit.speech import blocks, flow, sounds, spectra, vocoder
from isobit.speech.flow_config import FlowConfig, read_flow_config
from isobit.speech.streaming import Noise


def saved(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": tensors}, folder / name)
    return folder / name


def close(found: torch.Tensor, wanted: np.ndarray, by: float = 2e-4) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.double().numpy() - wanted).max() <= by * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("beside", [0, 12])
@pytest.mark.parametrize("pattern", [None, (3, 2, 4)])
def test_the_velocity_is_that_of_the_formula(
    norms: bool, beside: int, pattern: tuple[int, ...] | None, tmp_path: Path
) -> None:
    tensors = flow_tensors(4, beside, norms)
    model = flow.load_flow(
        saved(tmp_path, "flow.pt", tensors), FlowConfig(mel=MEL, beside=beside, speaker_in_norms=norms)
    )
    numbers, count, tokens = Numbers(8), 45, [3, 0, 39, 12, 7, 7, 30]
    x, condition = (
        torch.randn(count, MEL, generator=numbers.generator),
        torch.randn(count, MEL + beside, generator=numbers.generator),
    )
    who = torch.nn.functional.normalize(torch.randn(192, generator=numbers.generator), dim=0) if norms else None
    seen = None if pattern is None else blocks.visible(pattern, count)
    text = flow.embedded(model, torch.tensor([tokens]), count)
    when = flow.moment(model, torch.tensor([0.3]), None if who is None else who[None])
    found = flow.velocity(model, x[None], condition[None], text, when, seen)[0]
    wanted = flow_velocity(
        tensors,
        x.double().numpy(),
        condition.double().numpy(),
        tokens,
        0.3,
        None if who is None else who.double().numpy(),
        None if seen is None else seen.numpy(),
    )
    close(found, wanted)


@pytest.mark.parametrize(("guided", "cosine", "beside"), [(False, True, 0), (True, False, 12)])
def test_frames_are_eulers_steps_with_guidance(guided: bool, cosine: bool, beside: int, tmp_path: Path) -> None:
    tensors = flow_tensors(5, beside)
    config = FlowConfig(mel=MEL, sounds_guided=guided, cosine=cosine, beside=beside)
    model = flow.load_flow(saved(tmp_path, "flow.pt", tensors), config)
    voice = flow.Reference(
        torch.tensor([5, 6, 8]),
        torch.randn(5, MEL, generator=Numbers(1).generator),
        torch.randn(192, generator=Numbers(2).generator),
    )
    noise = torch.randn(30, MEL, generator=Numbers(3).generator)
    made = flow.frames(model, [1, 2, 30, 4, 4], voice, noise, steps=4)
    steps = np.linspace(0, 1, 5)
    times = 1 - np.cos(steps * np.pi / 2) if cosine else steps
    tokens, count = [5, 6, 8, 1, 2, 30, 4, 4], 16
    known = np.zeros((count, MEL))
    known[:5] = voice.mel.double().numpy()
    who = voice.speaker.double().numpy() / np.linalg.norm(voice.speaker.double().numpy())
    if beside:
        affine = (
            tensors["spk_embed_affine_layer.weight"].double().numpy() @ who
            + tensors["spk_embed_affine_layer.bias"].double().numpy()
        )
        known = np.concatenate([known, np.tile(affine, (count, 1))], axis=1)
    x = noise[:count].double().numpy()
    for at in range(4):
        sure = flow_velocity(tensors, x, known, tokens, times[at], who, None)
        free = flow_velocity(tensors, x, 0 * known, [0] * 8 if guided else tokens, times[at], 0 * who, None)
        x = x + (times[at + 1] - times[at]) * (1.7 * sure - 0.7 * free)
    close(made.mel, x[5:], 2e-3)
    assert len(made.states) == 4 and torch.equal(made.states[0], noise[:count])


def test_frames_of_an_earlier_call_hold(tmp_path: Path) -> None:
    model = flow.load_flow(saved(tmp_path, "flow.pt", flow_tensors()), FlowConfig(mel=MEL))
    voice = flow.Reference(torch.tensor([5, 6]), torch.randn(4, MEL), torch.randn(192))
    noise = Noise(3, MEL)
    first = flow.frames(model, [1, 2, 3], voice, noise.rows(10), steps=3, pattern=(2, 3))
    both = flow.frames(model, [1, 2, 3, 9, 9], voice, noise.rows(14), steps=3, pattern=(2, 3), before=(first.states, 7))
    for one, two in zip(first.states, both.states, strict=True):
        assert torch.equal(one[:7], two[:7])
    assert not torch.allclose(first.states[2][7:], both.states[2][7:10])
    assert len(both.mel) == 10


@pytest.mark.parametrize("pattern", [(1,), (2, 4, 8), (25, 50, 200), (30, 7)])
def test_a_frame_sees_its_block_and_half_of_one_ahead(pattern: tuple[int, ...]) -> None:
    frames = 700
    sizes = [int(size / 12.5 * 22050 / 256) for size in pattern] + [int(pattern[-1] / 12.5 * 22050 / 256)] * 200
    seen = blocks.visible(pattern, frames).numpy()
    for place in range(0, frames, 11):
        begin = 0
        for size in sizes:
            if place < begin + size:
                break
            begin += size
        ahead = int(size / 2) if size <= 172 else int(size / 1.5)
        behind = size - 1 - (place - begin)
        until = begin + size + (0 if behind >= ahead else ahead - behind)
        assert seen[place].tolist() == [column < until for column in range(frames)]


@pytest.mark.parametrize("form", ["parametrized", "pairs", "plain"])
def test_the_vocoder_is_that_of_the_formula(form: str, tmp_path: Path) -> None:
    tensors = vocoder_tensors(6, form)
    torch.save(tensors, tmp_path / "hift.pt")
    model = vocoder.load_vocoder(tmp_path / "hift.pt")
    mel, noise = (
        torch.randn(6, MEL, generator=Numbers(2).generator),
        torch.randn(480 * 6, 9, generator=Numbers(3).generator),
    )
    found = vocoder.samples(model, mel, noise)
    wanted = vocoded(tensors, mel.double().numpy(), noise.double().numpy())
    assert 0.05 < np.abs(wanted).max() < 0.99
    close(found, wanted, 1e-3)
    w = multiplied(tensors)
    pitch = hertz(w, mel.double().numpy())
    assert (pitch > 10).any()
    close(vocoder.pitch(model.weights, mel.T), pitch)


def test_the_throat_sounds_at_its_pitch_and_hisses_without_one(tmp_path: Path) -> None:
    tensors = vocoder_tensors(6)
    model = vocoder.Vocoder({name: torch.from_numpy(each).float() for name, each in multiplied(tensors).items()}, MEL)
    pitch, noise = (
        torch.tensor([0.0, 0, 300, 300, 310, 320, 5, 0]),
        torch.randn(480 * 8, 9, generator=Numbers(3).generator),
    )
    found = vocoder.source(model.weights, pitch, noise)
    close(found, throat(multiplied(tensors), pitch.double().numpy(), noise.double().numpy()), 1e-4)


def test_what_is_spoken_first_does_not_change_when_more_follows(tmp_path: Path) -> None:
    torch.save(vocoder_tensors(), tmp_path / "hift.pt")
    model = vocoder.load_vocoder(tmp_path / "hift.pt")
    mel, noise = torch.randn(60, MEL, generator=Numbers(2).generator), Noise(7, 9)
    short, long = (vocoder.samples(model, mel[:count], noise.rows(480 * count)) for count in (40, 60))
    known = 480 * (40 - 24)  # 24 frames: as many as 12 sounds ahead
    assert torch.allclose(short[:known], long[:known], atol=1e-5)
    assert not torch.allclose(short[-480:], long[480 * 39 : 480 * 40], atol=1e-3)


# ---------------------------------------------------------------------- sounds and spectra


def tokenizer_of(folder: Path, **more: object) -> sounds.SoundTokenizer:
    config = {**ENCODER, **more}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(encoder_tensors(9, config), folder / "model.safetensors", {"format": "pt"})
    return sounds.load_sounds(folder)


def test_the_encoder_is_whispers(tmp_path: Path) -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    model = tokenizer_of(tmp_path / "a", max_source_positions=30, pooling_kernel_size=None, pooling_position=None)
    config = WhisperConfig(
        **{key: value for key, value in ENCODER.items() if key != "max_source_positions"}, max_source_positions=30
    )
    theirs = WhisperEncoder(config).eval()
    names = {
        name.removeprefix("model.encoder."): each
        for name, each in encoder_tensors(9, {"max_source_positions": 30, "pooling_kernel_size": None}).items()
    }
    theirs.load_state_dict(names, strict=False)
    features = torch.randn(16, 60, generator=Numbers(1).generator)
    with torch.no_grad():
        states = theirs(features[None], output_hidden_states=True).hidden_states
    found, valid = sounds.encoded(model, features, torch.ones(30, dtype=torch.bool))
    assert valid.all() and torch.allclose(found, states[3][0], atol=2e-5)  # behind three of four layers


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_no_sound_is_not_heard(block: int | None, causal: bool, tmp_path: Path) -> None:
    """Frames behind the end change nothing but what a convolution at the end sees of them."""
    model = tokenizer_of(tmp_path / "a", quantize_causal_block_size=block, encoder_causal_convolution=causal)
    features = torch.randn(16, 120, generator=Numbers(1).generator)
    heard = torch.arange(60) < 40
    found, valid = sounds.encoded(model, features, heard)
    assert valid.sum() == 20 and len(found) == 30
    other = features.clone()
    other[:, 84:] = 5.0
    again, _ = sounds.encoded(model, other, heard)
    assert torch.allclose(found[:20], again[:20], atol=1e-6)
    if causal and block is not None:  # blocks of 8 frames, 4 behind the pooling: the first know nothing of what follows
        other = features.clone()
        other[:, 32:] = 5.0
        again, _ = sounds.encoded(model, other, heard)
        assert torch.allclose(found[:8], again[:8], atol=1e-6) and not torch.allclose(
            found[8:20], again[8:20], atol=1e-2
        )


def test_a_code_is_the_nearest_row_and_the_first_of_equals() -> None:
    book = torch.randn(50, 8, generator=Numbers(1).generator)
    book[30] = book[4]
    rows = torch.cat((book + 0.01, torch.randn(40, 8, generator=Numbers(2).generator)))
    wanted = torch.cdist(rows.double(), book.double()).argmin(1)
    found = sounds.nearest(rows, book)
    assert torch.equal(found, wanted) and found[30] == 4


def test_a_recording_has_one_code_for_each_25th_of_a_second(tmp_path: Path) -> None:
    model = tokenizer_of(tmp_path / "a")
    for seconds in (0.51, 1.0, 7.3):
        found = sounds.sounds(model, recording(seconds, 16000).astype(float))
        assert len(found) == -(-round(seconds * 16000) // 640) and 0 <= min(found) <= max(found) < CODES
    assert len(set(found)) > 1


def test_whispers_spectrogram_is_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    samples = recording(1.01, 16000)
    samples = np.pad(samples, (0, -len(samples) % 640))
    for bins in (80, 128):
        theirs = WhisperFeatureExtractor(feature_size=bins)(
            samples, sampling_rate=16000, padding="longest", return_tensors="np"
        )
        assert np.abs(spectra.whisper_mel(samples.astype(float), bins) - theirs.input_features[0]).max() < 1e-4


def test_the_flows_spectrogram_is_hifigans() -> None:
    from transformers.audio_utils import mel_filter_bank

    samples = recording(0.7, 24000)
    bank = mel_filter_bank(961, 80, 0, 8000, 24000, norm="slaney", mel_scale="slaney")
    padded = torch.nn.functional.pad(torch.from_numpy(samples)[None], (720, 720), mode="reflect")
    spectrum = torch.stft(padded, 1920, 480, 1920, torch.hann_window(1920), center=False, return_complex=True)[0]
    power = torch.sqrt(spectrum.abs() ** 2 + 1e-9)
    wanted = (torch.from_numpy(bank.T).float() @ power).clamp(min=1e-5).log().T
    found = spectra.flow_mel(samples.astype(float), 80)
    assert found.shape == (35, 80) and np.abs(found - wanted.numpy()).max() < 2e-3


def test_the_filter_bank_is_kaldis() -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    samples = recording(0.6, 16000).astype(float)
    bank = mel_filter_bank(257, 80, 20, 8000, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True)
    wanted = spectrogram(
        samples,
        window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=bank,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T
    found = spectra.kaldi_bank(samples)
    assert found.shape == wanted.shape == (58, 80) and np.abs(found - wanted).max() < 1e-4


def test_samples_at_another_rate_are_the_same_sound() -> None:
    sound = Sound(recording(1.0, 44100), 44100)
    low = spectra.resampled(sound, 16000)
    assert len(low) == 16000 and np.abs(low - recording(1.0, 16000))[200:-200].max() < 2e-3
    assert np.array_equal(
        spectra.resampled(Sound(recording(0.1, 24000), 24000), 24000), recording(0.1, 24000).astype(float)
    )


# ---------------------------------------------------------------------- flow/config.yaml


def test_the_published_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert read_flow_config(tmp_path / "c.yaml") == FlowConfig(mel=MEL)
    (tmp_path / "d.yaml").write_text(
        "flow:\n  input_frame_rate: 25.0\n  mel_framerate: 50\n  spk_embed_dim: 7\n  t_scheduler: linear\n"
    )
    assert read_flow_config(tmp_path / "d.yaml") == FlowConfig(80, 25, 50, 7, False, True, False)
    assert [FlowConfig().frames(count) for count in (1, 28, 29, 50)] == [2, 56, 57, 100]
