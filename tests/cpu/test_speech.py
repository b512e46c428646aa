"""A tiny pipeline of speech from its folder to samples: what it is asked, and every way it can be wrong."""

from __future__ import annotations

import io
import json
import shutil
import struct
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hostile_pickles import Call, write_zip
from tiny_speech import (
    CODES,
    CONFIG,
    ENCODER,
    Speaker,
    flow_tensors,
    recording,
    save_pipeline,
    save_tokenizer,
    vocoder_tensors,
)

from isobit import api
from isobit.cli.main import main
from isobit.engine.params import Repetition
from isobit.errors import CapacityError, CheckpointError, IsobitError, SourceError, Unsupported, UsageError
from isobit.media import Sound
from isobit.speech import text, writing
from isobit.speech.speaker import Campplus
from isobit.speech.talker import RATE, Talker, Voice, load_talker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("speech") / "GLM-TTS")


@pytest.fixture(scope="module")
def talker(folder: Path) -> Talker:
    return load_talker(folder, speaker=Speaker())


@pytest.fixture(scope="module")
def voice(talker: Talker) -> Voice:
    return talker.voice(Sound(recording(1.2), 22050), "This is how I sound")


def test_the_same_seed_gives_the_same_samples(talker: Talker, voice: Voice) -> None:
    first, again, other = (np.concatenate([*talker.speak("Hi there.", voice, seed=seed)]) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first[: len(other)], other[: len(first)])
    assert first.dtype == np.float32 and 0 < np.abs(first).max() <= 0.99 and len(first) % 480 == 0
    assert 2 * 9 * 960 - 480 <= len(first) <= 20 * 9 * 960  # 2 to 20 sounds for each of 9 tokens, 960 samples each


def test_chunks_are_as_long_as_the_whole(talker: Talker, voice: Voice) -> None:
    whole = [*talker.speak("Hello, good friends", voice, seed=4)]
    chunks = [*talker.speak("Hello, good friends", voice, seed=4, stream=True)]
    assert len(whole) == 1 and len(chunks) > 1
    assert sum(map(len, chunks)) == len(whole[0]) == len(np.concatenate(chunks))
    sounds = (len(whole[0]) + 480) // 960
    assert len(chunks) <= 1 + -(-sounds // 25) and np.isfinite(np.concatenate(chunks)).all()
    again = [*talker.speak("Hello, good friends", voice, seed=4, stream=True)]
    assert all(np.array_equal(one, two) for one, two in zip(chunks, again, strict=True))


def test_the_language_model_is_asked_as_it_was_trained(
    talker: Talker, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], Any, Any]] = []
    stream = talker.llm.stream

    def seen(prompt: list[int], params: Any, *, constraint: Any) -> Iterator[Any]:
        asked.append((prompt, params, constraint))
        return stream(prompt, params, constraint=constraint)

    monkeypatch.setattr(talker.llm, "stream", seen)
    said = "1" * 32 + ". " + "2" * 10
    pieces = text.parts(text.tidied(said))
    assert len(pieces) == 2
    made = [*talker.speak(said, voice, seed=3)]
    tokenizer, marks = talker.llm.tokenizer, talker.marks
    words, sounds = tokenizer.encode("This is how I sound. "), [marks.first + one for one in voice.sounds]
    ids = [tokenizer.encode(piece) for piece in pieces]
    assert asked[0][0] == [*words, *ids[0], marks.begin, *sounds]
    assert asked[1][0][: len(words) + len(ids[0]) + len(ids[1]) + 1] == [*words, *ids[0], *ids[1], marks.begin]
    behind = asked[1][0][len(words) + len(ids[0]) + len(ids[1]) + 1 :]
    first = behind[len(sounds) :]
    assert behind[: len(sounds)] == sounds and abs(len(first) * 960 - len(made[0])) <= 480
    for (_, params, _), part, seed in zip(asked, ids, (3, 4), strict=True):
        assert (params.top_k, params.top_p, params.temperature) == (25, 0.8, 1.0)
        assert params.repetition_aware == Repetition(10, 0.1) and params.seed == seed
        assert params.max_tokens == 20 * len(part)


def test_it_writes_sounds_alone_and_ends_when_there_are_enough(talker: Talker, voice: Voice) -> None:
    ids = talker.llm.tokenizer.encode("abc.")
    found = [*talker._sounds(ids, [([*voice.said], voice.sounds)], 5)]
    assert 2 * len(ids) <= len(found) <= 20 * len(ids) and 0 <= min(found) <= max(found) < CODES


