"""The argument parser, whose errors are printable and bounded as all of isobit's are."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from isobit import arguments
from isobit.errors import UsageError, printable
from isobit.formats.caches import CACHE_FORMATS

SIZES = "GiB or G are 1024 MiB, GB 1000 MB, and so on; without a unit bytes"  # for --help
_NARROW = (name for name in CACHE_FORMATS if name != "auto")
CACHE_NAMES = f"auto (default: as activations), {', '.join(_NARROW)}"  # for --help


def path(text: str) -> Path:
    """The type of options that name a file or a folder: one that can be."""
    try:
        return Path(arguments.path("it", text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_device_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """--device and --target; ``what`` says what a device does in this command."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=what)
    parser.add_argument(
        "--target", metavar="TARGET", help="whose lowering runs on a GPU, e.g. sm_86 (default: the GPU's own)"
    )


def add_cache_argument(parser: argparse.ArgumentParser, of: str = "", more: str = "") -> None:
    """--kv-cache; ``of`` says whose, and ``more`` what follows from it in this command."""
    parser.add_argument(
        "--kv-cache",
        default="auto",
        metavar="FORMAT",
        help=f"what keys and values{of} are stored as: {CACHE_NAMES}{more}",
    )


def add_memory_argument(
    parser: argparse.ArgumentParser, what: str = "the model and its cache", default: str = "what is free"
) -> None:
    """--memory; ``what`` may take so much, and ``default`` where nothing is said."""
    parser.add_argument(
        "--memory",
        type=memory_size,
        metavar="SIZE",
        help=f"what of the device {what} may take, e.g. 20GiB (default: {default}); {SIZES}",
    )


def memory_size(text: str) -> int | None:
    """Bytes that a model may take, with a unit or without."""
    try:
        return arguments.optional_memory("it", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str) -> list[int]:
    """Whole numbers, comma-separated."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no list of numbers like 1,8,64") from None


def byte_size(text: str) -> int:
    """Bytes of an option, with a unit or without."""
    try:
        return arguments.size("it", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_batch_invariant_argument(parser: argparse.ArgumentParser) -> None:
    """--batch-invariant."""
    parser.add_argument(
        "--batch-invariant",
        action="store_true",
        help="the same bits whatever is computed beside an answer (docs/numerics.md, section 10)",
    )


class Parser(argparse.ArgumentParser):
    """Those of the commands are made of this class, too.

    Attributes:
        hint: what an argument that has no place here may have been meant as.
    """

    hint = ""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; what none of them is for is told of by the command that was named."""
        found, left = self.parse_known_args(args, namespace)
        if left:
            self._named(found).refuse(left)
        return found

    def _named(self, found: argparse.Namespace) -> Parser:
        """The parser of the command that was named; this one where there is none."""
        groups = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        rows = [row for group in groups for row in group.choices.values()]
        return next((row for row in rows if row.get_default("run") is getattr(found, "run", None)), self)

    def refuse(self, left: list[str]) -> NoReturn:
        """Say which arguments have no place here, what may have been meant, and what there is."""
        option = next((one for one in left if one.startswith("-") and one != "-"), None)
        if option is None:
            takes = " ".join(str(one.metavar or one.dest) for one in self._get_positional_actions())
            meant = self.hint or f"{self.prog} takes {takes or 'no names'}, and options"
        else:
            names = {one.lstrip("-"): one for one in self._option_string_actions}
            given = option.partition("=")[0].lstrip("-")
            near = [name for name in names if len(name) > 2 and given.startswith(name)]
            near += get_close_matches(given, names, 1, 0.7)
            meant = f"did you mean {names[near[0]]}?" if near else "--help lists its options"
        self.error(f"unrecognized arguments: {' '.join(left)}; {meant}")

    def error(self, message: str) -> NoReturn:
        """Say what cannot be used, under the usage, and exit with status 2."""
        super().error(printable(message))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """``--option=--`` gives the option the text ``--``, which Python 3.11 would drop and give it a list."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)
