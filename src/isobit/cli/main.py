"""The command line: finds the command, runs it, and turns errors into one clear message and a status.

    0    done (also when whoever read the output has stopped reading)
    1    `isobit compile`: a claim does not hold; `isobit certify --check`: a figure differs
    2    an error that isobit understands: bad input, an unusable option, too little memory, a full disk
    70   a bug in isobit
    130  interrupted (Ctrl-C)
    143  terminated (SIGTERM)

Nothing heavy is imported here before `main` has taken the signals, so that Ctrl-C has its answer from the start.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

# One module per command, in the order a newcomer needs them. Each has `register(subparsers)` and `run(args) -> int`,
# and imports torch only inside `run`, so that `isobit --help` answers at once.
COMMANDS = (
    "quantize", "generate", "chat", "speak", "transcribe", "serve", "evaluate", "certify", "info", "demo", "doctor",
    "compile", "plan", "bench",
)  # fmt: skip

_MODULE_OF = {("eval" if module == "evaluate" else module): module for module in COMMANDS}  # by what people type

_WITHOUT_TORCH = ("isobit.cli.doctor", "isobit.cli.plan")  # these report what the environment says, and compute nothing

EXIT_ERROR = 2
EXIT_BUG = 70
TRACEBACK = "ISOBIT_TRACEBACK"


def build_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The argument parser of `isobit`.

    Args:
        name: of the one command to register, as people type it, without the modules of others; None for all of them,
            and all of them where no command is called so.
    """
    import importlib

    from isobit.cli.parser import Parser
    from isobit.version import __version__

    parser = Parser(
        prog="isobit",
        description="Quantize large language models to few-bit formats, run them with the same numerics everywhere, "
        "and measure what was lost.",
        epilog="Start with `isobit demo`. A MODEL is a local folder, a GGUF file, a Hugging Face id, or `bundled`.",
    )
    parser.add_argument("--version", action="version", version=f"isobit {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    only = _MODULE_OF.get(name) if name else None
    for module in COMMANDS if only is None else (only,):
        importlib.import_module(f"isobit.cli.{module}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process if None. Given, the caller's signals,
            streams and environment are left alone, and a bug in isobit is raised.

    Returns:
        The exit status, as listed above.
    """
    if argv is not None:
        return _guarded(argv)
    from isobit.cli import signals

    signals.take()
    try:
        import isobit.cli.failures  # noqa: F401  (now, and not when memory is short)
        from isobit.cli import streams

        problem = streams.prepare()
        return _guarded(None) if problem is None else _fail(problem)
    except (KeyboardInterrupt, signals.Terminated) as error:  # between two lines of ours
        return signals.INTERRUPTED if isinstance(error, KeyboardInterrupt) else signals.TERMINATED
    finally:
        signals.finish()


def _guarded(argv: Sequence[str] | None) -> int:
    try:
        try:
            return _command(argv)
        finally:
            sys.stdout.flush()  # here, where a full disk is an error, and not at the interpreter's end
    except BaseException as error:
        status = _status(error, of_the_process=argv is None)
        if status is None:
            raise
        return status


def _command(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(words[0] if words else None).parse_args(words)
    if argv is None and args.run.__module__ not in _WITHOUT_TORCH:
        from isobit.cli import early, openmp
        from isobit.shortage import require_address_space
        from isobit.targets.cores import cores

        found = cores()
        require_address_space(found.count)
        os.environ.update(openmp.settings(os.environ, found))
        early.open_card(args)
    return int(args.run(args))


def _status(error: BaseException, *, of_the_process: bool) -> int | None:
    """The exit status for what ended a command, which is said on stderr; None for what is to be raised."""
    from isobit.cli import failures, signals, streams
    from isobit.errors import IsobitError

    for cause in _causes(error):  # C code that runs Python can turn them into errors of its own
        if isinstance(cause, KeyboardInterrupt):
            return _ended(signals.INTERRUPTED)
        if isinstance(cause, signals.Terminated):
            return _ended(signals.TERMINATED)
    if isinstance(error, streams.ReaderGone | BrokenPipeError):
        return 0  # the reader of our output (`| head`) has gone: that is its right, and not an error of ours
    if isinstance(error, IsobitError):
        return _fail(error)
    if not isinstance(error, Exception):
        return None  # SystemExit, of the argument parser
    if (line := failures.explain(error)) is not None:
        return _fail(line)
    if not of_the_process or os.environ.get(TRACEBACK):
        return None
    name = type(error).__name__
    _fail(f"a bug in isobit: {name}: {error} (set {TRACEBACK}=1 to see where, and please report it)", "internal error")
    return EXIT_BUG


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _fail(reason: object, kind: str = "error") -> int:
    from isobit.errors import printable

    print(f"isobit: {kind}: {printable(reason)}", file=sys.stderr)
    return EXIT_ERROR


def _ended(status: int) -> int:
    from isobit.cli import signals

    print(("\n" if sys.stderr.isatty() else "") + f"isobit: {signals.WORDS[status]}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
