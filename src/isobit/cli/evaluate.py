"""`isobit eval`: perplexity of a model, and what it lost against its source."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, output
from isobit.cli.parser import add_cache_argument, add_device_arguments, path
from isobit.errors import UsageError
from isobit.formats.caches import AUTO, cache_format

if TYPE_CHECKING:
    from isobit.evaluation.measure import Evaluation

EPILOG = """examples:
  isobit eval bundled-int4 --against bundled
  isobit eval bundled-int4 --against bundled --text my.py --report report.html

Both models read the same windows of the text. KL is the divergence of the model's next-token distribution from its
source's, in nats per token: 0 means that nothing was lost. Intervals are 95 %, from how far whole windows of the text
lie apart; with fewer than 4 windows there are none. Figures hold for what ran the models: device, target and kernels
are printed with them.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "eval",
        help="perplexity, KL divergence and top-1 agreement of a model against its source",
        description="Measure how well a model predicts a text, and what it lost against the model it was made from.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a local folder, a Hugging Face id, or `bundled`")
    parser.add_argument("--against", metavar="SOURCE", help="the model it was made from; without it, perplexity alone")
    parser.add_argument(
        "--text",
        type=path,
        metavar="FILE",
        help="a UTF-8 text file or a folder of them (default: held-out Python code)",
    )
    parser.add_argument(
        "--ctx", type=int, metavar="N", help="tokens per window (default: 512, or what the model can read)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens from one window to the next (default: the context, no overlap)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=None,
        metavar="N",
        help="about how many tokens to score, spread over the text; 0 for all (default: 32768)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add_device_arguments(parser, "what runs both models (default: cpu)")
    add_cache_argument(
        parser, " of MODEL", "; without --against, MODEL is then compared with itself with a cache as activations"
    )
    parser.add_argument("--report", type=path, metavar="FILE.html", help="write a report with plots; needs --against")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the report if one was asked for."""
    if args.against is None and cache_format(args.kv_cache) != AUTO:
        args.against = args.model  # with a cache as activations
    if args.report is not None:
        check_report(args.report, args.against)
    from isobit import api

    found = api.evaluate(
        args.model,
        args.against,
        text=args.text,
        ctx=args.ctx,
        stride=args.stride,
        tokens=args.tokens,
        seed=args.seed,
        device=args.device,
        target=args.target,
        kv_cache=args.kv_cache,
        command=command_line(args),
        progress=None if args.quiet else show_progress,
    )
    if args.report is not None and found.results is not None:
        from isobit.evaluation import report

        report.write(found.results, args.report)
    notes.show(found.notes)
    if args.json:
        json.dump(as_json(found), sys.stdout, indent=2, allow_nan=False)
        print()
    else:
        output.write(summary(found, args.against))
        if args.report is not None:
            output.write(f"\nreport: {args.report}")
    return 0


def as_json(found: Evaluation) -> dict[str, Any]:
    """What was measured, as JSON."""
    errors = None if found.results is None else [_finite(e) for e in found.results.schemes[0].layer_errors]
    return {
        "model": found.model,
        "likelihood": asdict(found.likelihood),
        "fidelity": None if found.fidelity is None else asdict(found.fidelity),
        "layer_errors": errors,
        "method": asdict(found.method),
        "notes": found.notes,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: the error of a state is one where the source's is all zeros."""
    return value if math.isfinite(value) else None


def check_report(path: Path, against: str | None) -> None:
    """Refuse a report that can't be written before anything is measured.

    Raises:
        UsageError: there is no source to compare with, no folder to write into, or another file of that name.
    """
    if against is None:
        raise UsageError("--report compares a model with its source: give the source with --against")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--report {path}: the folder {path.absolute().parent} does not exist")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"--report {path}: this is a pipe or a device; name a file")
    if path.is_dir():
        raise UsageError(f"--report {path}: this is a folder; name a file, for example {path / 'report.html'}")
    if path.exists() and not _may_be_replaced(path):
        raise UsageError(f"--report {path}: this file is there and is no report; name another, or remove it")


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty or a page, such as a report of before: a model's own files are not written over."""
    try:
        with open(path, "rb") as file:
            start = file.read(15)
    except OSError:
        return True  # whether it can be written is said where it is
    return not start or start.lower() == b"<!doctype html>"


def command_line(args: argparse.Namespace) -> str:
    """The command that measures the same again."""
    parts = ["isobit", "eval", args.model]
    for option in ("against", "text", "ctx", "stride", "tokens"):
        value = getattr(args, option)
        if value is not None:
            parts += [f"--{option}", str(value)]
    if args.seed:
        parts += ["--seed", str(args.seed)]
    if args.device != "cpu":
        parts += ["--device", args.device]
    if args.target is not None:
        parts += ["--target", args.target]
    if cache_format(args.kv_cache) != AUTO:
        parts += ["--kv-cache", args.kv_cache]
    return shlex.join(parts)


def show_progress(done: int, total: int) -> None:
    """One line on stderr that counts windows; rewritten in place on a terminal, else at the end alone."""
    if sys.stderr.isatty():
        print(f"\rmeasuring: window {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total:
        print(f"measured {total} window{'s' if total > 1 else ''}", file=sys.stderr)


def summary(found: Evaluation, against: str | None) -> str:
    """What was measured, a line each, with intervals."""
    hint = "" if against is not None else "\n\nGive the model it was made from with --against to see what it lost."
    return f"{found}{hint}"
