"""A command line registers the one command it names; whoever names none that there is hears of all."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from isobit.cli import main


def registered(parser: argparse.ArgumentParser) -> list[str]:
    [found] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(found.choices)


def test_each_command_is_registered_alone_by_the_name_people_type() -> None:
    every = registered(main.build_parser())
    assert len(every) == len(main.COMMANDS)
    assert [registered(main.build_parser(name)) for name in every] == [[name] for name in every]


@pytest.mark.parametrize("name", [None, "", "--version", "-h", "evaluate", "quantise"])
def test_all_are_registered_where_no_command_is_named(name: str | None) -> None:
    assert registered(main.build_parser(name)) == registered(main.build_parser())


def test_who_names_none_is_told_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["quantise"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(name in said for name in registered(main.build_parser()))


def test_no_other_command_is_imported() -> None:
    code = "import sys; from isobit.cli import main; main.build_parser('info'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in main.COMMANDS if f"isobit.cli.{name}" in done.stdout.split()} == {"info"}
