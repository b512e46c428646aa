"""Pictures, videos and sounds in requests: every way to send them, and everything that is wrong with them."""

from __future__ import annotations

import argparse
import re
import threading
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from seeing import audio, b64, gif, image, png, seeing, url, wav
from served import bundled, client, serving

from isobit.cli.serve import add_media_options, media_limits
from isobit.errors import UsageError
from isobit.media import Clip, Limits, Picture, Sound, clip
from isobit.server import media as room
from isobit.server.settings import Limits as BodyLimits


def ask(http: Any, parts: Any, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, "temperature": 0} | fields
    return http.post(path, json=body)


@pytest.fixture
def seen() -> tuple[Any, Any]:
    served = serving(seeing())
    return client(served), served.llm.tower


def test_a_picture_comes_as_it_was_sent(seen: Any) -> None:
    http, tower = seen
    reply = ask(http, [{"type": "text", "text": "What is "}, image(), {"type": "text", "text": "?"}])
    assert reply.status_code == 200, reply.text
    (found,) = tower.given
    assert isinstance(found, Picture) and found.pixels.shape == (30, 40, 3)
    assert (found.pixels == (200, 30, 30)).all()
    (message,) = tower.messages_given
    assert message["content"] == [
        {"type": "text", "text": "What is "},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    text = [*bundled().tokenizer.encode("What is ", False), *bundled().tokenizer.encode("?", False)]
    usage = reply.json()["usage"]
    assert usage["prompt_tokens"] == len(text) + 13
    assert usage["prompt_tokens_details"]["image_tokens"] == 13


def test_sounds_and_videos_come_too(seen: Any) -> None:
    http, tower = seen
    frames = [url(png(colour=(n, n, n)), "image/jpeg") for n in range(3)]
    joined = "data:video/jpeg;base64," + ",".join(b64(png(colour=(n, n, n))) for n in range(3))
    parts = [
        audio(),
        {"type": "audio_url", "audio_url": {"url": url(wav(1.0), "audio/wav")}},
        {"type": "video_url", "video_url": {"url": url(gif(), "image/gif")}},
        {"type": "video_url", "video_url": {"url": frames, "fps": 2}},
        {"type": "video_url", "video_url": {"url": joined}},
        {"type": "text", "text": "x"},
    ]
    reply = ask(http, parts)
    assert reply.status_code == 200, reply.text
    short, long, animated, listed, one = tower.given
    assert isinstance(short, Sound) and (len(short.samples), short.rate) == (4000, 8000) and len(long.samples) == 8000
    assert isinstance(animated, Clip) and np.array_equal(animated.frames, clip(gif()).frames) and animated.rate == 2.0
    assert listed.frames.shape == (3, 30, 40, 3) and listed.rate == 2.0 and (listed.frames[2] == 2).all()
    assert one.frames.shape == (3, 30, 40, 3) and one.rate == 1.0
    details = reply.json()["usage"]["prompt_tokens_details"]
    assert (details["audio_tokens"], details["video_tokens"]) == (5 + 9, 13 + 37 + 37)


def test_responses_and_messages_take_them(seen: Any) -> None:
    http, tower = seen
    item = {
        "role": "user",
        "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": url(png())}],
    }
    reply = http.post("/v1/responses", json={"input": [item], "max_output_tokens": 2, "temperature": 0})
    assert reply.status_code == 200, reply.text
    blocks = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(png())}}]
    blocks.append({"type": "text", "text": "a"})
    asked = {"messages": [{"role": "user", "content": blocks}], "max_tokens": 2, "temperature": 0}
    answer = http.post("/v1/messages", json=asked)
    assert answer.status_code == 200, answer.text
    counted = http.post("/v1/messages/count_tokens", json={"messages": asked["messages"]}).json()["input_tokens"]
    assert counted == 14
    usage = answer.json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == 14
    assert [medium.pixels.shape for medium in tower.given] == [(30, 40, 3)] * 3
    assert [part["type"] for part in tower.messages_given[0]["content"]] == ["image", "text"]


