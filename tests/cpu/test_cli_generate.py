"""`isobit generate` and `isobit chat` on a model whose answers are known."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_templates import QWEN2
from fake_model import FakeModel, writes
from tokenizers_for_tests import byte_level, write_folder

from isobit.cli import chat, generate
from isobit.engine.generate import Generator
from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, CheckpointError, TemplateError, UsageError
from isobit.models.cache.paged import BLOCK

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

    def load(path: Path, dtype: str | None = None, device: str = "cpu", **options: object) -> Generator:
        tokenizer = Tokenizer.from_folder(path)
        ids = tokenizer.encode(SAYS + "</s>")
        model = FakeModel(tokenizer.vocab_size, lambda so_far: None, context=1000)  # type: ignore[arg-type,return-value]
        generator = Generator(LLM(model, tokenizer))
        stream = generator.stream

        def new_answer(
            prompt: Any, params: Any = None, grammar: Any = None
        ) -> Any:  # answers are counted from the prompt's end
            given = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            model._rule = writes(ids, tokenizer.vocab_size, len(given))
            return stream(prompt, params, grammar)

        monkeypatch.setattr(generator, "stream", new_answer)
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


def test_json_is_json_where_the_output_is_ascii(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(data, encoding="ascii", errors="backslashreplace"))
    args = parse("generate", str(folder), "é", "--json")
    args.run(args)
    sys.stdout.flush()
    document = json.loads(data.getvalue())
    assert (document["prompt"], document["text"]) == ("é", SAYS)


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
    with pytest.raises(CheckpointError, match="there is no tokenizer file at all"):
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


def test_the_next_turn_reads_what_was_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    conversation(folder, "one\ntwo\n", monkeypatch, "--system", "Be brief. " * 20, "--json")
    first, second = json.loads(capsys.readouterr().out)["turns"]
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == first["prompt_tokens"] // BLOCK * BLOCK > 0


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


def test_the_model_s_sampling_is_used_and_shown_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    asked = {"do_sample": True, "temperature": 0.01, "top_p": 0.95, "max_new_tokens": 3, "num_beams": 4}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    used = "sampling: temperature 0.01, top_k 50, top_p 0.95, max_tokens 3"
    assert conversation(folder, "one\ntwo\n", monkeypatch, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err.count(used) == 1 and captured.err.count("num_beams 4") == 1
    document = json.loads(captured.out)
    assert document["sampling"]["temperature"] == 0.01
    assert document["sampling"]["from_generation_config"] == ["max_tokens", "temperature", "top_k", "top_p"]
    assert "num_beams 4" in document["notes"][0] and document["error"] is None
    assert [turn["completion_tokens"] for turn in document["turns"]] == [3, 3]
    args = parse("generate", str(folder), "x", "--temperature", "0", "--max-tokens", "5", "--json")
    args.run(args)
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert "sampling:" not in captured.err and "num_beams 4" in captured.err
    assert document["sampling"]["temperature"] == 0 and document["sampling"]["from_generation_config"] == []
    assert document["usage"]["completion_tokens"] == 5


def test_a_length_that_the_context_does_not_have_is_no_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 5000}))
    args = parse("generate", str(folder), "x", "--ignore-eos", "--json")
    args.run(args)
    assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] == 999  # the context holds 1000


def test_a_begin_of_text_token_read_twice_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(folder, byte_level(bos=True))
    for prompt, times in (("<s>x", 1), ("x", 0), ("x<s><s>", 0)):
        args = parse("generate", str(folder), prompt, "--json")
        args.run(args)
        captured = capsys.readouterr()
        assert captured.err.count("reads '<s>' twice at the beginning") == times
        assert len(json.loads(captured.out)["notes"]) == times


def test_a_template_that_writes_it_twice_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.jinja").write_text("<s><s>{% for m in messages %}[{{ m.content }}]{% endfor %}")
    conversation(folder, "a\nb\n", monkeypatch, "--template", str(folder / "t.jinja"))
    assert capsys.readouterr().err.count("twice at the beginning, as in transformers: the chat template") == 1


def test_a_conversation_that_outgrows_the_context_is_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    long = "x " * 700
    with pytest.raises(CapacityError, match="the conversation does not fit the context any more"):
        conversation(folder, f"one\n{long}\nthree\n", monkeypatch, "--json")
    document = json.loads(capsys.readouterr().out)
    assert [message["content"] for message in document["messages"][-2:]] == ["one", SAYS]
    assert "the model's context holds 1000" in document["error"] and document["unanswered"] == long.strip()
    with pytest.raises(CapacityError, match="^the prompt has"):
        conversation(folder, f"{long}\n", monkeypatch, "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["turns"] == [] and document["unanswered"] == long.strip()


def test_a_template_error_keeps_the_conversation_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.jinja").write_text("{{ raise_exception('no') if 'bad' in messages[-1].content else '[ok]' }}")
    with pytest.raises(TemplateError):
        conversation(folder, "good\nbad\n", monkeypatch, "--template", str(folder / "t.jinja"), "--json")
    document = json.loads(capsys.readouterr().out)
    assert len(document["turns"]) == 1 and "refuses these messages: no" in document["error"]
    assert document["unanswered"] == "bad"


class Bytes(io.StringIO):
    """Standard input with bytes behind it."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize("data", [b"h\xe9", b"\xed\xa0\x80", b"ok \xff\xfe", b"\x80"])