def test_old_parts_are_forgotten_and_the_voice_is_not() -> None:
    from isobit.speech.talker import _forget

    told = [([1] * 30, [7] * 100), ([2] * 30, [8] * 300), ([3] * 20, [9] * 250)]
    _forget(told, 20)  # 650 sounds of 80 tokens: 162 more would come
    assert [words[0] for words, _ in told] == [1, 3]
    _forget(told, 1000)
    assert [words[0] for words, _ in told] == [1]


def test_it_ends_when_it_is_told_to(talker: Talker, voice: Voice) -> None:
    stopped = threading.Event()
    chunks = talker.speak("A rather long text that is stopped early", voice, seed=1, stream=True, stopped=stopped)
    next(chunks)
    stopped.set()
    assert [*chunks] == []


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("hello", "hello."),
        (" a\n b\t c ", "a b c."),
        ("what?", "what?"),
        ("你好", "你好。"),
        ("你好，", "你好。"),
        ("wow!", "wow."),
        ("x" * 9 + ",", "x" * 9 + "."),
    ],
)
def test_texts_are_tidied(said: str, wanted: str) -> None:
    assert text.tidied(said) == wanted and text.tidied(wanted) == wanted


@pytest.mark.parametrize("said", ["", "   ", "...", "!?", "\n", "🙂"])
def test_texts_without_words_are_refused(said: str, talker: Talker, voice: Voice) -> None:
    with pytest.raises(UsageError, match="nothing to say"):
        talker.speak(said, voice)


def test_no_part_is_too_long_and_nothing_is_lost() -> None:
    for said in ("word " * 300, "你好世界，" * 60, "a" * 500, "One sentence. " * 40, "no-break's " * 90, "1 2 3 " * 99):
        whole = text.tidied(said)
        pieces = text.parts(whole)
        assert "".join("".join(pieces).split()) == "".join(whole.split())
        assert all(piece and any(one.isalnum() for one in piece) for piece in pieces)
        assert max(sum(map(text._weight, text._UNIT.findall(piece))) for piece in pieces) <= text._MOST + 1


def test_control_tokens_are_not_spoken_and_phonemes_are(talker: Talker, voice: Voice) -> None:
    for said in ("hi <|user|>", "<|audio_3|>", "a <|begin_of_audio|> b", "<|endoftext|> x"):
        with pytest.raises(UsageError, match="control token"):
            talker.speak(said, voice)
        with pytest.raises(UsageError, match="control token"):
            talker.voice(Sound(recording(), 22050), said)
    assert [*talker.speak("<|SH|>", voice, seed=1)]


# ---------------------------------------------------------------------- voices


@pytest.mark.parametrize(
    ("seconds", "rate", "said", "why"),
    [
        (0.0, 16000, "x", "0.00 seconds"),
        (0.2, 16000, "x", "0.20 seconds; 0.5 to 30"),
        (30.5, 8000, "x", "30.50 seconds"),
        (1.0, 16000, " ", "nothing to say"),
    ],
)
def test_voices_that_cannot_be_used(seconds: float, rate: int, said: str, why: str, talker: Talker) -> None:
    with pytest.raises(UsageError, match=why):
        talker.voice(Sound(recording(seconds, rate), rate), said)


def test_silence_is_no_voice(talker: Talker) -> None:
    with pytest.raises(UsageError, match="silent"):
        talker.voice(Sound(np.zeros(16000, np.float32), 16000), "x")


def test_half_a_minute_is_a_voice(talker: Talker) -> None:
    found = talker.voice(Sound(recording(30.0, 11025), 11025), "long")
    assert len(found.sounds) == 750 and found.reference.mel.shape == (1500, 20)


def test_a_voice_that_leaves_no_room_is_refused(talker: Talker, voice: Voice) -> None:
    long = Voice(voice.said * 100, voice.reference)
    with pytest.raises(CapacityError, match="reads 2048: give a shorter voice"):
        [*talker.speak("hello", long)]


# ---------------------------------------------------------------------- folders