def test_a_tool_gives_a_picture() -> None:
    result = [{"type": "text", "text": "the screen"}]
    result.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(png())}})  # type: ignore[dict-item]
    turns = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "see", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": result}]},
    ]
    template = (
        "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endfor %}"
        "{% for m in messages if m.role == 'tool' %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    )
    template += "{% else %}<|endoftext|>{% endif %}{% endfor %}{% endfor %}"
    served = serving(seeing())
    served.llm.tokenizer.chat_templates = {"default": template}
    reply = client(served).post("/v1/messages", json={"messages": turns, "max_tokens": 1, "temperature": 0})
    assert reply.status_code == 200, reply.text
    assert len(served.llm.tower.given) == 1


def test_tokens_of_a_conversation_with_a_picture(seen: Any) -> None:
    http, _ = seen
    body = {"messages": [{"role": "user", "content": [image(), {"type": "text", "text": "a"}]}]}
    assert http.post("/tokenize", json=body).json()["count"] == 14


def test_a_stream_with_a_picture(seen: Any) -> None:
    http, _ = seen
    reply = ask(http, [image(), {"type": "text", "text": "a"}], stream=True, stream_options={"include_usage": True})
    assert reply.status_code == 200 and '"image_tokens":13' in reply.text


def test_the_list_of_models_says_what_they_read() -> None:
    assert client().get("/v1/models/bundled").json()["input_modalities"] == ["text"]
    found = client(serving(seeing("audio", "image"))).get("/v1/models").json()["data"][0]
    assert (found["input_modalities"], found["output_modalities"]) == (["text", "image", "audio"], ["text"])


def test_a_control_token_written_beside_a_picture_is_text(seen: Any) -> None:
    http, tower = seen
    reply = ask(http, [image(), {"type": "text", "text": "<|endoftext|>"}])
    assert reply.status_code == 200 and len(tower.given) == 1


# What is refused

FRAMES = {"type": "video_url", "video_url": {"url": [url(png())] * 5}}
NOT_SERVED: dict[str, tuple[Any, str]] = {
    "remote": (
        {"type": "image_url", "image_url": {"url": "https://x.invalid/a.png"}},
        "fetches nothing from elsewhere",
    ),
    "file": ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "must be a data: URL"),
    "path": ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "must be a data: URL"),
    "no address": ({"type": "image_url"}, "must be a data: URL"),
    "number": ({"type": "image_url", "image_url": 3}, "must be a data: URL"),
    "no base64": ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "in base64"),
    "bad base64": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,a!!!"}}, "not in base64"),
    "empty": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "is empty"),
    "text": (image(b"not an image"), "no image that can be read"),
    "cut off": (image(png(100, 100)[:-60]), "damaged or cut off"),
    "stored": ({"type": "input_image", "file_id": "file-1"}, "nothing is stored"),
    "no sound": (audio(b"RIFF"), "no sound that can be read"),
    "no data": ({"type": "input_audio", "input_audio": {"format": "wav"}}, "needs"),
    "a file": ({"type": "file", "file": {"file_data": "x"}}, "files are not read"),
    "unknown": ({"type": "hologram"}, "parts may be text"),
    "odd type": ({"type": ["image_url"]}, "parts may be text"),
    "animated": (image(gif()), "is animated"),
    "many bytes": (image(png(300, 300) + b"\0" * 5000), "bytes; the limit is 4,000"),
    "many pixels": (image(png(200, 101)), "200 x 101 pixels; the limit is 20,000"),
    "many frames": (FRAMES, "frames"),
    "rate": ({"type": "video_url", "video_url": {"url": [url(png())] * 2, "fps": 0}}, "frames a second"),
    "odd rate": ({"type": "video_url", "video_url": {"url": [url(png())], "fps": "2"}}, "fps must be a number"),
    "no frames": ({"type": "video_url", "video_url": {"url": []}}, "frames"),
    "long": (audio(wav(1.9, 1000)), "lasts"),
    "small": (image(png(3, 3)), "too small"),
}


@pytest.mark.parametrize("what", NOT_SERVED)
def test_what_is_wrong_has_its_place(what: str) -> None:
    limits = Limits(bytes=4000, pixels=20_000, frames=4, seconds=1.5, count=3)
    http = client(serving(seeing(), media=limits))
    part, said = NOT_SERVED[what]
    reply = http.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"text": "b"}, part]}]},
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "messages[1].content[1]"), reply.text
    assert said in error["message"] and "messages[1].content[1]" in error["message"] or what == "small"


def test_other_interfaces_have_places_of_their_own() -> None:
    http = client(serving(seeing()))
    items = [{"type": "message", "role": "user", "content": "a"}]
    items.append(
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "http://x.invalid"}]}
    )  # type: ignore[dict-item]
    error = http.post("/v1/responses", json={"input": items, "instructions": "b"}).json()["error"]
    assert error["param"] == "input[1].content[0]" and "fetches nothing" in error["message"]
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}, block]}]
    reply = http.post("/v1/messages", json={"messages": turns, "system": "b", "max_tokens": 1})
    assert reply.status_code == 400 and "messages[0].content[1] is no image" in reply.json()["error"]["message"]
    for source in ({"type": "url", "url": "http://x.invalid"}, {"type": "file", "file_id": "x"}, None, "x"):
        turns = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        assert http.post("/v1/messages", json={"messages": turns, "max_tokens": 1}).status_code == 400


