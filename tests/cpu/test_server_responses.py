"""``/v1/responses``, ``/v1/messages`` and ``/v1/embeddings``: requests in their words, replies and events in theirs."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from fake_model import FakeModel, writes
from served import bundled, client, events, listening, serving
from test_constraints import noise
from tokenizers import AddedToken
from tokenizers_for_tests import byte_level

from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer

TEMPLATE = """{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}
<{{ m.role }}>{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}[{{ c.function.name }}:{{ c.function.arguments | tojson }}]{% endfor %}
{%- endfor %}<assistant>{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}
{%- if false %}</think>{% endif %}"""
SAYS = '<think>Hm.</think>Let me see.\n<tool_call>{"name": "now", "arguments": {"zone": "é"}}</tool_call>'
FLAT = [
    {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
]
INPUT = [{"name": "now", "input_schema": FLAT[0]["parameters"]}]


class Model:
    """A server of a model that says one text; what it reads is kept."""

    def __init__(self) -> None:
        fast = byte_level()
        for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
            fast.add_tokens([AddedToken(mark, normalized=False)])
        named = {"bos_token": "<s>", "eos_token": "</s>"}
        self.tokenizer = Tokenizer(fast, special_tokens=named, chat_templates={"default": TEMPLATE})
        self.model = FakeModel(self.tokenizer.vocab_size, noise(self.tokenizer.vocab_size), context=4000)
        self.http = client(serving(LLM(self.model, self.tokenizer, prefix_cache=False)))
        self.prompt = ""

    def says(self, text: str) -> Model:
        ids = self.tokenizer.encode(text + "</s>", add_special=False)
        seen: list[int] = []

        def rule(so_far: list[int]) -> Any:
            if not seen:
                seen.extend(so_far)
            if len(so_far) == len(seen):
                self.prompt = self.tokenizer.decode(so_far, skip_special=False).replace("\n", "")
            return writes(ids, self.tokenizer.vocab_size, len(seen))(so_far)

        self.model._rule = rule
        return self

    def respond(self, text: str, /, **body: Any) -> Any:
        whole = {"input": "What time?", "temperature": 0, **body}
        return self.says(text).http.post("/v1/responses", json=whole)

    def message(self, text: str, /, **body: Any) -> Any:
        whole = {"messages": [{"role": "user", "content": "What time?"}], "max_tokens": 200, "temperature": 0, **body}
        return self.says(text).http.post("/v1/messages", json=whole)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


def told(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose names are the types in them."""
    found = []
    for part in text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


# Responses


def test_a_response_has_items(model: Model) -> None:
    reply = model.respond(SAYS, tools=FLAT, instructions="Be short.").json()
    assert model.prompt.endswith("<system>Be short.<user>What time?<assistant>")
    thought, said, call = reply["output"]
    assert (reply["object"], reply["status"], reply["store"]) == ("response", "completed", False)
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "Let me see." and said["role"] == "assistant"
    assert (call["name"], call["arguments"], call["status"]) == ("now", '{"zone": "é"}', "completed")
    usage = reply["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] == 5  # <think>, two or three of the text, </think>
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_events_come_in_order_and_say_the_same(model: Model) -> None:
    whole = model.respond(SAYS, tools=FLAT).json()
    found = told(model.respond(SAYS, tools=FLAT, stream=True).text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    once = [kind for place, kind in enumerate(kinds) if kinds[place - 1] != kind or not kind.endswith("delta")]
    part = ["output_item.added", "content_part.added"]
    ends = ["content_part.done", "output_item.done"]
    assert once == [
        *("created", "in_progress"),
        *(*part, "reasoning_text.delta", "reasoning_text.done", *ends),
        *(*part, "output_text.delta", "output_text.done", *ends),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]

    def plain(output: list[dict[str, Any]]) -> Any:
        return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]

    assert plain(found[-1]["response"]["output"]) == plain(whole["output"])
    assert found[-1]["response"]["usage"] == whole["usage"]
    texts = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert texts == "Let me see."
    ids = {event["item"]["id"] for event in found if "item" in event}
    assert {event["item_id"] for event in found if "item_id" in event} == ids


def test_a_conversation_in_items(model: Model) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "now", "arguments": '{"zone": "x"}'},
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"role": "developer", "content": "d"},
    ]
    assert model.respond("ok", input=items, tools=FLAT).status_code == 200
    assert '<user>a<assistant>(hm)b[now:{"zone": "x"}][now:{}]<tool>noon<system>d<assistant>' in model.prompt


