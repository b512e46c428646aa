"""`/v1/chat/completions`, by itself and through OpenAI's own client."""

from __future__ import annotations

import math

import openai
import pytest
from served import bundled, client, events, listening, serving

from isobit import SamplingParams
from isobit.checkpoint.source import resolve
from isobit.engine.generate import load_llm

ASK = [{"role": "user", "content": "def fib(n):"}]


@pytest.fixture(scope="module")
def http():
    return client()


@pytest.fixture(scope="module")
def through_openai():
    with listening(serving(keys=("secret",))) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as found:
            yield found


def talk(http, **body):
    reply = http.post("/v1/chat/completions", json={"messages": ASK, "temperature": 0, "max_tokens": 8} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def expected(text="def fib(n):", tokens=8, **params):
    ids = bundled().tokenizer.encode(text, False)
    return bundled().generate([ids], SamplingParams(max_tokens=tokens, **params))[0]


def test_an_answer_is_the_engines(http):
    reply = talk(http)
    choice, alone = reply["choices"][0], expected()
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == alone.text
    assert (reply["object"], choice["finish_reason"]) == ("chat.completion", "length")
    assert reply["usage"]["completion_tokens"] == 8
    assert reply["usage"]["prompt_tokens"] == alone.usage.prompt_tokens


def test_a_stream_tells_the_role_once_and_ends_once(http):
    body = {"messages": ASK, "temperature": 0, "max_tokens": 8, "stream": True, "n": 2, "seed": 1}
    body["stream_options"] = {"include_usage": True}
    chunks = events(http.post("/v1/chat/completions", json=body).text)
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 16
    for place in range(2):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == place]
        assert ["role" in choice["delta"] for choice in mine] == [True] + [False] * (len(mine) - 1)
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == expected().text


def test_parts_and_roles_are_read(http):
    parts = [{"type": "text", "text": "def "}, {"type": "text", "text": "fib(n):"}]
    for role in ("user", "developer", "system"):
        assert talk(http, messages=[{"role": role, "content": parts}])["choices"][0]["message"]["content"] == (
            expected().text
        )


def test_the_newer_name_of_the_length_wins(http):
    assert talk(http, max_tokens=50, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_without_a_length_an_answer_is_as_long_as_the_model_asks(http):
    reply = http.post("/v1/chat/completions", json={"messages": ASK, "temperature": 0, "ignore_eos": True}).json()
    assert reply["usage"]["completion_tokens"] == 128, "max_new_tokens of generation_config.json"


def test_log_probabilities(http):
    content = talk(http, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    alone = expected(logprobs=3)
    assert [entry["logprob"] for entry in content] == [one.logprob for one in alone.logprobs]
    assert all(len(entry["top_logprobs"]) == 3 for entry in content)
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == alone.text
    assert talk(http, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_bytes_of_a_part_of_a_character():
    from isobit.server.logprobs import bytes_of

    tokenizer = bundled().tokenizer
    for text in ("文", "ö→", "a\n\t ", "\N{REPLACEMENT CHARACTER}"):
        ids = tokenizer.encode(text, False)
        assert b"".join(bytes_of(tokenizer, id) for id in ids) == text.encode()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"functions": [{"name": "f", "parameters": {}}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(http, body, param):
    reply = http.post("/v1/chat/completions", json={"messages": ASK} | body)
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith(param)


NEVER = {"$ref": "#"}
WORSE = {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}  # found out when it is compiled


@pytest.mark.parametrize("schema", [NEVER, WORSE])
@pytest.mark.parametrize(
    ("field", "asking"),
    [
        ("response_format", lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        ("structured_outputs", lambda schema: {"json": schema}),
        ("guided_json", lambda schema: schema),
    ],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_a_schema_that_cannot_be_used_is_told_of_by_its_field(http, route, field, asking, schema):
    body = {"messages": ASK} if "chat" in route else {"prompt": "x"}
    reply = http.post(route, json=body | {field: asking(schema)})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == field and error["message"].startswith(f"{field}: the JSON")
    assert "NoExtension" not in error["message"] and "non-verbose" not in error["message"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than the limit"),
        ("{{ messages", "is not valid Jinja"),
    ],
)
def test_a_template_that_cannot_be_used_is_no_fault_of_the_request(template, said):
    llm = load_llm(resolve("bundled"))
    llm.tokenizer.chat_templates = {"default": template}
    with client(serving(llm)) as own:
        error = (reply := own.post("/v1/chat/completions", json={"messages": ASK})).json()["error"]
        assert reply.status_code == 500 and error["code"] == "model_error" and said in error["message"]
        llm.tokenizer.chat_templates = {"default": "{{ raise_exception('no') }}"}
        assert own.post("/v1/chat/completions", json={"messages": ASK}).status_code == 400


def test_openais_client_reads_answers(through_openai):
    reply = through_openai.chat.completions.create(
        model="bundled", messages=ASK, temperature=0, max_completion_tokens=8, logprobs=True, top_logprobs=2
    )
    assert reply.choices[0].message.content == expected().text
    assert math.isclose(reply.choices[0].logprobs.content[0].logprob, expected(logprobs=0).logprobs[0].logprob)
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0
    completed = through_openai.completions.create(model="bundled", prompt="def fib(n):", max_tokens=8, temperature=0)
    assert completed.choices[0].text == expected().text
    assert [model.id for model in through_openai.models.list()] == ["bundled"]
    assert through_openai.models.retrieve("bundled").id == "bundled"


def test_openais_client_reads_streams(through_openai):
    stream = through_openai.chat.completions.create(
        model="bundled", messages=ASK, temperature=0, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected().text
    assert chunks[-1].usage.completion_tokens == 8


def test_openais_client_reads_errors(through_openai):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        through_openai.chat.completions.create(model="gpt-9", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        through_openai.chat.completions.create(model="bundled", messages=ASK, temperature=1000)
    with openai.OpenAI(base_url=through_openai.base_url, api_key="wrong", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError):
            other.models.list()
