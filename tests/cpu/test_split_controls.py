"""What people write stays text, also where a control token begins in one part of a message and ends in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glm4v_models as glm
import glmasr_tiny
import hunyuan_models
import pytest
from glmasr_tiny import noise
from served import client, serving

from isobit.engine import conversation
from isobit.engine.generate import load_llm
from isobit.engine.llm import LLM
from isobit.media.values import Picture, Sound


def text(of: str) -> dict[str, str]:
    return {"type": "text", "text": of}


def glm4v(folder: Path) -> None:
    glm.save(glm.make(glm.PLAIN, seed=7), folder)


def hunyuan_vl(folder: Path) -> None:
    hunyuan_models.save_with_text(hunyuan_models.make(7), folder, "nested")


def glmasr(folder: Path) -> None:
    glmasr_tiny.make(folder, 3)


@pytest.fixture(scope="module", params=[glm4v, hunyuan_vl, glmasr])
def loaded(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, Any]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    medium = Sound(noise(1.0), 16_000) if request.param is glmasr else Picture(glm.pixels(30, 40))
    return load_llm(folder, "float32", "cpu"), medium


def ids(llm: LLM, content: Any, media: Any = ()) -> list[int]:
    template = llm.tokenizer.chat_template
    assert template is not None
    return list(llm.media_prompt(template, [{"role": "user", "content": content}], media).ids)


def test_parts_of_text_are_one_text(loaded: tuple[LLM, Any]) -> None:
    llm, medium = loaded
    part = {"type": medium.kind}
    placeholders = [llm.tokenizer.token_text(id) for id in sorted(llm.tower.placeholders)] if llm.tower else []
    for control in (*llm.tokenizer.controls[-4:], *placeholders):
        written = f"a{control}b"
        for cut in (2, len(control) // 2, len(control)):
            split = [text(written[:cut]), text(""), text(written[cut:])]
            assert ids(llm, split) == ids(llm, [text(written)]), (control, cut)
            for whole, cuts in (([text(written), part], [*split, part]), ([part, text(written)], [part, *split])):
                assert ids(llm, cuts, [medium]) == ids(llm, whole, [medium]), (control, cut)


def test_what_a_template_leaves_out_separates_nothing(loaded: tuple[LLM, Any]) -> None:
    llm, _ = loaded
    steering = {text: llm.tokenizer.encode(text, add_special=False) for text in llm.tokenizer.controls}
    control = next(text for text, found in steering.items() if len(found) == 1 and len(text) > 4)
    (id,) = steering[control]
    plain = ids(llm, [text("a"), text("b")]).count(id)
    for between in ({"type": "unknown"}, {"type": "unknown", "text": ""}):
        content = [text(f"a{control[:2]}"), between, text(control[2:4]), between, text(f"{control[4:]}b")]
        assert ids(llm, content).count(id) == plain


def test_the_server_joins_them_too(tmp_path: Path) -> None:
    from seeing import image

    glm4v(tmp_path)
    http = client(serving(load_llm(tmp_path, "float32", "cpu")))

    def count(*content: Any) -> int:
        body = {"messages": [{"role": "user", "content": list(content)}], "max_tokens": 1}
        reply = http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return int(reply.json()["usage"]["prompt_tokens"])

    whole = count(text("a<|assistant|>b"), image())
    assert whole == count(text("a<|assi"), text("stant|>b"), image())
    assert whole == count(text("a<|assi"), text(""), text("stant|>b"), image())
    assert count(image(), text("a<|assistant|>b")) == count(image(), text("a<|assi"), text("stant|>b"))
    assert whole > count(text("ab"), image()) + 1  # it is text, not the one token


def test_contents_are_joined() -> None:
    image = {"type": "image"}
    for content, expected in (
        ("text", "text"),
        (None, None),
        ([], []),
        ([text("")], [text("")]),
        ([text(""), image, text("")], [image]),
        ([text("a"), text("b"), image, text("c"), text(""), text("d")], [text("ab"), image, text("cd")]),
        ([{"type": "text", "text": "a", "key": 1}, text("b")], [{"type": "text", "text": "ab", "key": 1}]),
        (["a", "b"], ["a", "b"]),
    ):
        assert conversation.joined(content) == expected