def test_forms_and_forced_calls(model: Model) -> None:
    format = {"type": "json_schema", "name": "r", "schema": {"enum": ["red", "blue"]}, "strict": True}
    reply = model.respond("What?", text={"format": format}).json()
    assert json.loads(reply["output"][-1]["content"][0]["text"]) in ("red", "blue")
    closed = [FLAT[0] | {"parameters": {"additionalProperties": False}}]
    reply = model.respond(
        "<think>So.</think>What?",
        tools=closed,
        tool_choice={"type": "function", "name": "now"},
        parallel_tool_calls=False,
    )
    found = [(item["type"], item.get("arguments")) for item in reply.json()["output"]]
    assert found == [("reasoning", None), ("function_call", "{}")]


def test_what_is_cut_short_is_incomplete(model: Model) -> None:
    reply = model.respond("One two three four", max_output_tokens=2).json()
    assert reply["status"] == "incomplete" and reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["output"][0]["status"] == "incomplete"
    assert (
        told(model.respond("One two three", max_output_tokens=2, stream=True).text)[-1]["type"] == "response.incomplete"
    )


@pytest.mark.parametrize(
    "body, field",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
            "input[0].content[0]",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "reasoning", "content": 3}]}, "input"),
        ({"input": [{"role": "user", "content": 3}]}, "input"),
        ({"input": [{"type": {}}]}, "input"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "xml"}}}, "response_format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_responses_are_refused_by_name(model: Model, body: Any, field: str) -> None:
    reply = model.respond("x", **body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == field, reply.text


# Messages


def test_a_message_has_blocks(model: Model) -> None:
    reply = model.message(SAYS, tools=INPUT, system="Be short.").json()
    assert model.prompt.endswith("<system>Be short.<user>What time?<assistant>")
    thought, said, call = reply["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "Hm.")
    assert said == {"type": "text", "text": "Let me see."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "now", {"zone": "é"})
    assert reply["stop_reason"] == "tool_use" and reply["role"] == "assistant"
    assert reply["usage"]["input_tokens"] > 0 and reply["usage"]["output_tokens"] > 5


def test_events_of_a_message(model: Model) -> None:
    whole = model.message(SAYS, tools=INPUT).json()
    found = told(model.message(SAYS, tools=INPUT, stream=True).text)
    assert found[0]["type"] == "message_start" and found[0]["message"]["content"] == []
    assert [event["type"] for event in found[-2:]] == ["message_delta", "message_stop"]
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"] == whole["usage"]
    blocks: list[dict[str, Any]] = []
    for event in found[1:-2]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            kind = event["delta"]["type"]
            name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}[kind]
            blocks[-1][name] = blocks[-1].get(name, "") + event["delta"][name]
        else:
            assert event == {"type": "content_block_stop", "index": len(blocks) - 1}
    blocks[2]["input"] = json.loads(blocks[2].pop("partial_json"))
    assert [{**block, "id": 0} for block in blocks] == [{**block, "id": 0} for block in whole["content"]]


def test_a_conversation_in_blocks(model: Model) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "t1", "name": "now", "input": {"zone": "x"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]},
            {"type": "text", "text": "and?"},
        ]},
    ]  # fmt: skip
    system = [{"type": "text", "text": "s"}]
    assert model.message("ok", messages=turns, system=system, tools=INPUT).status_code == 200
    assert '<system>s<user>a<assistant>(hm)b[now:{"zone": "x"}]<tool>noon<user>and?<assistant>' in model.prompt
    counted = model.http.post("/v1/messages/count_tokens", json={"messages": turns, "system": system, "tools": INPUT})
    asked = model.message("ok", messages=turns, system=system, tools=INPUT).json()["usage"]["input_tokens"]
    assert counted.json() == {"input_tokens": asked}


