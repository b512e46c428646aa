"""The command line: finds the command, runs it, and turns isobit's own errors into one clear message."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from isobit.cli import openmp
from isobit.errors import IsobitError
from isobit.targets.cores import cores
from isobit.version import __version__

# One module per command, in the order a newcomer needs them. Each has `register(subparsers)` and `run(args) -> int`,
# and imports torch only inside `run`, so that `isobit --help` answers at once.
COMMANDS = ("quantize", "generate", "chat", "evaluate", "info", "demo", "doctor", "compile", "plan")

_WITHOUT_TORCH = ("isobit.cli.doctor", "isobit.cli.plan")  # these report what the environment says, and compute nothing

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of `isobit`, with every command registered."""
    parser = argparse.ArgumentParser(
        prog="isobit",
        description="Quantize large language models to few-bit formats, run them with the same numerics everywhere, "
        "and measure what was lost.",
        epilog="Start with `isobit demo`. A MODEL is a local folder, a Hugging Face id, or `bundled`.",
    )
    parser.add_argument("--version", action="version", version=f"isobit {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"isobit.cli.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process if None.

    Returns:
        The exit status: 0 on success, 2 on an error that isobit understands, 130 when interrupted.
    """
    args = build_parser().parse_args(argv)
    if argv is None and args.run.__module__ not in _WITHOUT_TORCH:
        os.environ.update(openmp.settings(os.environ, cores()))
    try:
        return int(args.run(args))
    except IsobitError as error:
        print(f"isobit: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("\nisobit: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: that is its right, and not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