def test_input_that_is_not_utf_8_is_one_error(
    folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Bytes(data))
    with pytest.raises(UsageError, match="standard input is not UTF-8 text"):
        generate.run(parse("generate", str(folder)))
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", Bytes(b"one\n" + data))
    with pytest.raises(UsageError, match="standard input is not UTF-8 text"):
        chat.run(parse("chat", str(folder)))
    assert capsys.readouterr().out == SAYS + "\n"  # what came before is answered
    argument = data.decode("utf-8", "surrogateescape")
    with pytest.raises(UsageError, match="the prompt is not UTF-8 text"):
        generate.run(parse("generate", str(folder), argument))
    with pytest.raises(UsageError, match="the system message is not UTF-8 text"):
        chat.run(parse("chat", str(folder), "--system", argument))
    with pytest.raises(UsageError, match="--stop is not UTF-8 text"):
        generate.run(parse("generate", str(folder), "x", "--stop", argument))
    (folder / "t.jinja").write_bytes(data)
    with pytest.raises(UsageError, match="the chat template.*is not UTF-8 text"):
        chat.run(parse("chat", str(folder), "--template", str(folder / "t.jinja")))


def test_an_argument_s_bytes_count_in_a_locale_without_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    in_c = "d\udcc3\udca9j\udcc3\udca0"  # what Python hands over for "déjà" under LC_ALL=C without coercion
    assert generate.read_prompt(in_c, None) == "déjà"


def test_a_closed_standard_input_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "chat_template.jinja").write_text(QWEN2, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", None)
    for command in (generate, chat):
        with pytest.raises(UsageError, match="standard input is closed"):
            command.run(parse(command.__name__.rpartition(".")[2], str(folder)))
    with pytest.raises(UsageError, match="no message came"):
        conversation(folder, "", monkeypatch)
    assert conversation(folder, "\n", monkeypatch) == 0
    args = parse("generate", str(folder), "x")
    assert args.run(args) == 0  # a prompt that is given needs no input


@pytest.mark.parametrize("where", ["message", "template", "tokenizer_config"])
def test_half_a_character_in_a_conversation_is_an_error(
    where: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.jinja").write_text(
        "[{{ messages[-1].content }}" + ("{{ '\\ud800' }}]" if where == "template" else "]")
    )
    if where == "tokenizer_config":
        write_folder(folder, byte_level(), chat_template="[\udc00]")
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*half a character"):
            conversation(folder, "x\n", monkeypatch)
        return
    said = "\ud83d" if where == "message" else "x"
    with pytest.raises(TemplateError, match="half a character"):
        conversation(folder, f"{said}\n", monkeypatch, "--template", str(folder / "t.jinja"))
