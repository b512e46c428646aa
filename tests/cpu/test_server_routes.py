"""Routes beside those for text: models, tokens, health, metrics, status; and what every route passes before."""

from __future__ import annotations

import base64

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import bundled, client, serving

from isobit.server.app import all_routes
from isobit.server.metrics import Rate

OPEN = {"/health", "/ready"}


@pytest.fixture(scope="module")
def http():
    return client()


def test_models_are_listed_and_found_by_name(http):
    listed = http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["bundled"]
    assert http.get("/v1/models/bundled").json()["max_model_len"] == 1024
    missing = http.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_another_model_is_refused(http):
    reply = http.post("/v1/completions", json={"model": "gpt-9", "prompt": "a"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, "model")


def test_tokens_of_a_text_and_back(http):
    text = "def f():<|endoftext|>  return 'ö'"
    tokens = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert tokens == bundled().tokenizer.encode(text, False)
    assert 0 in tokens, "a special token written in a text is that token"
    assert http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == text


def test_tokens_of_a_conversation(http):
    body = {"messages": [{"role": "user", "content": "import os"}]}
    assert http.post("/tokenize", json=body).json()["tokens"] == bundled().tokenizer.encode("import os", False)


def test_the_tokenizer_tells_what_harnesses_ask(http):
    info = http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert "messages" in info["chat_template"]


def test_health_ready_and_version(http):
    assert [http.get(path).status_code for path in ("/health", "/ready", "/version")] == [200, 200, 200]
    served = serving()
    served.state = "restarting"
    other = client(served)
    assert (other.get("/health").status_code, other.get("/ready").status_code) == (200, 503)


def test_metrics_are_read_by_prometheus_and_gauges_return_to_zero():
    http = client()
    http.post("/v1/completions", json={"prompt": "import os", "max_tokens": 5, "temperature": 0})
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["isobit:generation_tokens_total"] == 5
    assert samples["isobit:prompt_tokens_total"] == len(bundled().tokenizer.encode("import os"))
    assert samples["isobit:time_to_first_token_seconds_count"] == 1
    assert samples["isobit:inter_token_latency_seconds_count"] == 4
    assert samples["isobit:request_success_total"] == 1
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert samples[f"isobit:{gauge}"] == 0


def test_status_tells_how_busy_it_is(http):
    status = http.get("/v1/isobit/status").json()
    assert status["state"] == "ready" and status["queue"]["running"] == 0
    assert status["kv_cache"]["usage"] == 0 and status["context_length"] == 1024


def test_a_rate_is_of_whole_seconds_and_forgets():
    now = [100.0]
    rate = Rate(lambda: now[0])
    for second in range(5):
        now[0] = 100.0 + second
        rate.add(30)
    now[0] = 105.0
    assert rate.now() == 30
    now[0] = 300.0
    assert rate.now() == 0


def paths():
    return [(route.path, method) for route in all_routes(serving()) for method in route.methods if method != "HEAD"]


@pytest.mark.parametrize(("path", "method"), paths())
def test_every_route_but_health_and_ready_needs_a_key(path, method):
    http = client(serving(keys=("secret", "other")))
    path = path.replace("{id:path}", "bundled")
    statuses = [
        http.request(method, path, headers=headers).status_code
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic ????"},
            {"X-Api-Key": "secre"},
        )
    ]
    assert statuses == [200] * 5 if path in OPEN else [401] * 5


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer other"},
        {"X-Api-Key": "secret"},
        {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()},
    ],
)
def test_a_key_opens(headers):
    assert client(serving(keys=("secret", "other"))).get("/v1/models", headers=headers).status_code == 200


def test_without_keys_an_empty_one_is_no_error(http):
    assert http.get("/v1/models", headers={"Authorization": "Bearer "}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("", 421),
    ],
)
def test_only_own_names_are_answered(http, host, status):
    assert http.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://[", 403),
        ("http://localhost", 200),
        ("https://page.example", 200),
        ("https://attacker.example", 403),
        ("null", 403),
        ("http://localhost:9999", 403),
    ],
)
def test_pages_elsewhere_are_refused(origin, status):
    http = client(serving(origins=frozenset({"https://page.example"})))
    reply = http.get("/v1/models", headers={"Origin": origin})
    assert reply.status_code == status
    assert reply.headers.get("access-control-allow-origin") == (origin if "page" in origin else None)


def test_a_page_that_may_ask_is_told_so_before():
    http = client(serving(origins=frozenset({"https://page.example"}), keys=("secret",)))
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    reply = http.options("/v1/chat/completions", headers=asked)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == "https://page.example"
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert client(serving()).options("/v1/chat/completions", headers=asked).status_code == 403


def test_the_description_has_every_route(http):
    described = {
        (path, method.upper())
        for path, operations in http.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    assert described == {
        (path.replace("{id:path}", "{id}"), method)
        for path, method in paths()
        if path != "/" and not path.startswith("/page/")
    }


def test_the_descriptions_fields_are_those_that_are_read():
    import msgspec

    from isobit.server.openapi import SCHEMAS
    from isobit.server.schema.chat import ChatRequest
    from isobit.server.schema.completions import CompletionRequest
    from isobit.server.schema.tokens import DetokenizeRequest, TokenizeRequest

    for kind in (ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest):
        read = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert {*SCHEMAS[kind.__name__]["properties"]} <= read, kind


def test_a_page_is_its_files_and_runs_nothing_else(tmp_path):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from isobit.server.routes.page import files

    (tmp_path / "index.html").write_text("<p>hello")
    (tmp_path / "page.js").write_text("1")
    (tmp_path / "secret.txt").write_text("no")
    http = TestClient(Starlette(routes=files(tmp_path)))
    assert http.get("/").text == "<p>hello"
    assert "script-src 'self';" in http.get("/").headers["content-security-policy"]
    assert http.get("/page/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for path in ("/page/secret.txt", "/page/..%2fsecret.txt", "/page/%2e%2e/secret.txt", "/page/"):
        assert http.get(path).status_code == 404
