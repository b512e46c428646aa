"""``/v1/audio/speech``: whole files, chunks, events, the openai client, and every request that cannot be."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from served import client, listening, serving
from starlette.testclient import TestClient
from tiny_speech import Speaker, recording, save_pipeline

from isobit.cli.main import main
from isobit.errors import UsageError
from isobit.server.serving import Serving
from isobit.server.speaking import Speaking
from isobit.speech.talker import RATE, Talker, load_talker
from isobit.speech.voices import voices_in


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("served")
    voices = base / "voices"
    voices.mkdir()
    for name, seconds in (("anna", 1.0), ("bo.2", 1.3)):
        soundfile.write(voices / f"{name}.wav", recording(seconds), 22050)
        (voices / f"{name}.txt").write_text("This is how I sound")
    return save_pipeline(base / "GLM-TTS"), voices


@pytest.fixture(scope="module")
def talker(folders: tuple[Path, Path]) -> Talker:
    return load_talker(folders[0], speaker=Speaker(), sequences=4)


@pytest.fixture
def served(talker: Talker, folders: tuple[Path, Path]) -> Serving:
    made = serving(talker.llm, names=("glm-tts",))
    made.speaking = Speaking(talker, voices_in(folders[1]))
    return made


@pytest.fixture
def http(served: Serving) -> TestClient:
    return client(served)


BODY: dict[str, Any] = {"model": "glm-tts", "input": "Hi there.", "voice": "anna", "response_format": "wav", "seed": 3}


def spoken(data: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(data))
    assert rate == RATE
    return samples


@pytest.mark.parametrize(
    ("name", "kind"),
    [("wav", "audio/wav"), ("flac", "audio/flac"), ("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("pcm", "audio/pcm")],
)
def test_a_whole_file(name: str, kind: str, http: TestClient) -> None:
    reply = http.post("/v1/audio/speech", json=BODY | {"response_format": name})
    assert reply.status_code == 200 and reply.headers["content-type"] == kind
    wanted = spoken(http.post("/v1/audio/speech", json=BODY).content)
    if name == "pcm":
        found = np.frombuffer(reply.content, "<i2") / 32768
    else:
        found = spoken(reply.content)
    if name not in ("mp3", "opus"):
        assert np.array_equal(found, wanted)
    assert abs(len(found) - len(wanted)) < RATE / 10


def test_chunks_and_events_are_the_same_samples(http: TestClient) -> None:
    body = BODY | {"input": "Hello there, my good friends", "stream": True}
    pcm = http.post("/v1/audio/speech", json=body | {"response_format": "pcm"})
    assert pcm.status_code == 200 and "content-length" not in pcm.headers
    wav = http.post("/v1/audio/speech", json=body)
    assert wav.content[:4] == b"RIFF" and wav.content[44:] == pcm.content and len(pcm.content) > 40000
    events = http.post("/v1/audio/speech", json=body | {"stream_format": "sse", "response_format": "pcm"})
    assert events.headers["content-type"].startswith("text/event-stream")
    parts = [part.split("\n") for part in events.text.split("\n\n") if part and not part.startswith(":")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in parts]
    assert [name for name, _ in parts][-1] == "event: speech.audio.done" and found[-1] == {"type": "speech.audio.done"}
    assert len(found) > 2 and b"".join(base64.b64decode(one["audio"]) for one in found[:-1]) == pcm.content
    whole = http.post("/v1/audio/speech", json=body | {"stream": False, "response_format": "pcm"})
    assert len(whole.content) == len(pcm.content) and whole.content != pcm.content


def test_the_openai_client_saves_a_file(served: Serving, tmp_path: Path) -> None:
    import openai

    with listening(served) as address:
        asked = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with asked.audio.speech.with_streaming_response.create(
            model="glm-tts", input="Hi there.", voice="anna", response_format="flac", extra_body={"seed": 3}
        ) as reply:
            reply.stream_to_file(tmp_path / "a.flac")
        mp3 = asked.audio.speech.create(model="glm-tts", input="Hi there.", voice="bo.2")
        with pytest.raises(openai.BadRequestError, match="speed must be 1"):
            asked.audio.speech.create(model="glm-tts", input="Hi there.", voice="anna", speed=2.0)
    assert np.array_equal(
        spoken((tmp_path / "a.flac").read_bytes()), spoken(client(served).post("/v1/audio/speech", json=BODY).content)
    )
    assert len(spoken(mp3.content)) > RATE / 5


def test_several_speak_at_once_and_each_as_alone(served: Serving) -> None:
    http = client(served)
    bodies = [BODY | {"seed": seed, "voice": voice} for seed in (1, 2) for voice in ("anna", "bo.2")]
    alone = [http.post("/v1/audio/speech", json=body).content for body in bodies]
    found: list[bytes] = [b""] * len(bodies)

    def ask(at: int) -> None:
        found[at] = client(served).post("/v1/audio/speech", json=bodies[at]).content

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone and len({*alone}) == 4 and served.sequences == 0


@pytest.mark.parametrize(
    ("change", "status", "param", "why"),
    [
        ({"input": ""}, 400, "input", "empty"),
        ({"input": None}, 400, "input", "empty"),
        ({"input": "..."}, 400, "input", "nothing to say"),
        ({"input": "a" * 10_001}, 400, "input", "10,001 characters"),
        ({"input": "x <|user|>"}, 400, None, "control token"),
        ({"voice": "nobody"}, 400, "voice", "one of anna, bo.2"),
        ({"voice": None}, 400, "voice", "one of anna"),
        ({"voice": {"id": 3}}, 400, "voice", "one of"),
        ({"response_format": "aac"}, 400, "response_format", "mp3, wav"),
        ({"response_format": "mp3", "stream": True}, 400, "response_format", "wav or pcm"),
        ({"speed": 1.5}, 400, "speed", "must be 1"),
        ({"seed": -1}, 400, "seed", "between"),
        ({"stream_format": "x"}, 400, "stream_format", "audio or sse"),
        ({"instructions": "sing"}, 400, "instructions", "takes none"),
        ({"model": "other"}, 404, "model", "there is no model"),
        ({"input": 3}, 400, "input", "Expected"),
    ],
)
def test_what_cannot_be_is_refused(
    change: dict[str, Any], status: int, param: str | None, why: str, http: TestClient
) -> None:
    reply = http.post("/v1/audio/speech", json=BODY | change)
    error = reply.json()["error"]
    assert reply.status_code == status and why in error["message"] and error["param"] == param


def test_voices_are_listed_and_an_object_names_one(http: TestClient) -> None:
    assert http.get("/v1/audio/voices").json()["data"] == [{"id": "anna"}, {"id": "bo.2"}]
    one = http.post("/v1/audio/speech", json=BODY | {"voice": {"id": "anna"}, "speed": 1})
    assert one.content == http.post("/v1/audio/speech", json=BODY).content


def test_nobody_chats_with_a_pipeline_and_a_chat_model_does_not_speak(http: TestClient) -> None:
    assert http.post("/v1/chat/completions", json={"messages": []}).status_code == 404
    assert http.get("/health").status_code == 200 and http.get("/v1/models").json()["data"][0]["id"] == "glm-tts"
    other = client()
    for reply in (other.post("/v1/audio/speech", json={"input": "Hi", "voice": "anna"}), other.get("/v1/audio/voices")):
        assert reply.status_code == 404 and "does not speak" in reply.json()["error"]["message"]


def test_a_recording_that_cannot_be_used_is_said(served: Serving, folders: tuple[Path, Path], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", recording(0.1), 22050)
    (tmp_path / "short.txt").write_text("x")
    assert served.speaking is not None
    served.speaking = Speaking(served.speaking.talker, voices_in(tmp_path))
    reply = client(served).post("/v1/audio/speech", json={"input": "Hi", "response_format": "wav"})
    assert reply.status_code == 400 and "0.10 seconds" in reply.json()["error"]["message"]


def test_folders_of_voices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no voices"):
        voices_in(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"x")
    with pytest.raises(UsageError, match="needs a.txt"):
        voices_in(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert [*voices_in(tmp_path)] == ["a"]
    (tmp_path / "a.flac").write_bytes(b"x")
    with pytest.raises(UsageError, match="two recordings"):
        voices_in(tmp_path)
    (tmp_path / "a.flac").unlink()
    (tmp_path / "a b.wav").write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot name a voice"):
        voices_in(tmp_path)


def test_serving_a_pipeline_asks_for_voices(folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(folders[0]), "--port", "0"]) == 2
    assert "needs --voices FOLDER" in capfd.readouterr().err
    assert main(["serve", "bundled", "--voices", str(folders[1]), "--port", "0"]) == 2
    assert "there is no folder bundled" in capfd.readouterr().err