def changed(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_missing_parts_are_all_named(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    shutil.rmtree(copy / "hift")
    shutil.rmtree(copy / "frontend")
    (copy / "vocos2d").mkdir()
    (copy / "vocos2d" / "generator_jit.ckpt").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match="lacks frontend/campplus.onnx, hift/hift.pt; vocos2d/generator_jit.ckpt is a Torch"
    ):
        load_talker(copy)
    with pytest.raises(CheckpointError, match="no pipeline of speech: isobit knows GLM-TTS, whose folder has llm,"):
        load_talker(tmp_path)


def test_a_program_beside_the_vocoder_is_named_and_not_run(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    (copy / "vocos2d").mkdir()
    (copy / "vocos2d" / "generator_jit.ckpt").write_bytes(b"x")
    notes = load_talker(copy, speaker=Speaker()).notes
    assert any("TorchScript program, which is not run" in note for note in notes)
    assert any("never compared with the published weights" in note for note in notes)


@pytest.mark.parametrize("part", ["flow/flow.pt", "hift/hift.pt"])
def test_pickles_that_would_run_something_are_refused(part: str, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    for value in (Call(print, "ran"), {"model": {"a": Call(print, "ran")}}, {"model": Call(print, "ran")}):
        write_zip(copy / part, value, {})
        with pytest.raises(CheckpointError, match="refused: it calls"):
            load_talker(copy, speaker=Speaker())


def broken(value: dict[str, Any], name: str, how: str) -> dict[str, Any]:
    made = dict(value)
    if how == "gone":
        del made[name]
    elif how == "shape":
        made[name] = torch.zeros(3, 2)
    elif how == "nan":
        made[name] = torch.full_like(made[name], float("nan"))
    else:
        made["another.weight" if how == "more" else name] = torch.zeros(2)
    return made


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("estimator.proj_out.bias", "gone", "has no proj_out.bias"),
        ("estimator.proj_out.weight", "gone", "has no proj_out.weight"),
        ("estimator.transformer_blocks.1.attn.to_q.weight", "shape", r"has the shape \[3, 2\]"),
        ("estimator.time_embed.time_mlp.0.bias", "nan", "NaN"),
        ("", "more", "has also another.weight"),
        ("estimator.proj_out.weight", "shape", "no flow of GLM-TTS"),
    ],
)
def test_other_flows_are_refused(name: str, how: str, why: str, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    torch.save({"model": broken(flow_tensors(), name, how)}, copy / "flow" / "flow.pt")
    with pytest.raises(CheckpointError, match=why) as error:
        load_talker(copy, speaker=Speaker())
    assert "flow.pt" in str(error.value) and len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        ("f0_predictor.classifier.bias", "gone", "has no f0"),
        ("conv_pre.bias", "shape", "shape"),
        ("", "more", "has also"),
        ("conv_pre.parametrizations.weight.original0", "gone", "no HiFT"),
        ("resblocks.3.activations1.0.alpha", "nan", "NaN"),
    ],
)
def test_other_vocoders_are_refused(name: str, how: str, why: str, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    torch.save(broken(vocoder_tensors(), name, how), copy / "hift" / "hift.pt")
    with pytest.raises(CheckpointError, match=why):
        load_talker(copy, speaker=Speaker())


@pytest.mark.parametrize("data", [b"", b"PK\3\4 no zip", b"\x80\x02.", b"text"])
def test_broken_files_are_refused(data: bytes, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    (copy / "flow" / "flow.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="flow.pt.*cannot be read"):
        load_talker(copy, speaker=Speaker())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("mel_dim: 20", "mel_dim: 24", "no flow|shape"),
        ("input_frame_rate: !ref <rate>", "input_frame_rate: 12.5", "needs 50 of 25"),
        ("loss_type: l2", "loss_typo: l2", "loss_typo"),
        ("flow:", "flux:", "no mapping called flow"),
        ("flow:", "\tflow: [", "no YAML"),
        ("speech_token_cfg: False", "speech_token_cfg: 3", "cannot be 3"),
        ("loss_type: l2", "t_scheduler: cubic", "cubic"),
        ("loss_type: l2", "use_wavlm_emb: True", "second speaker"),
        ("mel_dim: 20", "mel_dim: x", "cannot be 'x'"),
    ],
)
def test_other_configurations_are_refused(old: str, new: str, why: str, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    assert old in CONFIG
    (copy / "flow" / "config.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(CheckpointError, match=why):
        load_talker(copy, speaker=Speaker())


def test_yaml_makes_no_objects(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    mark = tmp_path / "ran"
    (copy / "flow" / "config.yaml").write_text(f"evil: !apply:os.system ['touch {mark}']\n" + CONFIG)
    load_talker(copy, speaker=Speaker())
    (copy / "flow" / "config.yaml").write_text(f"evil: !!python/object/apply:os.system ['touch {mark}']\n" + CONFIG)
    with pytest.raises(CheckpointError, match="no YAML"):
        load_talker(copy, speaker=Speaker())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"quantize_position": 9}, "quantize_position is 9"),
        ({"encoder_causal_attention": True}, "does not know"),
        ({"pooling_type": "sum"}, "pooling_type"),
        ({"d_model": 33}, "d_model is 33"),
        ({"d_model": None}, "positive integer"),
        ({"quantize_vocab_size": 41}, "codebook.weight"),
        ({"activation_function": "relu"}, "relu"),
        ({"pooling_position": 0}, "between 1"),
    ],
)
def test_other_tokenizers_of_sounds_are_refused(more: dict[str, Any], why: str, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    (copy / "speech_tokenizer" / "config.json").write_text(json.dumps({**ENCODER, **more}))
    with pytest.raises(CheckpointError, match=why):
        load_talker(copy, speaker=Speaker())


def test_a_tokenizer_without_its_sounds_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path)
    shutil.rmtree(copy / "vq32k-phoneme-tokenizer")
    save_tokenizer(copy / "vq32k-phoneme-tokenizer", CODES - 1)
    with pytest.raises(CheckpointError, match=r"no <\|audio_39\|> behind <\|audio_38\|>, and there are 40 sounds"):
        load_talker(copy, speaker=Speaker())


