"""`isobit certify`: what a checkpoint lost, kept beside its weights; or measured again."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, output
from isobit.cli.evaluate import command_line, show_progress
from isobit.cli.parser import add_cache_argument, add_device_arguments, add_memory_argument, path
from isobit.errors import UsageError

if TYPE_CHECKING:
    from isobit.evaluation.certify import Checked

EXIT_DIFFERS = 1

EPILOG = """examples:
  isobit certify bundled-int4 --against bundled
  isobit certify bundled-int4 --against bundled --check

The certificate (isobit_certificate.json) names the files that were measured by their SHA-256 and has a row for each
execution path: KL divergence, top-1 agreement and perplexity with their intervals, the text, the kernels, the versions.
Measuring by another device, --target or --kv-cache adds a row. --check hashes the files and measures every row again
that can be measured here; its status is 1 if one differs. `isobit info` and the page of `isobit serve` show it.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "certify",
        help="measure what a checkpoint lost and keep it beside its weights, or check that",
        description="Measure what a checkpoint lost against its source, and keep that beside its weights.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a local folder")
    parser.add_argument("--against", metavar="SOURCE", required=True, help="the model it was made from")
    parser.add_argument("--check", action="store_true", help="measure again what the certificate says")
    parser.add_argument(
        "--text", type=path, metavar="FILE", help="a UTF-8 text file or a folder of them (default: held-out code)"
    )
    parser.add_argument("--ctx", type=int, metavar="N", help="tokens per window (default: 512, or what can be read)")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens from one window to the next (default: --ctx)")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="about how many tokens to score; 0 for all (default: 32768)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the bootstrap (default: 0)")
    add_device_arguments(parser, "what runs the models (default: cpu)")
    add_cache_argument(parser, " of MODEL")
    add_memory_argument(parser, "each model")
    parser.add_argument(
        "--batch-invariant",
        action=argparse.BooleanOptionalAction,
        help="measure the same bits whatever is computed at once (default: yes where that can be had)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)
    parser.hint = "the source is named by --against"


def run(args: argparse.Namespace) -> int:
    """Measure and keep, or check."""
    return _check(args) if args.check else _certify(args)


def _certify(args: argparse.Namespace) -> int:
    from isobit import api
    from isobit.checkpoint.occupant import CERTIFICATE
    from isobit.evaluation import certificate

    made, row, said = api.certify(
        args.model,
        args.against,
        text=args.text,
        ctx=args.ctx,
        stride=args.stride,
        tokens=args.tokens,
        seed=args.seed or 0,
        device=args.device,
        target=args.target,
        kv_cache=args.kv_cache,
        batch_invariant=args.batch_invariant,
        memory=args.memory,
        command=command_line(args, "certify"),
        progress=None if args.quiet else show_progress,
    )
    notes.show(said)
    if args.json:
        json.dump(asdict(made), sys.stdout, indent=2, allow_nan=False)
        print()
        return 0
    rows = "1 row" if len(made.rows) == 1 else f"{len(made.rows)} rows"
    output.write(f"{certificate.line(row, made.source)}\n{CERTIFICATE}: {rows}")
    return 0


_SETTLED = ("ctx", "stride", "tokens", "seed", "target", "batch_invariant")


def _check(args: argparse.Namespace) -> int:
    given = [f"--{name.replace('_', '-')}" for name in _SETTLED if getattr(args, name) is not None]
    given += ["--device"] * (args.device != "cpu") + ["--kv-cache"] * (args.kv_cache != "auto")
    if given:
        raise UsageError(f"--check measures what the certificate says, as it says: leave out {', '.join(given)}")
    from isobit import api

    found, checked = api.check_certificate(
        args.model, args.against, text=args.text, memory=args.memory, progress=None if args.quiet else show_progress
    )
    if args.json:
        json.dump([asdict(one) for one in checked], sys.stdout, indent=2, allow_nan=False)
        print()
    else:
        output.write("\n".join(_line(one, found.source) for one in checked))
    return EXIT_DIFFERS if any(one.verdict == "differs" for one in checked) else 0


def _line(one: Checked, source: str) -> str:
    from isobit.evaluation import certificate

    said = {
        "same": "the same figures again",
        "within": f"within its intervals, by another path ({one.again.path if one.again else ''}): {one.why}",
        "differs": f"DIFFERS: {one.why}",
        "not measured": f"not measured: {one.why}",
    }
    return f"{certificate.line(one.row, source)}\n  {said[one.verdict]}"
