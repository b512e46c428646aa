"""`isobit generate` and `isobit chat` with pictures and sounds, on a tiny model that sees; and the server with it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import glm4v_models as glm
import pytest
from seeing import b64, gif, image, png, saved, url, wav
from served import client, listening, serving

from isobit import SamplingParams, api
from isobit.cli.main import main
from isobit.engine.llm import LLM
from isobit.media import clip, picture

GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4.1V in small, beside a picture, a video, a sound and what is none of them."""
    home = tmp_path_factory.mktemp("sees")
    glm.save(glm.make(glm.PLAIN, text={"vocab_size": glm.tokenizer().get_vocab_size()}), home / "model")
    from PIL import Image

    (home / "noise.png").write_bytes(saved("PNG", Image.fromarray(glm.pixels(30, 44, seed=1))))
    (home / "red.png").write_bytes(png(40, 40))
    (home / "film.gif").write_bytes(gif(4))
    (home / "talk.wav").write_bytes(wav())
    (home / "text.png").write_text("no picture")
    return home


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return api.LLM(str(folder / "model"), sequences=4)


def run(capsys: Any, monkeypatch: Any, *words: object, said: str = "") -> tuple[int, str, list[str]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
    status = main([str(word) for word in words])
    found = capsys.readouterr()
    return status, found.out, [line for line in found.err.splitlines() if not line.startswith("{")]


def expected(llm: LLM, messages: list[dict[str, Any]], media: list[Any]) -> Any:
    template = llm.tokenizer.chat_template
    assert template is not None
    return llm.generate([llm.media_prompt(template, messages, media)], GREEDY)[0]


def test_a_picture_stands_before_the_prompt(capsys: Any, monkeypatch: Any, folder: Path, llm: LLM) -> None:
    file = folder / "noise.png"
    command = ["generate", folder / "model", "What?", "--image", file, "--max-tokens", 4, "--ignore-eos", "--json"]
    status, out, err = run(capsys, monkeypatch, *command)
    assert status == 0, err
    document = json.loads(out)
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    wanted = expected(llm, [{"role": "user", "content": parts}], [picture(file.read_bytes())])
    assert document["token_ids"] == list(wanted.token_ids) and document["text"] == wanted.text
    assert document["usage"]["prompt_tokens"] == wanted.usage.prompt_tokens > 20
    assert document["media"] == [{"kind": "image", "file": str(file)}] and document["prompt"] == "What?"
    assert any("message of the model's chat template" in line for line in err)


def test_what_is_seen_is_what_is_given(capsys: Any, monkeypatch: Any, folder: Path) -> None:
    """Other pixels in as many tokens: other log-probabilities. Two pictures in the other order, too."""

    def seen(*files: str) -> Any:
        options = [word for name in files for word in ("--video" if name.endswith("gif") else "--image", folder / name)]
        command = [
            "generate",
            folder / "model",
            "a",
            *options,
            "--max-tokens",
            1,
            "--logprobs",
            3,
            "--ignore-eos",
            "--json",
        ]
        status, out, err = run(capsys, monkeypatch, *command)
        assert status == 0, err
        return json.loads(out)["logprobs"]

    one, two = seen("noise.png", "red.png"), seen("red.png", "noise.png")
    assert one != two and seen("noise.png", "red.png") == one
    assert seen("film.gif") != seen("red.png")


def test_text_alone_is_completed_as_it_is(capsys: Any, monkeypatch: Any, folder: Path, llm: LLM) -> None:
    command = ["generate", folder / "model", "What?", "--max-tokens", 4, "--ignore-eos"]
    status, out, err = run(capsys, monkeypatch, *command)
    assert status == 0, err
    assert out == llm.generate("What?", GREEDY)[0].text + "\n"


def test_a_conversation_with_pictures(capsys: Any, monkeypatch: Any, folder: Path, llm: LLM) -> None:
    """One with the first message by an option, one by a command before the second; both stay in the conversation."""
    said = f"What?\n/image {folder / 'red.png'}\nAnd?\n"
    options = ["--image", folder / "noise.png", "--max-tokens", 4, "--ignore-eos", "--json"]
    status, out, err = run(capsys, monkeypatch, "chat", folder / "model", *options, said=said)
    assert status == 0, err
    document = json.loads(out)
    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    second = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And?"}]}
    media = [picture((folder / name).read_bytes()) for name in ("noise.png", "red.png")]
    answer = {"role": "assistant", "content": expected(llm, [first], media[:1]).text}
    last = expected(llm, [first, answer, second], media)
    assert document["messages"] == [first, answer, second, {"role": "assistant", "content": last.text}]
    assert document["turns"][1]["prompt_tokens"] == last.usage.prompt_tokens
    assert any("red.png goes with the next message" in line for line in err)


def test_a_conversation_with_a_server(capsys: Any, monkeypatch: Any, folder: Path, llm: LLM) -> None:
    said = f"What?\n/video {folder / 'film.gif'}\nAnd?\n"
    options = ["--image", folder / "noise.png", "--max-tokens", 4, "--temperature", 0, "--ignore-eos", "--json"]
    with listening(serving(llm, names=("glm",))) as address:
        status, out, err = run(capsys, monkeypatch, "chat", "--server", address, *options, said=said)
    assert status == 0, err
    document = json.loads(out)
    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    second = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And?"}]}
    media = [picture((folder / "noise.png").read_bytes()), clip((folder / "film.gif").read_bytes())]
    answer = {"role": "assistant", "content": expected(llm, [first], media[:1]).text}
    last = expected(llm, [first, answer, second], media)
    assert document["messages"] == [first, answer, second, {"role": "assistant", "content": last.text}]
    assert document["turns"][1]["prompt_tokens"] == last.usage.prompt_tokens


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image", "{home}/missing.png"], "the image {home}/missing.png: "),
        (["--image", "{home}/text.png"], "the image {home}/text.png is no image that can be read"),
        (["--image", "{home}"], "the image {home}: "),
        (["--image", "{home}/film.gif"], "is animated"),
        (["--image", "{home}/noise.png", "--audio", "{home}/red.png"], "the sound {home}/red.png is no sound"),
        (["--audio", "{home}/talk.wav"], "this model takes images and videos, and no sounds"),
        (["--image", "https://x.invalid/a.png"], "cannot be read"),
    ],
)
def test_what_goes_wrong_is_one_line(
    capsys: Any, monkeypatch: Any, folder: Path, options: list[str], said: str
) -> None:
    options = [option.format(home=folder) for option in options]
    status, _, err = run(capsys, monkeypatch, "generate", folder / "model", "a", *options)
    assert status == 2 and said.format(home=folder) in err[-1], err
    assert err[-1].startswith("isobit: error: ")


