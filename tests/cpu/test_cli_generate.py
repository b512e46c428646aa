"""`isobit generate` and `isobit chat` on a model whose answers are known."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import QWEN2
from fake_model import FakeModel, writes
from tokenizers_for_tests import byte_level, write_folder

from isobit.cli import chat, generate
from isobit.engine.generate import Generator
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError, UsageError

SAYS = " = 42 🙂"


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    generate.register(subparsers)
    chat.register(subparsers)
    return parser.parse_args(words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that loads as a model whose every answer begins with SAYS and ends with </s>."""
    write_folder(tmp_path, byte_level())

    def load(path: Path, dtype: str | None = None, device: str = "cpu") -> Generator:
        tokenizer = Tokenizer.from_folder(path)
        ids = tokenizer.encode(SAYS + "</s>")
        model = FakeModel(tokenizer.vocab_size, lambda so_far: None, context=1000)  # type: ignore[arg-type,return-value]
        generator = Generator(model, tokenizer)
        prefill = generator.prefill

        def new_answer(prompt: Any, cache: Any) -> Any:
            if not cache.ids:  # the prompt: answers are counted from its end
                model._rule = writes(ids, tokenizer.vocab_size, len(prompt))
            return prefill(prompt, cache)

        monkeypatch.setattr(generator, "prefill", new_answer)
        return generator

    monkeypatch.setattr("isobit.engine.generate.load_generator", load)
    return tmp_path


def test_prints_the_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--no-stream"], ["--temperature", "0.01", "--seed", "3", "--top-k", "1"]):
        args = parse("generate", str(folder), "x", *words)
        assert args.run(args) == 0
        assert capsys.readouterr().out == SAYS + "\n"
    args = parse("generate", str(folder), "x", "--stop", "never", "--stop", "2", "--echo")
    args.run(args)
    assert capsys.readouterr().out == "x = 4\n"


def test_prompt_from_a_file_and_from_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "prompt.txt").write_text("in a file é", encoding="utf-8")
    args = parse("generate", str(folder), "--file", str(folder / "prompt.txt"), "--json")
    args.run(args)
    assert json.loads(capsys.readouterr().out)["prompt"] == "in a file é"
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    args = parse("generate", str(folder), "--json")
    args.run(args)
    assert json.loads(capsys.readouterr().out)["prompt"] == "piped"
    with pytest.raises(UsageError, match="missing.txt cannot be read"):
        generate.run(parse("generate", str(folder), "--file", str(folder / "missing.txt")))
    (folder / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="binary is not UTF-8"):
        generate.run(parse("generate", str(folder), "--file", str(folder / "binary")))


def test_json_is_one_document_with_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse("generate", str(folder), "x", "--json", "--logprobs", "2")
    args.run(args)
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == SAYS
    assert document["finish_reason"] == "stop"
    assert document["usage"]["completion_tokens"] == len(document["token_ids"]) == len(document["logprobs"])
    first = document["logprobs"][0]
    assert first["logprob"] == first["top"][0]["logprob"] < 0 and len(first["top"]) == 2
    assert document["logprobs"][-1]["text"] == "</s>"
    assert set(document["timings"]) == {"prefill_seconds", "decode_seconds", "tokens_per_second"}


def test_logprobs_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse("generate", str(folder), "x", "--logprobs", "1")
    args.run(args)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SAYS
    assert len(lines) == 1 + len(Tokenizer.from_folder(folder).encode(SAYS + "</s>"))
    assert "'</s>'" in lines[-1]


def test_errors_name_the_option(folder: Path) -> None:
    with pytest.raises(UsageError, match="^top_p must be"):
        generate.run(parse("generate", str(folder), "x", "--top-p", "2"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        generate.run(parse("generate", str(folder), "x"))


def conversation(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    args = parse("chat", str(folder), *words)
    return int(args.run(args))


def test_chat_through_a_pipe(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    assert conversation(folder, "one\n\ntwo", monkeypatch) == 0
    assert capsys.readouterr().out == f"{SAYS}\n{SAYS}\n"
    conversation(folder, "one\n/exit\ntwo\n", monkeypatch, "--system", "Be brief.", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": SAYS},
    ]
    assert document["turns"][0]["finish_reason"] == "stop"


def test_the_history_goes_into_the_prompt_and_reset_forgets_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.jinja").write_text("{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}")
    conversation(folder, "/help\na\nb\n/reset\nc\n", monkeypatch, "--template", str(folder / "t.jinja"), "--json")
    document = json.loads(capsys.readouterr().out)
    assert [message["content"] for message in document["messages"]] == ["c", SAYS]
    tokenizer = Tokenizer.from_folder(folder)
    assert document["turns"][0]["prompt_tokens"] == len(tokenizer.encode("u:c;"))


def test_a_base_model_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no chat template.*isobit generate.*--template FILE"):
        conversation(folder, "hi\n", monkeypatch)


@pytest.mark.parametrize(("template", "noted"), [("{{ m.content }}", 1), ("{{ m.role }}: {{ m.content }}\n", 0)])
def test_a_template_that_marks_no_turns_is_said_once(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    template: str,
    noted: int,
) -> None:
    (folder / "t.jinja").write_text(f"{{% for m in messages %}}{template}{{% endfor %}}")
    assert conversation(folder, "a\nb\n", monkeypatch, "--template", str(folder / "t.jinja")) == 0
    assert capsys.readouterr().err.count("goes on with your text and does not answer it") == noted


def test_ctrl_c_stops_the_answer_and_not_the_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    forward, calls = FakeModel.forward, [0]

    def interrupted(self: FakeModel, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "forward", interrupted)
    assert conversation(folder, "one\ntwo\n", monkeypatch, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    contents = [message["content"] for message in document["messages"]]
    assert SAYS.startswith(contents[1]) and contents[1] != SAYS
    assert contents[2:] == ["two", SAYS]
    assert [turn["finish_reason"] for turn in document["turns"]] == ["interrupted", "stop"]


def test_in_a_terminal_an_error_does_not_end_the_conversation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ raise_exception('no') if 'bad' in messages[-1].content else 'ok' }}"
    )

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    lines = iter(["bad", "good"])

    def ask(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    args = parse("chat", str(folder))
    assert args.run(args) == 0
    captured = capsys.readouterr()
    assert captured.out == SAYS + "\n"
    assert "refuses these messages: no" in captured.err
