"""`isobit chat --server`: the same conversation as with a model that is loaded here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from served import bundled, listening, serving

from isobit import SamplingParams
from isobit.cli.main import main


@pytest.fixture(scope="module")
def address():
    with listening(serving(keys=("secret",))) as found:
        yield found


def talk(monkeypatch, capsys, text, *options, key="secret"):
    monkeypatch.setenv("ISOBIT_API_KEY", key)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    status = main(["chat", *options])
    found = capsys.readouterr()
    return status, found.out, [line for line in found.err.splitlines() if not line.startswith("{")]


def expected(text, tokens=8):
    ids = bundled().tokenizer.encode(text, False)
    return bundled().generate([ids], SamplingParams(max_tokens=tokens))[0].text


def test_turns_are_those_of_the_server(monkeypatch, capsys, address):
    options = ["--server", address, "--max-tokens", "8", "--temperature", "0", "--json"]
    status, out, _ = talk(monkeypatch, capsys, "def fib(n):\nimport os\n", *options)
    document = json.loads(out)
    first, second = (message["content"] for message in document["messages"] if message["role"] == "assistant")
    assert status == 0 and first == expected("def fib(n):")
    assert second == expected("def fib(n):" + first + "import os"), "the conversation goes on"
    assert [turn["completion_tokens"] for turn in document["turns"]] == [8, 8]


def test_text_comes_as_it_is_written(monkeypatch, capsys, address):
    options = ["bundled", "--server", f"{address}/v1/", "--max-tokens", "8", "--temperature", "0"]
    assert talk(monkeypatch, capsys, "def fib(n):\n", *options)[:2] == (0, expected("def fib(n):") + "\n")


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        (["--server", "{address}"], "wrong", "answers 401: a key is needed"),
        (["--server", "{address}"], "", "answers 401"),
        (["gpt-9", "--server", "{address}"], "secret", "answers 404: there is no model 'gpt-9'"),
        (["--server", "{address}", "--max-tokens", "5000"], "secret", "answers 400"),
        (["--server", "http://127.0.0.1:9"], "secret", "cannot be asked"),
        (["--server", "ftp://a"], "secret", "must be an address like"),
        (["--server", "http://a:b"], "secret", "--server"),
        (["--server", "{address}", "--dtype", "float32"], "secret", "--dtype is about a model that is loaded here"),
        (["--server", "{address}", "--device", "cuda"], "secret", "--device is about"),
        (["--server", "{address}"], "a\nb", "ISOBIT_API_KEY"),
        ([], "", "name a model, or a server"),
    ],
)
def test_what_goes_wrong_is_one_line(monkeypatch, capsys, address, options, key, said):
    options = [option.format(address=address) for option in options]
    status, _, err = talk(monkeypatch, capsys, "hello\n", *options, key=key)
    assert status == 2 and len(err) == 1 and said in err[0]


def test_it_needs_neither_torch_nor_the_servers_libraries(address):
    code = """
import sys
from isobit.cli.main import main
status = main(sys.argv[1:])
found = {"torch", "starlette", "msgspec", "uvicorn"} & set(sys.modules)
sys.exit(status or len(found))
"""
    command = [sys.executable, "-c", code, "chat", "--server", address, "--max-tokens", "2"]
    environment = os.environ | {"ISOBIT_API_KEY": "secret"}
    found = subprocess.run(command, input="hello\n", capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