def test_no_weights_are_read_for_what_a_model_does_not_take(capsys: Any, monkeypatch: Any, folder: Path) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(api, "generator", never)
    for command in ("generate", "chat"):
        for model, options in (
            (folder / "model", ["--audio", folder / "talk.wav"]),
            ("bundled", ["--image", folder / "red.png"]),
        ):
            status, _, err = run(capsys, monkeypatch, command, model, *options, said="a")
            assert status == 2 and ("no sounds" in err[-1] or "text alone" in err[-1])


def test_a_model_of_text_says_so(capsys: Any, monkeypatch: Any, folder: Path) -> None:
    status, _, err = run(capsys, monkeypatch, "generate", "bundled", "a", "--image", folder / "red.png")
    assert status == 2 and "text" in err[-1]


@pytest.mark.parametrize("line", ["/image", "/image {home}/missing.png", "/audio {home}/red.png\na"])
def test_commands_that_name_no_file(capsys: Any, monkeypatch: Any, folder: Path, line: str) -> None:
    status, _, err = run(capsys, monkeypatch, "chat", folder / "model", said=line.format(home=folder) + "\n")
    assert status == 2 and err[-1].startswith("isobit: error: ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/audio {home}/red.png", "and no sounds"),
        ("/Image {home}/red.png", "no command /Image: there are /image FILE"),
        ("/foo", "no command /foo: "),
        ("/reset now", "no command /reset with words behind it"),
    ],
)
def test_commands_that_there_are_not(capsys: Any, monkeypatch: Any, folder: Path, line: str, said: str) -> None:
    status, _, err = run(capsys, monkeypatch, "chat", folder / "model", said=line.format(home=folder) + "\n")
    assert status == 2 and said in err[-1]


