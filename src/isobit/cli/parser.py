"""The argument parser, whose errors are printable and bounded as all of isobit's are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from isobit import arguments
from isobit.errors import UsageError, printable
from isobit.formats.caches import CACHE_FORMATS

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
        help=f"what of the device {what} may take, e.g. 20GiB (default: {default})",
    )


def memory_size(text: str) -> int | None:
    """Bytes that a model may take, with a unit or without."""
    try:
        return arguments.optional_memory("it", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    """Those of the commands are made of this class, too."""

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
