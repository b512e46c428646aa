"""Forms of answers over HTTP: response_format and the fields of other servers, for chats and completions."""

from __future__ import annotations

import json
import re

import pytest
from chat_templates import QWEN2
from served import bundled, client, events, serving

from isobit.engine.llm import LLM

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "n"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "A record, please."}]


@pytest.fixture(scope="module")
def http():
    loaded = bundled()
    tokenizer = type(loaded.tokenizer).from_folder("src/isobit/bundled/model")
    tokenizer.chat_templates["default"] = QWEN2
    return client(serving(LLM(loaded.model, tokenizer, sequences=8)))


def chat(http, **body):
    return http.post("/v1/chat/completions", json={"messages": MESSAGES, "temperature": 0, "max_tokens": 60, **body})


def complete(http, **body):
    return http.post("/v1/completions", json={"prompt": "x = ", "temperature": 0, "max_tokens": 60, **body})


def right(text):
    found = json.loads(text)
    return set(found) == {"kind", "n"} and found["kind"] in ("a", "b") and 0 <= found["n"] <= 9


FORMS = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": SCHEMA}}},
        right,
    ),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}}}, right),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, right),
    ({"structured_outputs": {"json": SCHEMA}}, right),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, right),
    ({"structured_outputs": {"regex": "[a-c]{3}"}}, lambda text: re.fullmatch("[a-c]{3}", text)),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
    ({"structured_outputs": {"grammar": 'root ::= "<" [0-9] ">"'}}, lambda text: re.fullmatch("<[0-9]>", text)),
    ({"guided_json": SCHEMA}, right),
    ({"guided_regex": "[x-z]{2}"}, lambda text: re.fullmatch("[x-z]{2}", text)),
    ({"guided_choice": ["u", "v"]}, lambda text: text in ("u", "v")),
    ({"guided_grammar": 'start: "k" | "l"'}, lambda text: text in ("k", "l")),
]


@pytest.mark.parametrize("body, fits", FORMS)
def test_answers_have_the_form(http, body, fits):
    choice = chat(http, **body).json()["choices"][0]
    assert fits(choice["message"]["content"]) and choice["finish_reason"] == "stop"
    choice = complete(http, **body).json()["choices"][0]
    assert fits(choice["text"]) and choice["finish_reason"] == "stop"


def test_any_object(http):
    reply = complete(http, response_format={"type": "json_object"}, max_tokens=200).json()["choices"][0]
    assert reply["finish_reason"] == "length" or isinstance(json.loads(reply["text"]), dict)
    assert chat(http, response_format={"type": "text"}).status_code == 200


def test_streams_and_many_answers(http):
    body = {"response_format": {"type": "json_object", "schema": SCHEMA}, "stream": True, "n": 3, "temperature": 1.5}
    chunks = events(chat(http, **body).text)
    for place in range(3):
        deltas = [one["delta"] for chunk in chunks for one in chunk["choices"] if one["index"] == place]
        assert right("".join(delta.get("content", "") for delta in deltas))


WRONG = [
    ({"response_format": {"type": "yaml"}}, "response_format", "text, json_object or json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "response_format", "object"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}, "maxLenght": 1}}}},
        "response_format",
        "maxLenght",
    ),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs", "two forms"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs", "structural_tag"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "two forms"),
    ({"guided_regex": "(?=a)"}, None, "look-around"),
    ({"guided_choice": []}, "guided_choice", "choice"),
    ({"guided_json": {"type": "integer", "multipleOf": 0}}, None, "multiple"),
]


@pytest.mark.parametrize("body, field, reason", WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_refused(http, body, field, reason, stream):
    for ask in (chat, complete):
        reply = ask(http, stream=stream, **body)
        assert reply.status_code == 400, reply.text
        assert reason in reply.json()["error"]["message"]
        assert field is None or reply.json()["error"]["param"] == field