def test_stops_choices_and_thinking(model: Model) -> None:
    reply = model.message("One. Two.", stop_sequences=["Two"]).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", "Two")
    assert reply["content"] == [{"type": "text", "text": "One. "}]
    assert model.message("One two three", max_tokens=1).json()["stop_reason"] == "max_tokens"
    assert model.message("One.").json()["stop_reason"] == "end_turn"
    closed = [INPUT[0] | {"input_schema": {"type": "object", "additionalProperties": False}}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    reply = model.message("<think>So.</think>What?", tools=closed, tool_choice=choice).json()
    assert [block.get("input") for block in reply["content"]] == [None, {}]
    assert model.message(SAYS, tools=INPUT, tool_choice={"type": "none"}).json()["stop_reason"] == "end_turn"
    model.message("x", thinking={"type": "disabled"})
    assert model.prompt.endswith("[False]")
    format = {"type": "json_schema", "schema": {"enum": [1, 2]}}
    reply = model.message("What?", output_config={"format": format}).json()
    assert reply["content"][-1]["text"] in ("1", "2")


@pytest.mark.parametrize(
    "body, reason",
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "content[0].source must"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document' is not served"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be user or assistant"),
        ({"messages": [{"role": "user", "content": [3]}]}, "is not served"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
        ({"tool_choice": {"type": "some"}, "tools": INPUT}, "auto, any, tool or none"),
        ({"max_tokens": 10**6}, "context"),
        ({"model": "other"}, "no model 'other'"),
    ],
)
def test_messages_are_refused_in_their_shape(model: Model, body: Any, reason: str) -> None:
    reply = model.message("x", **body)
    assert reply.status_code in (400, 404) and reply.json()["type"] == "error"
    assert reason in reply.json()["error"]["message"]
    assert reply.json()["error"]["type"] == ("not_found_error" if "model" in body else "invalid_request_error")


# Embeddings

TEXTS = ["def fib(n):", "import os"]


@pytest.fixture(scope="module")
def http():
    return client()


def vectors(reply: Any) -> torch.Tensor:
    assert reply.status_code == 200, reply.text
    return torch.tensor([one["embedding"] for one in reply.json()["data"]])


def expected(text: str, pool: str) -> torch.Tensor:
    """From the model's weights, written out."""
    from isobit.models.batch import Batch

    model = bundled().model
    with torch.inference_mode():
        states = model.hidden_states(Batch.of([bundled().tokenizer.encode(text)])).double()
    normed = states / (states.square().mean(1, keepdim=True) + model.norm.spec.eps).sqrt() * model.norm.weight.double()
    return normed[-1] if pool == "last" else normed.mean(0)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_vectors_are_those_of_the_last_norm(http, pool):
    found = vectors(http.post("/v1/embeddings", json={"input": TEXTS, "pooling": pool, "normalize": False}))
    for text, vector in zip(TEXTS, found, strict=True):
        torch.testing.assert_close(vector.double(), expected(text, pool), rtol=1e-4, atol=1e-4)
    unit = vectors(http.post("/v1/embeddings", json={"input": TEXTS, "pooling": pool}))
    torch.testing.assert_close(unit, found / found.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_every_form_of_input_and_output(http):
    ids = bundled().tokenizer.encode(TEXTS[0])
    found = [
        vectors(http.post("/v1/embeddings", json={"input": given}))[0] for given in (TEXTS[0], TEXTS[:1], ids, [ids])
    ]
    assert all(torch.equal(one, found[0]) for one in found)
    reply = http.post("/v1/embeddings", json={"input": TEXTS[0], "encoding_format": "base64"}).json()
    written = np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), "<f4")
    assert written.tolist() == found[0].tolist()
    assert reply["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}


@pytest.mark.parametrize(
    "body, field",
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [{}]}, "input"),
        ({"input": [""]}, "input"),
        ({"input": [1, 10**9]}, "input"),
        ({"input": "x " * 5000}, "input"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "pooling": "max"}, "pooling"),
    ],
)
def test_embeddings_are_refused_by_name(http, body, field):
    reply = http.post("/v1/embeddings", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == field, reply.text


# OpenAI's own client


def test_openais_client(model: Model) -> None:
    model.says(SAYS)
    served = serving(LLM(model.model, model.tokenizer, prefix_cache=False))
    with listening(served) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as asking:
        reply = asking.responses.create(model="bundled", input="What time?", tools=FLAT, temperature=0)
        assert [item.type for item in reply.output] == ["reasoning", "message", "function_call"]
        assert reply.output_text == "Let me see."
        stream = asking.responses.create(model="bundled", input="What time?", tools=FLAT, temperature=0, stream=True)
        kinds = [event.type for event in stream]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        model.says(SAYS)
        tools = [{"type": "function", "function": {"name": "now", "parameters": FLAT[0]["parameters"]}}]
        messages = [{"role": "user", "content": "x"}]
        with asking.chat.completions.stream(model="bundled", messages=messages, tools=tools, temperature=0) as stream:
            done = stream.get_final_completion().choices[0]
        assert done.finish_reason == "tool_calls" and done.message.content == "Let me see."
        assert json.loads(done.message.tool_calls[0].function.arguments) == {"zone": "é"}


def test_openais_client_reads_vectors() -> None:
    with listening(serving()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-") as asking:
        (one,) = asking.embeddings.create(model="bundled", input="x").data  # in base64, by itself
    assert len(one.embedding) == bundled().model.config.hidden_size


def test_streams_of_chats_still_end_with_done(model: Model) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    assert events(model.says("Yes.").http.post("/v1/chat/completions", json=body).text)


# Bodies with something wrong in them, anywhere: refused, never an error within

JUNK: list[Any] = [
    *(None, 0, -1, 1.5, True, "", "x", [], {}, [1], ["a"], [None], {"a": 1}, {"type": {}}, [[]], [{}], {"type": []}),
    10**30,
    *({"type": "function"}, {"schema": 3}, {"properties": []}, {"format": {}}, {"enum": {}}, {"type": ["string", 3]}),
]  # fmt: skip
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 1, "format": "int32"}, "b": {"anyOf": [{"$ref": "#/$defs/q"}]}},
    "required": ["a"],
    "$defs": {"q": {"type": "string", "pattern": "a+", "maxLength": 3}},
}
_CALL = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
_TOOL = {"type": "function", "function": {"name": "now", "parameters": _SCHEMA}}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "b"},
        ],
        "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "now"}}, "parallel_tool_calls": True,
        "max_tokens": 3, "chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low",
    }),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2, "response_format": {
        "type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2, "structured_outputs": {"json": _SCHEMA}}),
    ("/v1/responses", {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "n"},
        ],
        "tools": FLAT, "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}, "max_output_tokens": 2,
    }),
    ("/v1/messages", {
        "messages": [
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "h", "signature": ""},
                {"type": "tool_use", "id": "t", "name": "now", "input": {"a": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "n"}]}]},
        ],
        "system": [{"type": "text", "text": "s"}], "max_tokens": 3, "tools": INPUT, "tool_choice": {"type": "auto"},
        "thinking": {"type": "disabled"}, "output_config": {"effort": "low"}, "stop_sequences": ["a"],
    }),
]  # fmt: skip


def places(value: Any, so_far: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*so_far, key)
        yield from places(inner, (*so_far, key))


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_no_body_is_an_error_within(model: Model, number: int) -> None:
    path, body = BODIES[number]
    assert model.says("ok").http.post(path, json=body).status_code == 200
    chosen = random.Random(number)
    cases = [(place, junk) for place in places(body) for junk in JUNK]
    for place, junk in chosen.sample(cases, 120):
        changed = json.loads(json.dumps(body))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = junk
        reply = model.http.post(path, json=changed)
        assert reply.status_code in (200, 400), (place, junk, reply.text)
