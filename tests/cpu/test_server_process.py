"""`isobit serve` as a process: what it prints, how it ends, and what it refuses before it loads anything."""

from __future__ import annotations

import gc
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx2
import pytest
from served import until

from isobit.cli import serve
from isobit.cli.main import main
from isobit.errors import CapacityError

SERVE = [sys.executable, "-m", "isobit", "serve", "bundled", "--port", "0"]


def test_the_plan_comes_first_and_a_signal_lets_answers_end():
    process = subprocess.Popen(SERVE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()
    try:
        served = re.compile(r"served at (http://\S+)")
        until(lambda: any(served.search(line) for line in lines) or process.poll() is not None)
        address = next(found[1] for line in lines if (found := served.search(line)))
        plan = next(place for place, line in enumerate(lines) if line.startswith("Use bf16"))
        assert plan < next(place for place, line in enumerate(lines) if served.search(line))
        until(lambda: _alive(address))
        body = {"prompt": "import os", "max_tokens": 300, "ignore_eos": True, "temperature": 0, "stream": True}
        with httpx2.stream("POST", f"{address}/v1/completions", json=body, timeout=120) as reply:
            events = reply.iter_lines()
            assert next(events).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            assert [line for line in events if line][-1] == "data: [DONE]"
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    ending = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line["signal"] for line in ending if line["event"] == "ending"] == ["SIGTERM"]


def _alive(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/ready", timeout=60).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "lets other machines ask, and there is no key"),
        (["--port", "70000"], "--port"),
        (["--sequences", "0"], "--sequences"),
        (["--api-key", ""], "a key must have at least one character"),
        (["--api-key", "a b"], "a key must have"),
        (["--api-key-file", "/nowhere/keys"], "/nowhere/keys"),
        (["--drain", "-1"], "--drain"),
        (["--host", "256.1.1.1", "--insecure"], "cannot listen on 256.1.1.1"),
        (["--device", "cuda"], "GPU"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(capsys, options, said, monkeypatch):
    monkeypatch.setattr("isobit.api.LLM", lambda *args, **options: pytest.fail("loaded"))
    assert main(["serve", "bundled", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "bundled", "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_a_missing_extra_is_an_instruction(capsys, monkeypatch):
    monkeypatch.setattr("isobit.cli.serve.NEEDED", ("starlette", "no_such_module"))
    assert main(["serve", "bundled"]) == 2
    err = capsys.readouterr().err
    assert "no_such_module is not installed" in err and "pip install 'isobit[serve]'" in err


@pytest.mark.parametrize("given", [{}, {"memory": "3GiB"}, {"cache_tokens": 64}], ids=str)
def test_where_no_step_can_be_recorded_a_server_that_was_given_no_cache_starts(given, capsys):
    def prepare():
        raise CapacityError("memory does not suffice (of the test)")

    args = SimpleNamespace(**{"memory": None, "cache_tokens": None} | given)
    llm = SimpleNamespace(prepare=prepare)
    if given:
        with pytest.raises(CapacityError, match="of the test"):
            serve._prepare(llm, args)
        return
    try:
        serve._prepare(llm, args)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert "first requests take longer" in (said := capsys.readouterr().err) and "(of the test)" in said
