"""GLM-ASR from sound to text: logits, tokens and texts equal transformers'; quantized, cut, streamed, refused."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from glmasr_tiny import RATE, SIZES, make, noise, processor
from safetensors.torch import load_file

import isobit
from isobit import api
from isobit.cli.main import main
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.engine.transcription import SLACK, Transcription, Window
from isobit.errors import UsageError
from isobit.formats.schemes import SCHEMES
from isobit.media.values import Sound
from isobit.models.archs import model_config
from isobit.models.archs.glmasr import encoder
from isobit.models.batch import Batch, Overlay
from isobit.models.blueprint import expected_tensors
from isobit.models.encoders import table
from isobit.models.encoders.glmasr import parts
from isobit.models.fields import Fields
from isobit.models.media import MediaPrompt

TOLERANCE = 1e-4
LENGTHS = (0.5, 1, 29.9, 30, 31, 70)
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module", params=SIZES)
def made(request, tmp_path_factory) -> tuple[Any, Path, LLM]:
    """transformers' model, its folder, and ours."""
    return _made(tmp_path_factory, list(SIZES).index(request.param) + 1, **SIZES[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Any, Path, LLM]:
    return _made(tmp_path_factory, 7)


def _made(factory: Any, seed: int, **sizes: Any) -> tuple[Any, Path, LLM]:
    folder = factory.mktemp("glmasr")
    model = make(folder, seed, **sizes)
    return model, folder, api.LLM(folder)


def request(llm: LLM, *sounds: Sound) -> MediaPrompt:
    content = [*[{"type": "audio"}] * len(sounds), {"type": "text", "text": "Please transcribe this audio into text"}]
    messages = [{"role": "user", "content": content}]
    assert llm.tokenizer.chat_template is not None
    return llm.media_prompt(llm.tokenizer.chat_template, messages, sounds, add_generation_prompt=True)


def overlay(llm: LLM, prompt: MediaPrompt) -> Overlay:
    assert llm.tower is not None
    rows = torch.tensor([place for one in prompt.placed for place in one.places])
    return Overlay(rows, torch.cat([llm.tower.encode(one.piece) for one in prompt.placed]))


@torch.inference_mode()
def test_logits_equal_transformers(made) -> None:
    model, folder, llm = made
    few = model.config.audio_config.num_key_value_heads != 4
    for samples in [*map(noise, (1, 31) if few else LENGTHS), np.zeros(RATE, np.float32)]:
        wanted = model(**processor(folder).apply_transcription_request(samples)).logits[0]
        prompt = request(llm, Sound(samples, RATE))
        got = llm.model.forward(Batch.of([prompt.ids], overlays=[overlay(llm, prompt)]))
        assert got.shape == wanted.shape and (got - wanted).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_two_sounds_in_one_prompt_have_the_logits_of_transformers(plain) -> None:
    model, folder, llm = plain
    sounds = [noise(31, seed=3), noise(0.7, seed=4)]
    theirs = processor(folder)
    parts = [theirs.apply_transcription_request(one) for one in sounds]
    prompt = request(llm, *(Sound(one, RATE) for one in sounds))
    wanted = model(
        input_ids=torch.tensor([prompt.ids]),
        input_features=torch.cat([one["input_features"] for one in parts]),
        input_features_mask=torch.cat([one["input_features_mask"] for one in parts]),
    ).logits[0]
    got = llm.model.forward(Batch.of([prompt.ids], overlays=[overlay(llm, prompt)]))
    assert (got - wanted).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_decoding_step_by_step_equals_prefill(plain) -> None:
    _, _, llm = plain
    prompt = request(llm, Sound(noise(2), RATE))
    laid, ids = overlay(llm, prompt), [*prompt.ids]
    whole = llm.model.forward(Batch.of([ids], overlays=[laid]))
    cache, found = llm.model.new_cache(1, len(ids)), []
    for begin, end in ((0, 10), (10, 20), *((at, at + 1) for at in range(20, len(ids)))):
        inside = (laid.rows >= begin) & (laid.rows < end)
        part = Overlay(laid.rows[inside] - begin, laid.embeds[inside]) if bool(inside.any()) else None
        found.append(llm.model.forward(cache.next([ids[begin:end]], overlays=[part]), cache))
    assert (torch.cat(found) - whole).abs().max() <= TOLERANCE


def theirs(model: Any, folder: Path, samples: np.ndarray, tokens: int) -> list[int]:
    """What transformers generates, greedily."""
    inputs = processor(folder).apply_transcription_request(samples)
    options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
    return model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()


def test_greedy_texts_equal_transformers(made) -> None:
    model, folder, llm = made
    eos = SamplingParams(max_tokens=24, ignore_eos=True, logit_bias=tuple((id, -100.0) for id in llm.tokenizer.eos_ids))
    samples = [noise(seconds, seed=int(seconds)) for seconds in (0.5, 3, 31)]
    prompts = [request(llm, Sound(one, RATE)) for one in samples]
    together = llm.generate(prompts, eos)
    for one, answer in zip(samples, together, strict=True):
        assert list(answer.token_ids) == theirs(model, folder, one, 24)
    pieces = list(llm.stream(prompts[2], eos))
    assert pieces[-1].completion is not None and pieces[-1].completion.token_ids == together[2].token_ids


def test_a_sound_that_came_before_is_read_from_the_cache_and_another_is_not(plain) -> None:
    _, _, llm = plain
    one, other = (request(llm, Sound(noise(9, seed=seed), RATE)) for seed in (20, 21))
    assert one.ids == other.ids
    first = llm.generate(one, GREEDY)[0]
    again, else_ = llm.generate(one, GREEDY)[0], llm.generate(other, GREEDY)[0]
    assert first.usage.cached_tokens == 0 and again.token_ids == first.token_ids
    assert again.usage.cached_tokens >= 64 and else_.usage.cached_tokens == 0


@pytest.mark.parametrize(("tied", "count"), [(True, 2_136_470_528), (False, 2_257_843_200)])
def test_it_has_as_many_parameters_as_published(tied: bool, count: int) -> None:
    keys = {"architectures": ["GlmAsrForConditionalGeneration"], "tie_word_embeddings": tied}
    with torch.device("meta"):
        published = transformers.GlmAsrForConditionalGeneration(transformers.GlmAsrConfig(tie_word_embeddings=tied))
        heard = parts(encoder(Fields(keys), 59264), 2048)
    found = sum(math.prod(shape) for shape in expected_tensors(model_config(keys)).values())
    found += sum(parameter.numel() for parameter in heard.parameters())
    assert found == sum(parameter.numel() for parameter in published.parameters()) == count


# ---------------------------------------------------------------------- written down


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> LLM:
    """A model with a context that holds half a minute, so that a minute is cut."""
    folder = tmp_path_factory.mktemp("short")
    make(folder, 11)
    return api.LLM(folder, context=700)


def whole(llm: LLM, samples: np.ndarray, **options: Any) -> str:
    """A sound in one prompt, written down through the engine."""
    asked = Transcription(llm, Sound(samples, RATE), options.pop("prompt", None))
    prompt = asked.prompt(0)
    params = asked.params(prompt, SamplingParams(**llm.tokenizer.defaults.choose(options).settings))
    return llm.generate(prompt, params)[0].text.strip()


def test_a_sound_is_written_down(plain, tmp_path) -> None:
    _, folder, llm = plain
    samples = noise(3)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    wanted = whole(llm, samples)
    assert wanted
    data = (tmp_path / "a.wav").read_bytes()
    for sound in (tmp_path / "a.wav", str(tmp_path / "a.wav"), data, Sound(samples, RATE)):
        done = isobit.transcribe(llm, sound)
        assert (done.text, done.seconds, done.notes[:0]) == (wanted, 3.0, ())
        assert [one.window for one in done.parts] == [Window(0.0, 3.0)]
    assert done.usage.prompt_tokens == len(request(llm, Sound(samples, RATE)).ids)
    assert isobit.transcribe(folder, data).text == wanted
    assert isobit.transcribe(isobit.load(folder), data).text == wanted
    other = isobit.transcribe(llm, data, prompt="Which language is this?")
    assert other.text == whole(llm, samples, prompt="Which language is this?") != wanted


def test_a_text_that_does_not_end_is_cut_off_and_it_is_said(plain) -> None:
    _, _, llm = plain
    done = isobit.transcribe(llm, Sound(noise(2), RATE), ignore_eos=True)
    assert done.usage.completion_tokens == 25 + SLACK and done.parts[0].finish_reason == "length"
    assert "0.0 to 2.0 seconds did not come to an end" in done.notes[0]
    assert "repeated itself" in done.notes[0]
    told = isobit.transcribe(llm, Sound(noise(2), RATE), ignore_eos=True, max_tokens=3)
    assert told.usage.completion_tokens == 3 and "max_tokens is 3" in told.notes[0]


def test_a_long_sound_is_cut_where_it_is_quiet_and_its_texts_are_joined(short) -> None:
    samples = noise(70)
    for at in (25, 48):
        samples[(at * RATE) : (at + 1) * RATE] = 0
    done = isobit.transcribe(short, Sound(samples, RATE), max_tokens=9)
    ends = [one.window.end for one in done.parts]
    assert [round(end, 1) for end in ends] == [25.5, 48.5, 70.0] and "cut into 3 parts" in done.notes[0]
    cuts = [0, *(round(end * RATE) for end in ends)]
    texts = [
        isobit.transcribe(short, Sound(samples[begin:end], RATE), max_tokens=9).text
        for begin, end in zip(cuts, cuts[1:], strict=False)
    ]
    assert [one.text.strip() for one in done.parts] == texts
    pieces = list(api.transcribe_in_pieces(short, Sound(samples, RATE), max_tokens=9))
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == done.text == pieces[-1].text
    by_window = isobit.transcribe(short, Sound(samples, RATE), max_tokens=9, window=12)
    assert len(by_window.parts) > 5 and max(one.window.end - one.window.begin for one in by_window.parts) <= 12


def test_what_cannot_be_written_down_is_refused(plain, short, tmp_path) -> None:
    _, folder, llm = plain
    sound = Sound(noise(1), RATE)
    bundled = api.LLM("bundled")
    for wrong, said in (
        (lambda: isobit.transcribe(bundled, sound), r"does not hear: this model reads text alone\. Sounds"),
        (lambda: isobit.transcribe("bundled", sound), "does not hear"),
        (lambda: isobit.transcribe(llm, Sound(np.full(RATE, np.nan, np.float32), RATE)), "NaN"),
        (lambda: isobit.transcribe(llm, Sound(np.zeros(100, np.float32), RATE)), "too short to be heard"),
        (lambda: isobit.transcribe(llm, Sound(np.zeros(0, np.float32), RATE)), "no samples"),
        (lambda: isobit.transcribe(llm, b"RIFFoops"), "sound"),
        (lambda: isobit.transcribe(llm, tmp_path / "none.wav"), "cannot be read"),
        (lambda: isobit.transcribe(llm, tmp_path), "cannot be read"),
        (lambda: isobit.transcribe(3, sound), "model must be a name"),
        (lambda: isobit.transcribe(llm, sound, window=0), "window"),
        (lambda: isobit.transcribe(llm, sound, window=700), "use 1 to 655"),
        (lambda: isobit.transcribe(llm, sound, prompt=3), "prompt must be"),
        (lambda: isobit.transcribe(llm, sound, beams=3), "unknown sampling option beams"),
        (lambda: isobit.transcribe(api.LLM(folder, context=100), sound), r"a larger context \(--context\)"),
        (lambda: isobit.transcribe(llm, sound, prompt="x" * 9000), "shorten the prompt"),
    ):
        with pytest.raises(UsageError, match=said):
            wrong()


def test_without_a_template_it_is_said_what_is_missing(plain, tmp_path) -> None:
    for file in plain[1].iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match=r"chat_template.jinja is missing"):
        isobit.transcribe(tmp_path, Sound(noise(1), RATE))