def test_files_are_named_as_in_a_shell(capsys: Any, monkeypatch: Any, folder: Path) -> None:
    monkeypatch.setenv("HOME", str(folder))
    said = f"/image \"{folder / 'red.png'}\"\n/image ~/noise.png\n/image '~/red.png'\na\n/reset\n /foo\n/usr/bin?\n"
    status, out, err = run(capsys, monkeypatch, "chat", folder / "model", "--max-tokens", 1, "--json", said=said)
    assert status == 0, err
    assert sum("goes with the next message" in line for line in err) == 3
    assert "isobit: the conversation is forgotten" in err
    assert [one["content"] for one in json.loads(out)["messages"][::2]] == ["/foo", "/usr/bin?"]


def test_a_picture_that_no_message_follows_is_told(capsys: Any, monkeypatch: Any, folder: Path) -> None:
    said = f"a\n/image {folder / 'red.png'}\n"
    status, _, err = run(capsys, monkeypatch, "chat", folder / "model", "--max-tokens", 1, said=said)
    assert status == 0 and "red.png was not sent" in err[-1]


# The server with the same model: what its routes answer is what the model says


def test_every_interface_says_the_same(folder: Path, llm: LLM) -> None:
    http = client(serving(llm, names=("glm",)))
    data = (folder / "noise.png").read_bytes()
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    wanted = expected(llm, [{"role": "user", "content": parts}], [picture(data)])
    count, common = wanted.usage.prompt_tokens, {"temperature": 0, "max_tokens": 4}
    asked = {"messages": [{"role": "user", "content": [image(data), parts[1]]}]}
    reply = http.post("/v1/chat/completions", json=asked | common | {"ignore_eos": True}).json()
    assert reply["choices"][0]["message"]["content"] == wanted.text and reply["usage"]["prompt_tokens"] == count
    inside = reply["usage"]["prompt_tokens_details"]["image_tokens"]
    assert 0 < inside < count
    assert http.post("/tokenize", json=asked).json()["count"] == count
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(data)}}
    messages = {"messages": [{"role": "user", "content": [block, parts[1]]}]}
    assert http.post("/v1/messages/count_tokens", json=messages).json() == {"input_tokens": count}
    part = {"type": "input_image", "image_url": url(data), "detail": "high"}
    item = {"role": "user", "content": [part, {"type": "input_text", "text": "What?"}]}
    reply = http.post("/v1/responses", json={"input": [item], "temperature": 0, "max_output_tokens": 4}).json()
    assert reply["usage"]["input_tokens"] == count
    assert http.get("/v1/models").json()["data"][0]["input_modalities"] == ["text", "image", "video"]


def test_answers_with_pictures_beside_each_other(folder: Path, llm: LLM) -> None:
    """n of one prompt, streams, and what the prefix cache has: other pictures are never taken for it."""
    http = client(serving(llm, names=("glm",)))
    fields = {"max_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": True, "top_logprobs": 2}

    def said(name: str, **more: Any) -> Any:
        content = [image((folder / name).read_bytes()), {"type": "text", "text": "What?" * 20}]
        body = {"messages": [{"role": "user", "content": content}]} | fields | more
        return http.post("/v1/chat/completions", json=body).json()

    first, other = said("noise.png"), said("red.png")
    again = said("noise.png", n=2)
    assert again["choices"][0]["logprobs"] == first["choices"][0]["logprobs"] != other["choices"][0]["logprobs"]
    assert again["choices"][1]["logprobs"] == first["choices"][0]["logprobs"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_tokens_that_stand_for_media_are_text_where_people_write_them(folder: Path, llm: LLM) -> None:
    http = client(serving(llm, names=("glm",)))
    for content in ("<|image|>", [image(), {"type": "text", "text": "<|image|><|begin_of_image|>"}]):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
        reply = http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text


def test_a_picture_that_the_model_cannot_take(folder: Path, llm: LLM) -> None:
    http = client(serving(llm, names=("glm",)))
    body = {"messages": [{"role": "user", "content": [image(png(900, 3))]}], "max_tokens": 1}
    reply = http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages[0].content[0]"), reply.text
