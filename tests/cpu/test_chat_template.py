"""Chat templates render byte for byte as transformers' apply_chat_template renders them."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import FAMILIES, GEMMA, LLAMA2, QWEN3
from jinja2.exceptions import TemplateError as JinjaTemplateError
from tokenizers_for_tests import byte_level
from transformers import PreTrainedTokenizerFast

from isobit.engine import chat
from isobit.errors import TemplateError, UsageError

USER = {"role": "user", "content": '  What is <b>2+2</b> & "why"? 漢字 🙂\n'}
SYSTEM = {"role": "system", "content": "Be brief.\n{{ not a template }}"}
ASSISTANT = {"role": "assistant", "content": " It is 4. "}
THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "two and two\n"}
THOUGHT_INLINE = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "zwei ü"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
CALLING_NULL = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4", "name": "add"}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " look "}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": 'Adds <two> numbers & "more", é',
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}}},
    },
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ASSISTANT, USER],
    "answered": [USER, ASSISTANT],
    "thinking": [USER, THOUGHT, USER, THOUGHT],
    "thinking-inline": [USER, THOUGHT_INLINE, {**USER, "name": None}],
    "tools": [USER, CALLING, RESULT, RESULT, ASSISTANT, USER],
    "null-content": [USER, CALLING_NULL, RESULT],
    "parts": [PARTS],
    "wrong-order": [USER, USER, ASSISTANT, ASSISTANT],
    "other-role": [{"role": "developer", "content": "x"}, USER],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": False},
    {"tools": [TOOL, TOOL]},
    {"enable_thinking": False, "custom": "ümlaut", "date_string": "1 Jan 2026"},
    {"documents": [{"title": "t", "text": "x"}], "bos_token": "<other>"},
]


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.mark.parametrize("family", FAMILIES)
def test_renders_as_transformers_does(family: str, theirs: PreTrainedTokenizerFast) -> None:
    template = FAMILIES[family]
    rendered = refused = 0
    for messages in CONVERSATIONS.values():
        for options in OPTIONS:
            asked = {"add_generation_prompt": True, **options}
            try:
                expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **asked)
            except (JinjaTemplateError, TypeError) as error:
                refused += 1
                with pytest.raises(TemplateError) as caught:
                    chat.render(template, messages, special_tokens=theirs.special_tokens_map, **asked)
                assert str(error) in str(caught.value)
                continue
            assert chat.render(template, messages, special_tokens=theirs.special_tokens_map, **asked) == expected
            rendered += 1
    assert rendered >= 20
    assert refused or family not in ("llama2", "gemma")


def test_a_known_rendering_written_by_hand() -> None:
    """Not only equal to the other implementation: equal to the format that Llama 2 was trained on."""
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    text = chat.render(LLAMA2, messages, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    assert text == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s>"
    text = chat.render(QWEN3, messages[1:2], enable_thinking=False)
    assert text == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize("name", ["thinking", "reasoning", "reasoning_content"])
def test_reasoning_is_found_under_each_of_its_names(name: str, theirs: PreTrainedTokenizerFast) -> None:
    messages = [USER, {"role": "assistant", "content": "4", name: "because"}]
    expected = theirs.apply_chat_template(messages, chat_template=QWEN3, tokenize=False)
    assert chat.render(QWEN3, messages, add_generation_prompt=False) == expected
    assert "because" in expected


def test_what_a_template_refuses_is_its_own_message() -> None:
    with pytest.raises(TemplateError, match="refuses these messages: Conversation roles must alternate"):
        chat.render(GEMMA, [USER, USER], special_tokens={"bos_token": "<bos>"})


def test_a_broken_template_names_the_line() -> None:
    with pytest.raises(TemplateError, match=r"not valid Jinja: line 2: .*endfor"):
        chat.render("{% for m in messages %}\n{% endif %}", [USER])
    with pytest.raises(TemplateError, match="failed: UndefinedError: 'nothing' is undefined"):
        chat.render("{{ nothing.here }}", [USER])


def test_time_of_day_is_available() -> None:
    assert chat.render("{{ strftime_now('%Y') | int > 2000 }}", [USER]) == "True"


def test_wrong_messages_are_the_users_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        chat.render("x", [])
    with pytest.raises(UsageError, match=r"messages\[1\] must be a dict, not str"):
        chat.render("x", [USER, "hello"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"tools\[0\] must be a dict, not builtin_function"):
        chat.render("x", [USER], tools=[len])  # type: ignore[list-item]


def test_the_callers_messages_stay_as_they_are_and_objects_become_inert() -> None:
    message = {"role": "user", "content": "x", "name": None, "image": object(), "thinking": "t"}
    before = dict(message)
    assert chat.render("{{ messages[0].image }} {{ 'name' in messages[0] }}", [message]) == "<object> False"
    assert message == before
