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
        ({"logit_bias": {"99999": 5}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [[1], [99999]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(http, body, param):
    reply = http.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert reply.headers["x-should-retry"] == "false"


# Log-probabilities of prompts, as lm-evaluation-harness reads them


def harness(choice, context):
    """Its parser (0.4.13, ``OpenAICompletionsAPI.parse_logprobs``), rewritten: the sum, and whether all are greedy."""
    tokens = choice["logprobs"]["token_logprobs"][context:-1]
    tops = choice["logprobs"]["top_logprobs"][context:-1]
    return sum(tokens), all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True))


def test_scores_of_a_prompt_are_those_of_the_engine(http):
    texts = ["def fib(n):\n    return n", "import os\nimport sys", "ö 文 def"]
    ids = [bundled().tokenizer.encode(text) for text in texts]
    reply = complete(http, prompt=ids, max_tokens=1, logprobs=1, echo=True, seed=1234)
    for choice, one in zip(reply["choices"], ids, strict=True):
        lists = choice["logprobs"]
        assert {len(values) for values in lists.values()} == {len(one) + 1}
        assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
        scored = expected(one, 1, prompt_logprobs=1).prompt_logprobs[1:]
        total, greedy = harness(choice, 1)
        assert total == sum(entry.logprob for entry in scored)
        assert greedy == all(entry.logprob == entry.top[0][1] for entry in scored)


def test_a_greedy_continuation_is_greedy(http):
    ids = bundled().tokenizer.encode(PROMPT)
    whole = [*ids, *expected(ids, 6).token_ids]
    choice = complete(http, prompt=[whole], max_tokens=1, logprobs=1, echo=True)["choices"][0]
    assert harness(choice, len(ids))[1]


def test_zero_tokens_give_the_prompts_entries_alone(http):
    ids = bundled().tokenizer.encode(PROMPT)
    reply = complete(http, prompt=ids, max_tokens=0, logprobs=2, echo=True)
    choice = reply["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == len(ids)
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert reply["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_zero_tokens_without_scores_give_the_prompt_back(http, stream):
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "stream": stream}
    reply = http.post("/v1/completions", json=body)
    choice = (events(reply.text)[0] if stream else reply.json())["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (PROMPT, "length", None)


def test_the_end_of_text_token_has_its_entry(http):
    ids = bundled().tokenizer.encode(PROMPT)
    body = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "logit_bias": {"0": 100}}
    choice = complete(http, **body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    assert choice["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert choice["text"] == PROMPT


def test_zero_logprobs_give_the_chosen_token_alone(http):
    lists = complete(http, logprobs=0)["choices"][0]["logprobs"]
    assert [[*top.values()] for top in lists["top_logprobs"]] == [[value] for value in lists["token_logprobs"]]


def test_offsets_count_characters_of_prompt_and_answer(http):
    choice = complete(http, logprobs=0, echo=True)["choices"][0]
    lists = choice["logprobs"]
    for offset, token in zip(lists["text_offset"], lists["tokens"], strict=True):
        assert choice["text"][offset : offset + len(token)] == token


def test_scores_in_a_stream_are_the_same(http):
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 2}
    for echo in (False, True):
        whole = complete(http, **body, echo=echo)["choices"][0]
        chunks = events(http.post("/v1/completions", json={**body, "echo": echo, "stream": True}).text)
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
        for name, values in whole["logprobs"].items():
            assert [value for part in parts for value in part[name]] == values


def test_of_tokens_that_look_alike_the_best_counts():
    from types import SimpleNamespace

    from isobit.engine.params import TokenLogprob
    from isobit.server.logprobs import LOWEST, Legacy

    tokenizer = SimpleNamespace(token_text=lambda id: "\N{REPLACEMENT CHARACTER}", all_behind=lambda skip_special: {})
    legacy = Legacy(tokenizer)
    entry = TokenLogprob(7, -2.0, ((5, -0.5), (6, -1.0)), False)
    assert legacy._top(entry) == {"\N{REPLACEMENT CHARACTER}": -0.5}
    assert legacy._top(TokenLogprob(7, float("-inf"), (), False)) == {"\N{REPLACEMENT CHARACTER}": LOWEST}


# What a request asks of sampling


def test_sampling_is_the_engines(http):
    from isobit import SamplingParams

    settings = {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "min_p": 0.01, "seed": 7, "frequency_penalty": 0.5}
    settings |= {"presence_penalty": 0.1, "repetition_penalty": 1.1}
    reply = complete(http, n=3, **settings, logit_bias={"10": -5, "300": 2.5})
    for place, choice in enumerate(reply["choices"]):
        own = settings | {"seed": 7 + place, "logit_bias": {10: -5, 300: 2.5}, "max_tokens": 8}
        assert choice["text"] == bundled().generate([PROMPT], SamplingParams(**own))[0].text


def test_sixteen_stop_texts(http):
    text = expected(PROMPT, 30).text
    stop = [f"never {number}" for number in range(15)] + [text[5:8]]
    choice = complete(http, max_tokens=30, stop=stop)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        text[: text.find(text[5:8])],
        "stop",
        text[5:8],
    )
    body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "stop": stop, "stream": True}
    chunks = events(http.post("/v1/completions", json=body).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


def test_characters_of_several_tokens_are_never_split(http):
    ids = bundled().tokenizer.encode("文ö", False)
    bias = {str(id): 100 for id in ids}
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 1, "seed": 3, "logit_bias": bias, "stream": True}
    chunks = events(http.post("/v1/completions", json=body).text)
    whole = http.post("/v1/completions", json=body | {"stream": False}).json()["choices"][0]["text"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
    assert len(chunks) < 24, "several tokens make a character"


def test_what_is_read_from_the_cache_is_told(http):
    long = "import os\n" * 40
    complete(http, prompt=long)
    usage = complete(http, prompt=long)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 64
    scored = complete(http, prompt=long, echo=True, logprobs=1, max_tokens=1)["usage"]
    assert scored["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("tokens", "asked", "status"), [(1023, 1, 200), (1023, 2, 400), (1024, 0, 200), (1024, 1, 400)]
)
def test_the_context_ends_where_it_ends(http, tokens, asked, status):
    reply = http.post("/v1/completions", json={"prompt": [5] * tokens, "max_tokens": asked, "temperature": 0})
    assert reply.status_code == status
    if status == 400:
        error = reply.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert all(number in error["message"] for number in (str(tokens), str(asked), "1024"))