def test_a_speakers_model_that_is_none_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(Unsupported, match=r"onnxruntime is not installed(.|\n)*pip install 'isobit\[speech\]'"):
        load_talker(folder)


# ---------------------------------------------------------------------- onnxruntime


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    size = len(value)
    return bytes([number << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + value


def mean_graph(width: int = 80) -> bytes:
    """An ONNX model: ``[1, T, 80]`` to the maximum over T."""

    def shape(*sizes: int | str) -> bytes:
        dims = b"".join(
            field(1, field(1, size) if isinstance(size, int) else field(2, size.encode())) for size in sizes
        )
        return field(1, field(1, 1) + field(2, dims))

    axes = field(1, b"axes") + field(20, 7).replace(b"\xa0", b"\xa0\x01") + field(8, 1)
    node = field(1, b"x") + field(2, b"y") + field(4, b"ReduceMax") + field(5, axes)
    graph = field(1, node) + field(2, b"g")
    graph += field(11, field(1, b"x") + field(2, shape(1, "T", width))) + field(
        12, field(1, b"y") + field(2, shape(1, 1, width))
    )
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


def test_the_speakers_model_is_run_by_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(mean_graph())
    bank = np.random.default_rng(0).normal(size=(50, 80)).astype(np.float32)
    assert np.allclose(Campplus(tmp_path / "m.onnx", 80)(bank), bank.max(axis=0))
    with pytest.raises(CheckpointError, match="gives 80 numbers; 192"):
        Campplus(tmp_path / "m.onnx", 192)(bank)
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="m.onnx.*onnxruntime"):
        Campplus(tmp_path / "m.onnx", 192)


# ---------------------------------------------------------------------- files and the command


@pytest.mark.parametrize("name", ["wav", "pcm", "flac", "mp3", "opus"])
def test_files_hold_what_was_spoken(name: str) -> None:
    wanted = recording(0.5, RATE) * 1.5
    data = writing.encoded(wanted, writing.form_named(name))
    if name == "pcm":
        found = np.frombuffer(data, "<i2") / 32767
    else:
        found, rate = soundfile.read(io.BytesIO(data))
        assert rate == RATE
    near = {"mp3": 0.2, "opus": 0.2}.get(name, 1e-4)
    if name in ("mp3", "opus"):  # with a delay: as loud as it was
        assert abs(np.sqrt((found**2).mean()) - np.sqrt((wanted**2).mean())) < near * np.sqrt((wanted**2).mean())
    else:
        assert len(found) == len(wanted) and np.abs(found - wanted).max() < near
    if name == "wav":
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (
                1,
                2,
                RATE,
                len(wanted),
            )
        assert struct.unpack("<I", writing.wav_header(writing.UNKNOWN)[40:])[0] == 0xFFFFFFFF


@pytest.fixture
def command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Path]:
    monkeypatch.setattr("isobit.speech.talker.Campplus", lambda path, size: Speaker())
    soundfile.write(tmp_path / "me.wav", recording(1.0), 22050)
    (tmp_path / "me.txt").write_text("This is me")
    return ["speak", "Hi.", "--model", str(folder), "--voice", str(tmp_path / "me.wav"), "--seed", "2"], tmp_path


