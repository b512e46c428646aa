"""The server stays up: clients that go, queues that are full, engines that fail, and its own end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import torch
from fake_model import FakeModel
from served import bundled, client, events, listening, serving, until
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.server.settings import Limits

POISON = 9  # a token that makes the model fail


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(write_folder(Path(tmp_path_factory.mktemp("tok")), byte_level()))


def failing(tokenizer, sequences=2, gate=None):
    """A model that counts its tokens; whose steps fail while a prompt with the poison is part of them."""

    def rule(ids):
        if gate is not None:
            gate.wait(60)
        if POISON in ids and len(ids) > 5:
            raise ZeroDivisionError("the kernel at 0x7f12345678 failed in /usr/lib/libcuda.so")
        logits = torch.zeros(tokenizer.vocab_size)
        logits[40 + len(ids)] = 1.0
        return logits

    return LLM(FakeModel(tokenizer.vocab_size, rule), tokenizer, sequences=sequences)


def counted(prompt, tokens):
    return [40 + prompt + at for at in range(tokens)]


def test_a_fault_fails_what_took_part_and_nothing_that_waits(tokenizer):
    llm = failing(tokenizer)
    seen = []
    llm.on_fault = lambda error: seen.append(type(error))
    llm.on_recovery = lambda: seen.append("on")
    params = SamplingParams(max_tokens=12, ignore_eos=True)

    async def ask(prompt):
        return [id async for piece in llm.stream_async(prompt, params) for id in piece.token_ids]

    async def all_of_them():
        prompts = [[5], [5, POISON], [5, 6, 7], [5] * 8]
        return await asyncio.gather(*(ask(prompt) for prompt in prompts), return_exceptions=True)

    before = llm.engine
    found = asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert [type(one) for one in found[:2]] == [ZeroDivisionError] * 2
    assert found[2:] == [counted(3, 12), counted(8, 12)]
    assert seen == [ZeroDivisionError, "on"] and llm.engine is not before
    assert llm.engine.pool.free == llm.engine.pool.count and not llm._answers


def test_an_engine_that_cannot_be_made_again_ends_everything_at_once(tokenizer):
    llm = failing(tokenizer, 1)

    def fails():
        raise MemoryError("no more")

    llm._new_engine = fails
    params = SamplingParams(max_tokens=12, ignore_eos=True)

    async def ask(prompt):
        return [piece async for piece in llm.stream_async(prompt, params)]

    async def both():
        return await asyncio.gather(ask([5, POISON]), ask([5]), return_exceptions=True)

    assert [type(one) for one in asyncio.run(asyncio.wait_for(both(), 60))] == [ZeroDivisionError, MemoryError]
    with pytest.raises(MemoryError):
        asyncio.run(ask([5]))


def test_ready_flips_with_the_engine_and_replies_tell_nothing_of_the_machine(tokenizer, capsys):
    served = serving(failing(tokenizer))
    states = []
    recovered = served.llm.on_recovery

    def watch():
        states.append(client(served).get("/ready").status_code)
        recovered()

    served.llm.on_recovery = watch
    http = client(served)
    reply = http.post("/v1/completions", json={"prompt": [5, POISON], "max_tokens": 9, "ignore_eos": True})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert "0x7f" not in reply.text and "/usr" not in reply.text and "Traceback" not in reply.text
    until(lambda: states and served.state == "ready")
    assert states == [503] and http.get("/ready").status_code == 200
    assert "ZeroDivisionError" in capsys.readouterr().err, "the log has it"
    assert http.post("/v1/completions", json={"prompt": [5], "max_tokens": 3, "ignore_eos": True}).status_code == 200


def test_a_fault_in_a_stream_is_an_event(tokenizer):
    http = client(serving(failing(tokenizer)))
    body = {"prompt": [5, POISON], "max_tokens": 9, "ignore_eos": True, "stream": True}
    chunks = events(http.post("/v1/completions", json=body).text)
    assert [chunk["choices"][0]["text"] != "" for chunk in chunks[:-1]] and chunks[-1]["error"][
        "type"
    ] == "server_error"


# Clients that go


def connected(address, body, path="/v1/completions"):
    """A connection on which a request was sent."""
    url = urlsplit(address)
    sock = socket.create_connection((url.hostname, url.port))
    data = json.dumps(body).encode()
    fields = f"Host: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    head = f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 4])
def test_who_goes_leaves_within_a_step(stream, n):
    llm = bundled()
    served = serving()
    with listening(served) as address:
        steps = llm.engine.scheduler.steps
        body = {"prompt": "import os", "max_tokens": 900, "ignore_eos": True, "stream": stream, "n": n}
        sock = connected(address, body)
        until(lambda: llm.engine.scheduler.steps > steps + 3 and llm.engine.scheduler.running)
        sock.close()
        until(lambda: not llm.engine.scheduler.unfinished)
        assert llm.engine.scheduler.steps - steps < 850, "it did not go on to its end"
        until(lambda: served.sequences == 0)
    assert llm.engine.pool.free == llm.engine.pool.count


MESSAGES = [{"role": "user", "content": "x"}]
LONG = {"max_tokens": 900, "ignore_eos": True}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": "x", **LONG}, 499),
        ("/v1/chat/completions", {"messages": MESSAGES, **LONG}, 499),
        ("/v1/messages", {"model": "bundled", "messages": MESSAGES, **LONG}, 499),
        ("/v1/responses", {"model": "bundled", "input": "x", "max_output_tokens": 900, "ignore_eos": True}, 499),
        ("/v1/completions", {"prompt": "x", "stream": True, **LONG}, 200),
    ],
)
def test_who_goes_is_no_fault_of_the_server(path, body, status, capsys):
    llm = bundled()
    with listening(serving()) as address:
        steps = llm.engine.scheduler.steps
        sock = connected(address, body, path)
        until(lambda: llm.engine.scheduler.steps > steps + 3 and llm.engine.scheduler.running)
        sock.close()
        until(lambda: not llm.engine.scheduler.unfinished)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [(one["path"], one["status"]) for one in lines if one["event"] == "request"] == [(path, status)]
    assert not [one for one in lines if one["event"] == "error"]


def test_who_goes_from_the_queue_is_never_computed(tokenizer):
    gate = threading.Event()
    llm = failing(tokenizer, 1, gate)
    served = serving(llm)
    with listening(served) as address:
        first = connected(address, {"prompt": [5], "max_tokens": 20, "ignore_eos": True})
        until(lambda: llm.engine.scheduler.running or llm.engine.scheduler.unfinished)
        second = connected(address, {"prompt": [5, 6, 7, 8, 10], "max_tokens": 20, "ignore_eos": True})
        until(lambda: served.sequences == 2)
        second.close()
        until(lambda: served.sequences == 1)
        gate.set()
        assert first.recv(12) == b"HTTP/1.1 200"
        first.close()
        until(lambda: not llm.engine.unfinished)
    assert 5 not in llm.model.calls, "a prompt of five tokens was never fed"


# Full queues


def test_a_full_queue_says_when_to_come_again(tokenizer):
    gate = threading.Event()
    served = serving(failing(tokenizer, 1, gate), limits=Limits(waiting=1))
    body = {"prompt": [5], "max_tokens": 3, "ignore_eos": True}
    with listening(served) as address:
        held = [connected(address, body) for _ in range(2)]
        until(lambda: served.sequences == 2)
        reply = httpx2.post(f"{address}/v1/completions", json=body, timeout=60)
        assert (reply.status_code, reply.headers["retry-after"], reply.json()["error"]["code"]) == (
            503,
            "1",
            "queue_full",
        )
        assert "x-should-retry" not in reply.headers
        too_many = httpx2.post(f"{address}/v1/completions", json=body | {"n": 3}, timeout=60)
        assert too_many.status_code == 400, "it would never fit"
        assert httpx2.get(f"{address}/health", timeout=60).status_code == 200
        gate.set()
        assert [sock.recv(12) for sock in held] == [b"HTTP/1.1 200"] * 2
        for sock in held:
            sock.close()


def test_silence_is_broken_for_proxies(tokenizer):
    gate = threading.Event()
    served = serving(failing(tokenizer, 1, gate), limits=Limits(ping=0.02))
    with listening(served) as address:
        body = {"prompt": [5], "max_tokens": 3, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        with httpx2.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith(":")
            gate.set()
            text = "\n".join(lines)
    *told, last = events(text.lstrip("\n") + "\n")
    assert len(told) == 3 and last["usage"]["completion_tokens"] == 3


# The end


def test_who_comes_while_it_ends_is_told(tokenizer):
    served = serving(failing(tokenizer))
    served.state = "draining"
    http = client(served)
    reply = http.post("/v1/completions", json={"prompt": [5], "max_tokens": 3})
    assert (reply.status_code, reply.headers["connection"]) == (503, "close")
    assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200


def test_a_body_that_is_too_large_is_told():
    with listening(serving(limits=Limits(body=1000))) as address:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc)) as connection:
            # Twice the limit is read and half of it dropped, so that the answer arrives whoever is faster.
            parts = iter([b"x" * 600] * 3)
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", parts, kind, encode_chunked=True)
            reply = connection.getresponse()
            assert (reply.status, reply.getheader("connection")) == (413, "close")
            assert "larger than 1,000 bytes" in reply.read().decode()
        assert httpx2.get(f"{address}/health", timeout=60).status_code == 200


@pytest.mark.parametrize("fields", ["Content-Length: 99999999999999", "Content-Length: 1001\r\nExpect: 100-continue"])
def test_a_body_that_says_it_is_too_large_is_not_waited_for(fields):
    with listening(serving(limits=Limits(body=1000))) as address:
        url = urlsplit(address)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n{fields}\r\n\r\n"
        )
        with socket.create_connection((url.hostname, url.port)) as sock:
            sock.sendall(head.encode())
            assert sock.recv(12) == b"HTTP/1.1 413"


def test_a_body_that_never_ends_is_cut():
    with listening(serving(limits=Limits(body=1000))) as address:
        url = urlsplit(address)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((url.hostname, url.port)) as sock:
            sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while True:
                    sock.sendall(b"258\r\n" + b"x" * 600 + b"\r\n")
        assert httpx2.get(f"{address}/health", timeout=60).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for():
    with listening(serving(limits=Limits(silence=0.1))) as address:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc)) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", "100")
            connection.endheaders(b'{"prompt":')
            reply = connection.getresponse()
            assert (reply.status, reply.getheader("connection")) == (408, "close")
            assert "nothing of the body" in reply.read().decode()


def test_a_cache_that_is_smaller_than_the_context_is_the_limit(tokenizer):
    def rule(ids):
        logits = torch.zeros(tokenizer.vocab_size)
        logits[40] = 1.0
        return logits

    llm = LLM(FakeModel(tokenizer.vocab_size, rule), tokenizer, sequences=2, cache_tokens=64)
    http = client(serving(llm))
    room = http.get("/v1/models").json()["data"][0]["max_model_len"]
    assert room == llm.engine.pool.count * llm.engine.pool.size < llm.context_length
    body = {"prompt": [5] * (room - 8), "ignore_eos": True}
    assert http.post("/v1/completions", json=body | {"max_tokens": 8}).status_code == 200
    reply = http.post("/v1/completions", json=body | {"max_tokens": 9})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