def test_too_many_of_them() -> None:
    http = client(serving(seeing(), media=Limits(count=2)))
    assert ask(http, [image(), image(), {"type": "text", "text": "a"}]).status_code == 200
    error = ask(http, [image()] * 3).json()["error"]
    assert error["param"] == "messages[0].content[2]" and "the limit of one request is 2" in error["message"]


def test_too_much_of_them_together() -> None:
    http = client(serving(seeing(), media=Limits(pixels=1200)))
    assert ask(http, [image()] * 4 + [{"type": "text", "text": "a"}]).status_code == 200
    error = ask(http, [image()] * 5).json()["error"]
    assert error["param"] == "messages[0].content[4]" and "in all" in error["message"]


@pytest.mark.parametrize(
    "kinds, said", [(("audio",), "no images; it reads text, sounds"), (("video",), "text, videos")]
)
def test_a_model_says_what_it_reads(kinds: Any, said: str) -> None:
    error = ask(client(serving(seeing(*kinds))), [image()]).json()["error"]
    assert error["param"] == "messages[0].content[0]" and said in error["message"]


def test_a_model_of_text_reads_text() -> None:
    for part in (image(), audio()):
        reply = ask(client(), [part])
        assert reply.status_code == 400
        assert "messages[0].content[0]: this model reads text alone" in reply.json()["error"]["message"]


def test_texts_in_parts_are_one_text_as_before() -> None:
    http = client()
    parts = [{"type": "text", "text": "import "}, {"type": "text", "text": "os"}]
    assert ask(http, parts).json()["choices"] == ask(http, "import os").json()["choices"]


def test_a_body_that_is_too_large_is_not_read() -> None:
    http = client(serving(seeing(), limits=BodyLimits(body=10_000)))
    assert ask(http, [image(png() + b"\0" * 10_000)]).status_code == 413


def test_metrics_count_them(seen: Any) -> None:
    http, _ = seen
    ask(http, [image(), image(), audio(), {"type": "text", "text": "a"}])
    ask(http, [image(b"x")])
    found = {
        (sample.name, sample.labels.get("kind")): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }
    assert found[("isobit:media_total", "image")] == 2
    assert found[("isobit:media_tokens_total", "image")] == 26
    assert found[("isobit:media_tokens_total", "audio")] == 5
    assert found[("isobit:media_refused_total", None)] == 1


def test_requests_wait_for_threads_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are prepared, one waits, and a fourth is told to come again; the loop answers others meanwhile."""
    monkeypatch.setattr(room, "WAITING", 1)
    served = serving(seeing())
    gate, came = threading.Event(), threading.Semaphore(0)
    real = served.llm.tower.prompt

    def slow(ids: Any, media: Any) -> Any:
        if media:
            came.release()
            assert gate.wait(60)
        return real(ids, media)

    served.llm.tower.prompt = slow
    statuses: list[int] = []
    with client(served) as http:
        asking = [
            threading.Thread(target=lambda: statuses.append(ask(http, [image(), {"text": "a"}]).status_code))
            for _ in range(3)
        ]
        for thread in asking:
            thread.start()
        assert came.acquire(timeout=60) and came.acquire(timeout=60)
        while served.media._waiting < 3:
            assert http.get("/health").status_code == 200
        full = ask(http, [image()])
        assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
        assert ask(http, "text").status_code == 200
        gate.set()
        for thread in asking:
            thread.join(60)
    assert statuses == [200] * 3
    assert served.media._waiting == 0


def test_options_of_the_command_are_the_limits() -> None:
    def limits(*options: str) -> Limits:
        parser = argparse.ArgumentParser()
        add_media_options(parser)
        return media_limits(parser.parse_args(options))

    assert limits() == Limits()
    every = ["--media-bytes=5", "--media-pixels=6", "--media-frames=7", "--media-seconds=8.5", "--media-count=0"]
    assert limits(*every) == Limits(5, 6, 7, 8.5, 0)
    with pytest.raises(UsageError, match="--media-seconds must be"):
        limits("--media-seconds=-1")
    told = argparse.ArgumentParser()
    add_media_options(told)
    shown = re.sub(r"\s+", " ", told.format_help())
    default = Limits()
    for value in (
        f"{default.bytes >> 20}MiB",
        f"{default.pixels:,}",
        default.frames,
        f"{default.seconds:g}",
        default.count,
    ):
        assert f"(default: {value})" in shown
