"""What an error's text may be: printable and bounded, whatever was put into it."""

from __future__ import annotations

import pickle

import pytest

from isobit import errors
from isobit.errors import LONGEST_MESSAGE, CheckpointError, IsobitError, Unsupported, printable


def kinds() -> list[type[IsobitError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IsobitError)]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain é ü 漢字 🙂", "plain é ü 漢字 🙂"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\tc\x00d\x7fe\x9bf", r"a\rb\tc\x00d\x7fe\x9bf"),
        ("left\u202eright\u2066\u200b", r"left\u202eright\u2066\u200b"),
        ("half \ud800 and \udcff of a pair", r"half \ud800 and \udcff of a pair"),
        ("name\nisobit: error: forged", r"name\nisobit: error: forged"),
        ("problems:\n  - one\n  - two", "problems:\n  - one\n  - two"),
        ("a backslash \\x1b stays", "a backslash \\x1b stays"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(given: str, shown: str) -> None:
    assert printable(given) == shown
    assert printable(shown) == shown  # once is enough
    shown.encode("utf-8")


@pytest.mark.parametrize("unit", ["x", "x ", "\x1b", "\U000e0001", "\n", "\n  - x", "\ud800"])
def test_what_is_long_loses_its_middle_and_keeps_the_advice(unit: str) -> None:
    shown = str(IsobitError(f"the tensor {unit * 3_000_000} is wrong: do this instead"))
    assert len(shown) <= LONGEST_MESSAGE
    assert shown.startswith("the tensor ") and "characters left out" in shown
    assert shown.endswith(" is wrong: do this instead")
    assert len(printable(unit * 1000, 90)) <= 90


def test_every_kind_of_error_is_bounded_and_printable() -> None:
    hostile = "\x1b]0;owned\x07" + "w" * 200_000
    for kind in kinds():
        error = kind(hostile, [hostile, hostile]) if kind is Unsupported else kind(hostile)
        assert len(str(error)) <= LONGEST_MESSAGE and "\x1b" not in str(error), kind
    placed = CheckpointError("damaged", file=f"{hostile}.safetensors", tensor=hostile)
    assert str(placed).endswith(": damaged") and "\x1b" not in str(placed) and len(str(placed)) <= LONGEST_MESSAGE
    assert placed.tensor == hostile  # as it is: for the program, not for the screen


def test_errors_survive_the_way_between_processes() -> None:
    error = CheckpointError("damaged", file="a\nb", tensor="t")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == r"a\nb: tensor 't': damaged"
