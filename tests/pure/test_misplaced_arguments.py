"""Arguments that have no place where they stand: the command that was named says what may have been meant."""

from __future__ import annotations

import json

import pytest

from isobit.cli.main import COMMANDS, build_parser, main
from isobit.cli.parser import Parser


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "quantize bundled out -s int4",
            "isobit quantize: error: unrecognized arguments: out; the folder to write is named",
        ),
        ("quantize bundled -s int4 --output x", "unrecognized arguments: --output x; did you mean --out?"),
        ("generate bundled def fib", "unrecognized arguments: fib; a prompt of several words stands in quotes"),
        ("chat bundled hello", "isobit generate takes a prompt"),
        ("speak --model m --voice v -o f a b", "a text of several words stands in quotes"),
        ("plan bundled int4", "targets and schemes are named by --target and --scheme"),
        ("plan bundled --batches 3", "did you mean --batch?"),
        ("certify a b --against c", "the source is named by --against"),
        ("compile a b", "what is written is named by -o"),
        ("serve a b", "isobit serve takes MODEL, and options"),
        ("info a b", "isobit info takes MODEL, and options"),
        ("bench a b", "isobit bench takes MODEL, and options"),
        ("demo a", "isobit demo takes no names, and options"),
        ("doctor a", "isobit doctor takes no names, and options"),
        ("transcribe a --x", "--help lists its options"),
        ("eval a --x=1", "unrecognized arguments: --x=1; --help lists its options"),
    ],
)
def test_the_command_says_what_may_have_been_meant(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(words.split(), capsys)
    assert said in " ".join(told.split()) and told.startswith(f"usage: isobit {words.split()[0]} ")


def test_every_command_with_sizes_takes_the_same_units_and_says_so() -> None:
    (commands,) = (one for one in build_parser()._actions if one.choices and not one.option_strings)
    assert isinstance(commands.choices, dict) and len(commands.choices) == len(COMMANDS)
    sizes = [(name, one) for name, row in commands.choices.items() for one in row._actions if one.metavar == "SIZE"]
    assert {name for name, _ in sizes} >= {"quantize", "generate", "chat", "serve", "eval", "plan", "bench"}
    for name, one in sizes:
        assert callable(one.type), name
        given = ("20G", "20GiB", "20gib", "20GB", "512M", "1.5T", "2147483648")
        assert [one.type(text) for text in given] == [
            20 << 30, 20 << 30, 20 << 30, 20 * 10**9, 512 << 20, 3 << 39, 1 << 31
        ]  # fmt: skip
        assert "GiB or G are" in str(one.help), (name, one.option_strings)


def test_a_plan_for_each_of_several_batches(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "bundled", "--target", "a6000", "--scheme", "int8"]
    assert main([*words, "--batch", "8,64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plans"]
    assert [one["batch"] for one in found] == [8, 64]
    assert main([*words, "--batch", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"] == found[1:]
    assert main([*words, "--batch", "8,64"]) == 0
    said = capsys.readouterr().out
    assert "for 8 sequences of 1024 tokens" in said and "for 64 sequences of 1024 tokens" in said
    assert main(["plan", "bundled", "--target", "all", "--scheme", "int8", "--batch", "8,64"]) == 0
    assert "For 64 sequences of 1024 tokens:" in capsys.readouterr().out
    assert "is no list of numbers like 1,8,64" in refused([*words, "--batch", "many"], capsys)


def test_parsers_of_commands_are_ours() -> None:
    assert isinstance(build_parser(), Parser)