def test_a_template_that_asks_for_the_sound_and_not_for_the_type_is_understood(plain, tmp_path) -> None:
    _, folder, llm = plain
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    asks = (folder / "chat_template.jinja").read_text().replace("part.type == 'audio'", "'audio' in part")
    (tmp_path / "chat_template.jinja").write_text(asks)
    sound = Sound(noise(1), RATE)
    assert request(api.LLM(tmp_path), sound).ids == request(llm, sound).ids


@pytest.mark.parametrize("options", [{"kv_cache": "fp8"}, {"batch_invariant": True}, {"dtype": "bfloat16"}], ids=str)
def test_it_hears_with_every_option_of_loading(plain, options: dict[str, Any]) -> None:
    _, folder, _ = plain
    llm, sound = api.LLM(folder, **options), Sound(noise(1), RATE)
    alone = isobit.transcribe(llm, sound, max_tokens=6, ignore_eos=True)
    assert alone.usage.completion_tokens == 6
    if "batch_invariant" in options:
        both = llm.generate([request(llm, sound), request(llm, Sound(noise(3), RATE))], GREEDY)
        assert both[0].token_ids[:6] == llm.generate(request(llm, sound), GREEDY)[0].token_ids[:6]


def test_other_spectrograms_have_other_numbers_of_tokens(plain, tmp_path) -> None:
    for file in plain[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    keys = json.loads((tmp_path / "processor_config.json").read_text())
    keys["feature_extractor"] |= {"hop_length": 800, "n_fft": 1600}
    (tmp_path / "processor_config.json").write_text(json.dumps(keys))
    done = isobit.transcribe(tmp_path, Sound(noise(4), RATE), ignore_eos=True)
    assert done.usage.completion_tokens == 10 + SLACK


# ---------------------------------------------------------------------- the command


@pytest.fixture
def files(tmp_path) -> list[Path]:
    for name, seconds, rate, channels in (("a.wav", 2, 44_100, 2), ("b.flac", 1, 8000, 1), ("c.mp3", 1, 16_000, 1)):
        samples = noise(seconds, seed=rate, rate=rate)
        soundfile.write(tmp_path / name, np.stack([samples] * channels, 1), rate)
    return [tmp_path / name for name in ("a.wav", "b.flac", "c.mp3")]


def test_the_command_prints_texts_as_they_come(plain, files, capsys) -> None:
    _, folder, llm = plain
    wanted = [isobit.transcribe(llm, file, max_tokens=12).text for file in files]
    for more in ([], ["--no-stream"]):
        assert main(["transcribe", str(files[0]), "--model", str(folder), "--max-tokens", "12", *more]) == 0
        assert capsys.readouterr().out == wanted[0] + "\n"
    assert main(["transcribe", *map(str, files), "--model", str(folder), "--max-tokens", "12"]) == 0
    shown = "\n".join(f"==> {file} <==\n{text}\n" for file, text in zip(files, wanted, strict=True))
    assert capsys.readouterr().out == shown


def test_the_document_of_the_command(plain, files, capsys) -> None:
    _, folder, llm = plain
    assert main(["transcribe", *map(str, files), "--model", str(folder), "--json", "--window", "1.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in found["transcripts"]] == [str(file) for file in files]
    first = found["transcripts"][0]
    assert first["text"] == isobit.transcribe(llm, files[0], window=1.5).text and len(first["parts"]) == 2
    assert first["seconds"] == 2.0 and first["usage"]["prompt_tokens"] > 25 and "cut into 2 parts" in first["notes"][0]


def test_the_command_refuses_before_a_model_is_loaded(plain, files, tmp_path, capsys, monkeypatch) -> None:
    _, folder, _ = plain
    monkeypatch.setattr(api, "opened", lambda *args, **options: pytest.fail("a model was loaded"))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(files[0].read_bytes()[:5000])
    (tmp_path / "text.wav").write_text("no sound")
    for wrong, said in (
        ([str(files[1]), str(cut)], "cut off"),
        ([str(tmp_path / "text.wav")], "no sound that can be read"),
        ([str(tmp_path / "none")], "cannot be read"),
        (["-", "-"], "give - once"),
        ([str(files[1]), "--window", "0.2"], "--window must be"),
        ([str(files[1]), "--temperature", "-1"], "temperature"),
    ):
        assert main(["transcribe", *wrong, "--model", str(folder)]) == 2
        assert said in capsys.readouterr().err


def test_a_sound_on_standard_input(plain, files, capsys, monkeypatch) -> None:
    _, folder, llm = plain
    data = files[1].read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["transcribe", "-", "--model", str(folder), "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == isobit.transcribe(llm, data, max_tokens=5).text + "\n"


def test_without_transformers_the_command_says_what_to_install(plain, files, capsys, monkeypatch) -> None:
    monkeypatch.setattr(table, "_NEEDED", ("no_such_package",))
    assert main(["transcribe", str(files[1]), "--model", str(plain[1])]) == 2
    assert "isobit[media]" in capsys.readouterr().err


def test_the_command_says_that_a_model_of_text_does_not_hear(files, capsys) -> None:
    assert main(["transcribe", str(files[1]), "--model", "bundled"]) == 2
    assert "does not hear" in capsys.readouterr().err


def test_what_ends_a_text_may_stand_in_the_section_of_the_decoder(plain, tmp_path) -> None:
    for file in plain[1].iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert Tokenizer.from_folder(tmp_path).eos_ids == Tokenizer.from_folder(plain[1]).eos_ids
    keys = json.loads((tmp_path / "config.json").read_text())
    keys["text_config"] |= {"eos_token_id": [7, 9]}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert {7, 9} <= Tokenizer.from_folder(tmp_path).eos_ids


# ---------------------------------------------------------------------- quantized

FAST = ("int8", "fp8-static")


def test_transformers_loads_the_copy_and_has_its_logits(plain, tmp_path) -> None:
    _, folder, _ = plain
    isobit.quantize(folder, tmp_path / "out", "int4-g32", progress=False)
    llm, samples = api.LLM(tmp_path / "out"), noise(1)
    loaded = transformers.GlmAsrForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    prompt = request(llm, Sound(samples, RATE))
    with torch.inference_mode():
        wanted = loaded(**processor(folder).apply_transcription_request(samples)).logits[0]
        got = llm.model.forward(Batch.of([prompt.ids], overlays=[overlay(llm, prompt)]))
    assert (got - wanted).abs().max() <= TOLERANCE


def test_weights_in_an_old_file_are_read(plain, tmp_path) -> None:
    _, folder, llm = plain
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    sound = Sound(noise(1), RATE)
    assert isobit.transcribe(tmp_path, sound).text == isobit.transcribe(llm, sound).text


@pytest.mark.parametrize("name", [pytest.param(one, marks=() if one in FAST else pytest.mark.slow) for one in SCHEMES])
def test_every_scheme_quantizes_loads_and_hears(plain, tmp_path, name: str) -> None:
    _, folder, llm = plain
    isobit.quantize(folder, tmp_path / "out", name, progress=False)
    quantized = api.LLM(tmp_path / "out")
    prompt = request(quantized, Sound(noise(2), RATE))
    assert prompt.ids == request(llm, Sound(noise(2), RATE)).ids
    piece = prompt.placed[0].piece
    assert quantized.tower is not None and llm.tower is not None
    heard, wanted = (one.tower.encode(piece) for one in (quantized, llm))
    if name in ("bf16", "f16"):  # in which all of a model is stored
        assert (heard - wanted).norm() <= 0.01 * wanted.norm()
    else:
        assert torch.equal(heard, wanted)
    done = isobit.transcribe(quantized, Sound(noise(2), RATE), max_tokens=8, ignore_eos=True)
    assert done.usage.completion_tokens == 8
