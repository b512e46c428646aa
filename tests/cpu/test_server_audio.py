"""``/v1/audio/transcriptions``: texts of sounds in every form, streams, forms that are broken, other models."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from glmasr_tiny import make, noise
from served import client, events, listening, serving
from starlette.testclient import TestClient

import isobit
from isobit import api
from isobit.engine.llm import LLM
from isobit.media import Limits

PATH = "/v1/audio/transcriptions"
MODEL_OF_TEXT = "does not hear: it reads text, at /v1/chat/completions"


def wav(samples: Any, rate: int = 16_000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def text_only() -> TestClient:
    return client()


def refused(reply: Any, said: str, param: str | None = None, status: int = 400) -> None:
    error = reply.json()["error"]
    assert reply.status_code == status and said in error["message"], reply.text
    assert param is None or error["param"] == param


def test_a_model_of_text_says_that_it_does_not_hear_and_what_it_does(text_only: TestClient) -> None:
    for path in (PATH, "/v1/audio/translations"):
        refused(text_only.post(path, files={"file": wav(np.zeros(16_000))}), MODEL_OF_TEXT, "model")
        refused(text_only.post(path, json={}), MODEL_OF_TEXT, "model")
        assert text_only.get(path).status_code == 405


def test_the_description_has_the_form(text_only: TestClient) -> None:
    found = text_only.get("/openapi.json").json()["paths"][PATH]["post"]
    assert list(found["requestBody"]["content"]) == ["multipart/form-data"]
    assert {"400", "413", "415"} <= set(found["responses"])


# ---------------------------------------------------------------------- a model that hears


@pytest.fixture(scope="module")
def llm(tmp_path_factory: Any) -> LLM:
    folder = tmp_path_factory.mktemp("glmasr")
    make(folder, 5)
    return api.LLM(folder, sequences=8)


@pytest.fixture(scope="module")
def http(llm: LLM) -> TestClient:
    return client(serving(llm, names=("glm-asr",), media=Limits(seconds=8, bytes=1 << 20)))


def ask(http: TestClient, data: bytes | None = None, **fields: Any) -> Any:
    fields = {"max_tokens": "9"} | fields
    return http.post(PATH, files={"file": ("a.wav", wav(noise(2)) if data is None else data)}, data=fields)


def test_texts_of_every_form(http: TestClient, llm: LLM) -> None:
    data = wav(noise(2))
    wanted = isobit.transcribe(llm, data, max_tokens=9)
    found = ask(http, data, model="glm-asr").json()
    heard = {"audio_tokens": 25, "text_tokens": wanted.usage.prompt_tokens - 25}
    assert found["text"] == wanted.text and found["usage"] == {
        "type": "tokens", "input_tokens": wanted.usage.prompt_tokens, "input_token_details": heard,
        "output_tokens": wanted.usage.completion_tokens,
        "total_tokens": wanted.usage.prompt_tokens + wanted.usage.completion_tokens,
    }  # fmt: skip
    plain = ask(http, data, response_format="text")
    assert plain.text == wanted.text and plain.headers["content-type"].startswith("text/plain")
    verbose = ask(http, data, response_format="verbose_json").json()
    assert (verbose["text"], verbose["duration"], verbose["task"]) == (wanted.text, 2.0, "transcribe")
    other = ask(http, data, prompt="What is this?").json()["text"]
    assert other == isobit.transcribe(llm, data, prompt="What is this?", max_tokens=9).text != wanted.text
    flac = ask(http, wav(noise(2), kind="FLAC")).json()
    assert flac["usage"]["input_tokens"] == wanted.usage.prompt_tokens


def test_streams_have_the_same_text(http: TestClient) -> None:
    whole = ask(http).json()
    found = events(ask(http, stream="true").text)
    assert {one["type"] for one in found[:-1]} == {"transcript.text.delta"}
    assert "".join(one["delta"] for one in found[:-1]) == found[-1]["text"] == whole["text"]
    assert found[-1]["type"] == "transcript.text.done" and found[-1]["usage"] == whole["usage"]


def test_settings_of_sampling_are_used(http: TestClient) -> None:
    greedy, drawn = (
        [ask(http, temperature=temperature, seed=seed).json()["text"] for seed in ("1", "2")]
        for temperature in ("0", "1.9")
    )
    assert greedy[0] == greedy[1] == ask(http).json()["text"] and len({*greedy, *drawn}) == 3
    assert ask(http, temperature="1.9", seed="1").json()["text"] == drawn[0]


def test_what_changes_nothing_is_said(http: TestClient) -> None:
    reply = ask(http, language="de", colour="blue", chunking_strategy="auto")
    assert reply.status_code == 200 and "colour, language" in reply.headers["warning"]


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"response_format": "srt"}, "no times", "response_format"),
    ({"response_format": "vtt"}, "no times", "response_format"),
    ({"response_format": "yaml"}, "json, text, verbose_json", "response_format"),
    ({"response_format": "verbose_json", "stream": "true"}, "verbose_json", "response_format"),
    ({"timestamp_granularities[]": "word"}, "no times", "timestamp_granularities"),
    ({"include[]": "logprobs"}, "log-probabilities", "include"),
    ({"known_speaker_names[]": ["a", "b"]}, "speakers", "known_speaker_names"),
    ({"temperature": "warm"}, "temperature", "temperature"),
    ({"temperature": "-1"}, "temperature", None),
    ({"stream": "perhaps"}, "stream", "stream"),
    ({"max_tokens": "0"}, "max_tokens", "max_tokens"),
    ({"prompt": ["a", "b"]}, "there twice", "prompt"),
]


@pytest.mark.parametrize(("fields", "said", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_fields_that_cannot_be_honoured_are_refused(
    http: TestClient, fields: dict[str, Any], said: str, param: str | None
) -> None:
    refused(ask(http, **fields), said, param)


def test_another_model_is_refused(http: TestClient) -> None:
    refused(ask(http, model="whisper-1"), "there is no model 'whisper-1'", "model", 404)


def broken_sounds() -> dict[str, tuple[bytes, str]]:
    good = wav(noise(1))
    file = io.BytesIO()
    soundfile.write(file, np.full(16_000, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT")
    return {
        "cut off": (good[: len(good) // 2], "cut off"),
        "no sound": (b"hello", "no sound that can be read"),
        "nothing": (b"", "empty"),
        "no samples": (wav(np.zeros(0)), "no samples"),
        "too short": (wav(np.zeros(300)), "too short to be heard"),
        "NaN": (file.getvalue(), "NaN"),
        "one sample a second": (wav(np.zeros(50), 1), "1 samples a second"),
        "too long": (wav(np.zeros(9 * 1000), 1000), "the limit is 8"),
    }


@pytest.mark.parametrize("name", broken_sounds())
def test_broken_sounds_are_refused_with_what_is_wrong(http: TestClient, name: str) -> None:
    data, said = broken_sounds()[name]
    refused(ask(http, data), said, "file")


def test_eight_channels_are_heard(http: TestClient) -> None:
    samples = np.stack([noise(1, seed=seed) for seed in range(8)], 1)
    assert ask(http, wav(samples)).status_code == 200


def test_forms_that_are_broken(http: TestClient) -> None:
    head = {"content-type": "multipart/form-data; boundary=x"}
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nabc'
    refused(http.post(PATH, json={"file": "a"}), "multipart/form-data, not application/json", status=415)
    refused(http.post(PATH, content=b"a=1"), "multipart/form-data, not nothing", status=415)
    refused(http.post(PATH, content=file, headers={"content-type": "multipart/form-data"}), "boundary")
    refused(http.post(PATH, content=b"no form", headers=head), "form")
    refused(http.post(PATH, content=file, headers=head), "breaks off")
    unnamed = file.replace(b'; name="file"', b"") + b"\r\n--x--\r\n"
    refused(http.post(PATH, content=unnamed, headers=head), "no name")
    latin = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xe9\r\n--x--\r\n'
    refused(http.post(PATH, content=latin, headers=head), "not UTF-8", "prompt")
    long = b"--x\r\n" + b"A" * 70_000
    refused(http.post(PATH, content=long, headers=head), "cannot be read")
    refused(http.post(PATH, data={"model": "glm-asr"}, files={"sound": b"x"}), "belongs into the field file", "file")
    refused(http.post(PATH, files=[("file", b"x"), ("file", b"y")]), "several files", "file")
    refused(http.post(PATH, files={"model": (None, "glm-asr")}), "file is missing", "file")
    many = [(f"f{number}", (None, "x")) for number in range(70)]
    refused(http.post(PATH, files=many), "more than 64 fields")
    refused(ask(http, prompt="x" * 70_000), "more than 65,536 bytes", "prompt")
    refused(ask(http, bytes((1 << 20) + 9)), "the limit is 1,048,576", "file", 413)
    refused(ask(http, bytes(3 << 20)), "the body is larger than", status=413)
    packed = http.post(PATH, content=b"x", headers=head | {"content-encoding": "gzip"})
    refused(packed, "compressed", status=415)


def test_translations_are_refused(http: TestClient) -> None:
    reply = http.post("/v1/audio/translations", files={"file": wav(noise(1))})
    refused(reply, "in the language it is said in: /v1/audio/transcriptions", "model")


def test_long_sounds_are_cut_and_it_is_said(tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("short")
    make(folder, 11)
    http = client(serving(api.LLM(folder, context=300), names=("short",)))
    found = ask(http, wav(noise(20))).json()
    assert "cut into 3 parts" in found["notes"][0]
    last = events(ask(http, wav(noise(20)), stream="true").text)[-1]
    assert (last["text"], last["notes"]) == (found["text"], found["notes"])


def test_a_sound_in_a_chat_is_heard(http: TestClient, llm: LLM) -> None:
    data = base64.b64encode(wav(noise(2))).decode()
    content = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "text", "text": "Please transcribe this audio into text"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 9}
    reply = http.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["message"]["content"].strip() == ask(http).json()["text"]
    assert reply["usage"]["prompt_tokens_details"]["audio_tokens"] == 25
    assert http.get("/v1/models").json()["data"][0]["input_modalities"] == ["text", "audio"]


def test_the_client_of_openai(llm: LLM) -> None:
    data = wav(noise(2))
    wanted = isobit.transcribe(llm, data, max_tokens=9)
    more = {"max_tokens": 9}
    with listening(serving(llm, names=("glm-asr",))) as address:
        audio = openai.OpenAI(base_url=f"{address}/v1", api_key="none").audio
        file = ("a.wav", data)
        found = audio.transcriptions.create(model="glm-asr", file=file, extra_body=more)
        assert found.text == wanted.text
        assert found.usage is not None and found.usage.type == "tokens"
        text = audio.transcriptions.create(model="glm-asr", file=file, response_format="text", extra_body=more)
        assert str(text) == wanted.text
        verbose = audio.transcriptions.create(
            model="glm-asr", file=file, response_format="verbose_json", extra_body=more
        )
        assert (verbose.text, verbose.duration) == (wanted.text, 2.0)
        streamed = [*audio.transcriptions.create(model="glm-asr", file=file, stream=True, extra_body=more)]
        assert "".join(one.delta for one in streamed if one.type == "transcript.text.delta") == wanted.text
        assert streamed[-1].type == "transcript.text.done" and streamed[-1].text == wanted.text
        with pytest.raises(openai.BadRequestError, match="no times"):
            audio.transcriptions.create(
                model="glm-asr", file=file, response_format="verbose_json", timestamp_granularities=["word"]
            )
        with (
            warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # theirs
            pytest.raises(openai.BadRequestError, match="language it is said in"),
        ):
            audio.translations.create(model="glm-asr", file=file)


def test_a_queue_that_is_full_refuses_a_sound(llm: LLM) -> None:
    served = serving(llm, names=("glm-asr",))
    served.sequences = 10**6
    refused(ask(client(served)), "queue is full", status=503)
