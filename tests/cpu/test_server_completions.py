"""`/v1/completions`: prompts in every form, log-probabilities as lm-evaluation-harness reads them, streams."""

from __future__ import annotations

import pytest
from served import bundled, client, events

PROMPT = "def fib(n):"


@pytest.fixture(scope="module")
def http():
    return client()


def complete(http, **body):
    reply = http.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, "max_tokens": 8, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def expected(prompt, tokens=8, **params):
    from isobit import SamplingParams

    return bundled().generate([prompt], SamplingParams(max_tokens=tokens, **params))[0]


def test_a_text_is_completed_as_the_engine_does(http):
    reply, alone = complete(http), expected(PROMPT)
    assert reply["choices"][0]["text"] == alone.text
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["prompt_tokens"] == alone.usage.prompt_tokens
    assert reply["usage"]["completion_tokens"] == 8
    assert reply["usage"]["total_tokens"] == alone.usage.prompt_tokens + 8


@pytest.mark.parametrize("listed", [False, True])
def test_token_ids_are_used_as_they_are(http, listed):
    ids = bundled().tokenizer.encode(PROMPT)
    reply = complete(http, prompt=[ids] if listed else ids)
    assert [choice["text"] for choice in reply["choices"]] == [expected(ids).text]


def test_many_prompts_and_many_answers_are_in_order(http):
    ids = bundled().tokenizer.encode("import os")
    reply = complete(http, prompt=[PROMPT, ids], n=2)
    texts = [expected(PROMPT).text] * 2 + [expected(ids).text] * 2
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in reply["choices"]] == texts


def test_a_stream_has_the_same_text_one_id_and_one_end(http):
    body = {"prompt": [PROMPT, "import os"], "max_tokens": 8, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    chunks = events(http.post("/v1/completions", json=body).text)
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for place, prompt in enumerate([PROMPT, "import os"]):
        mine = [choice for choice in choices if choice["index"] == place]
        assert "".join(choice["text"] for choice in mine) == expected(prompt).text
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 16
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_unknown_fields_are_ignored_and_named(http):
    reply = http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1, "surprise": 1, "user": "me"})
    assert reply.status_code == 200
    assert reply.headers["warning"] == '299 isobit "fields that are not known, ignored: surprise"'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 100000}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(http, body, param):
    reply = http.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert reply.headers["x-should-retry"] == "false"
