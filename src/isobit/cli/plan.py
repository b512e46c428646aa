"""`isobit plan`: what will happen on a machine, present or absent, before anything is downloaded."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from isobit.cli import notes, output
from isobit.cli.parser import CACHE_NAMES, add_memory_argument, numbers, path


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "plan",
        help="what runs where, how, in how much memory and how fast; needs a config.json only",
        description="Plan a model for machines that need not be here: for every scheme and target whether it runs "
        "natively, legalized (widened exactly in registers), relaxed or not at all, with the reason, the memory, the "
        "predicted speed, and what to use. Needs a config.json and nothing else: no weights, no GPU.",
        epilog="Example: isobit plan config.json --target a6000 --scheme fp8,fp8-e5m2,f16,int8,int4",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a config.json, a folder with one, a GGUF file, a Hugging Face id, or `bundled`"
    )
    parser.add_argument(
        "--target",
        metavar="NAMES",
        default="here",
        help="targets and boards, comma-separated: sm_86, a6000, gfx942, cpu-avx2, ...; `all`; `here` (default)",
    )
    parser.add_argument(
        "--scheme",
        metavar="NAMES",
        help="schemes, comma-separated, `as stored`, or `all` (default: what the checkpoint holds if it is quantized,"
        " else all)",
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens of a sequence (default: 4096 or the longest)")
    parser.add_argument(
        "--batch",
        type=numbers,
        metavar="NUMBERS",
        default=[1],
        help="sequences at once, a plan for each, e.g. 1,64 (default: 1)",
    )
    parser.add_argument(
        "--kv-cache",
        "--kv",
        dest="kv",
        metavar="FORMAT",
        help=f"what keys and values are stored as: {CACHE_NAMES}",
    )
    parser.add_argument(
        "--allow",
        choices=("relaxed",),
        help="relaxed: where nothing else works, drop the rounding of activations (other results than those evaluated)",
    )
    add_memory_argument(parser, "a model and its cache", "all of it")
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument(
        "--calibration", type=path, metavar="FILE", help="where `isobit bench` left what it measured (default: its own)"
    )
    measured.add_argument(
        "--no-calibration", action="store_true", help="predict for this machine, too, and use nothing that was measured"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="every op, and where the figures come from")
    parser.set_defaults(run=run)
    parser.hint = "targets and schemes are named by --target and --scheme, several of them comma-separated"


def run(args: argparse.Namespace) -> int:
    """Print the plans; the status is 0 whatever they say."""
    from isobit import api
    from isobit.errors import UsageError
    from isobit.formats.schemes import SCHEMES
    from isobit.kernels.cpu import library as cpu_library
    from isobit.legalize import text

    schemes = [] if args.scheme is None else _names(args.scheme)
    if args.scheme is not None and not schemes:
        raise UsageError(f"--scheme names no scheme: say all, or some of {', '.join(SCHEMES)}")
    each = [
        api.plan(
            args.model,
            targets=_names(args.target),
            schemes=schemes,
            context=args.context,
            batch=batch,
            kv=args.kv,
            allow_relaxed=args.allow == "relaxed",
            memory=args.memory,
            revision=args.revision,
            calibration=args.calibration or not args.no_calibration,
        )
        for batch in dict.fromkeys(args.batch)
    ]
    work = each[0][0]
    if "here" in _names(args.target) and (problem := cpu_library.problem()):
        print(f"isobit: note: plans of this machine's CPU are those of the CPU kernels; but {problem}", file=sys.stderr)
    notes.show(work.notes)
    if args.json:
        model = {
            "title": work.title,
            "parameters": work.parameters,
            "max_context": work.max_context,
            "notes": work.notes,
        }
        machines = [text.as_data(plan) for _, found in each for plans in found for plan in plans]
        json.dump({"model": model, "plans": machines}, sys.stdout, indent=2)
        print()
        return 0
    output.write(f"{work.title}, context up to {work.max_context} tokens\n")
    lines = []
    for _, found in each:
        if len(found) > 2 and not args.verbose:
            lines += [f"For {text.asked(found[0][0])}:", ""] if len(each) > 1 else []
            lines += [*text.overview(found), ""]
        else:
            lines += [line for plans in found for line in (*text.describe(plans, verbose=args.verbose), "")]
    output.write("\n".join([*lines, *text.legend()]))
    return 0


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]