def test_the_command_writes_a_file(command: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    args, place = command
    assert main([*args, "-o", str(place / "a.wav")]) == 0
    assert main([*args, "--voice-text", "This is me", "-o", str(place / "b.flac")]) == 0
    one, two = soundfile.read(place / "a.wav")[0], soundfile.read(place / "b.flac")[0]
    assert np.array_equal(one, two) and len(one) > 2000
    assert "never compared with the published weights" in capfd.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["a.wav", "b.flac", "me.txt", "me.wav"]


def test_the_command_streams_samples(
    command: tuple[list[str], Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    args, _ = command
    assert main([*args, "-o", "-"]) == 0
    out = capfdbinary.readouterr().out
    assert len(out) > 4000 and len(out) % 2 == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (["-o", "{}/a.aac"], "does not say what to write"),
        (["-o", "{}/no/a.wav"], "no folder"),
        (["-o", "{}"], "a folder|does not say"),
        (["-o", "{}/a.wav", "--steps", "0"], "--steps"),
        (["-o", "{}/a.wav", "--seed", "-1"], "--seed"),
        (["-o", "{}/a.wav", "--model", "{}"], "no pipeline of speech"),
        (["-o", "{}/a.wav", "--model", "{}/x"], "there is no folder"),
        (["-o", "{}/a.wav", "--voice", "{}/me.txt"], "no sound that can be read"),
        (["-o", "{}/a.wav", "--voice", "{}/x.wav"], "what x.wav|cannot be read|No such"),
    ],
)
def test_what_the_command_refuses(
    change: list[str], why: str, command: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    args, place = command
    assert main([*args, *(one.format(place) for one in change)]) == 2
    said = capfd.readouterr().err
    assert __import__("re").search(why, said), said
    assert not (place / "a.wav").exists()


def test_what_a_voice_says_is_asked_for(command: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    args, place = command
    (place / "me.txt").unlink()
    assert main([*args, "-o", str(place / "a.wav")]) == 2
    assert "give --voice-text TEXT, or me.txt beside it" in capfd.readouterr().err


def test_errors_are_isobits() -> None:
    assert issubclass(SourceError, IsobitError)


# ---------------------------------------------------------------------- quantize, plan, info


def test_the_language_model_is_quantized_and_the_rest_is_copied(folder: Path, tmp_path: Path) -> None:
    source, out = changed(folder, tmp_path), tmp_path / "small"
    (source / "vq32k-phoneme-tokenizer" / "tokenization_x.py").write_text("boom")
    (source / "vocos2d").mkdir()
    (source / "vocos2d" / "generator_jit.ckpt").write_bytes(b"x")
    (source / "README.md").write_text("hello")
    api.quantize(source, out, "int8", progress=False)
    copied = {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file() and path.parent.name != "llm"
    }
    assert copied == {
        "README.md",
        "flow/config.yaml",
        "flow/flow.pt",
        "frontend/campplus.onnx",
        "hift/hift.pt",
        "speech_tokenizer/config.json",
        "speech_tokenizer/model.safetensors",
        "vq32k-phoneme-tokenizer/tokenizer.model",
        "vq32k-phoneme-tokenizer/tokenizer_config.json",
    }
    assert all((source / one).read_bytes() == (out / one).read_bytes() for one in copied)
    assert "quantization_config" in json.loads((out / "llm" / "config.json").read_text())
    small = load_talker(out, speaker=Speaker())
    assert [*small.speak("Hi.", small.voice(Sound(recording(1.0), 22050), "x"), seed=1)]
    info = api.info(out)
    assert any(use.scheme == "int8" for use in info.schemes)


def test_plan_and_info_of_a_pipeline_mean_its_language_model(folder: Path) -> None:
    work, machines = api.plan(str(folder), schemes=["int8"])
    same, _ = api.plan(str(folder / "llm"), schemes=["int8"])
    assert machines and work.title == same.title and api.info(folder).parameters == api.info(folder / "llm").parameters


def test_nothing_is_written_over_another_pipeline(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    (out / "hift").mkdir(parents=True)
    (out / "hift" / "hift.pt").write_bytes(b"mine")
    with pytest.raises(UsageError, match="has another hift/hift.pt"):
        api.quantize(folder, out, "int8", progress=False)
    assert [path.name for path in out.iterdir()] == ["hift"] and (out / "hift" / "hift.pt").read_bytes() == b"mine"
    with pytest.raises(UsageError, match="is the model itself"):
        api.quantize(folder, folder, "int8", progress=False)


def test_a_copy_that_was_interrupted_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "small", shutil.copyfile

    def cut(source: Path, target: Path) -> None:
        if Path(source).name == "hift.pt":
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(source, target)

    monkeypatch.setattr(shutil, "copyfile", cut)
    with pytest.raises(CheckpointError, match="hift.pt: cannot be copied"):
        api.quantize(folder, out, "int8", progress=False)
    assert [*(out / "hift").iterdir()] == [] and not (out / "llm").exists()
    monkeypatch.setattr(shutil, "copyfile", whole)
    api.quantize(folder, out, "int8", progress=False)
    assert (out / "hift" / "hift.pt").read_bytes() == (folder / "hift" / "hift.pt").read_bytes()
