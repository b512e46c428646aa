"""`isobit demo`: the whole story on a small model that comes with isobit, in about a minute."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import output
from isobit.cli.parser import path

if TYPE_CHECKING:
    from isobit.evaluation.demo import Demo
    from isobit.evaluation.results import CompletionResult


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="quantize the bundled model to several formats, run and measure each, and write a report",
        description="Quantize a small model that comes with isobit to several formats, measure what each loses on "
        "text that the model never saw, and write a report with plots.",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=path,
        default=Path("isobit-demo"),
        metavar="DIR",
        help="the folder to write (default: isobit-demo)",
    )
    parser.add_argument(
        "--schemes", metavar="A,B", help="the formats (default: bf16,fp8,fp8-e5m2,int8,int4,w4a8,int4-g32,int3)"
    )
    parser.add_argument(
        "--tokens", type=positive, metavar="N", help="about how many tokens to measure on (default: 8192)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table, its completions, and where to go next."""
    from isobit.evaluation import demo

    schemes = demo.SCHEMES if args.schemes is None else [name for name in args.schemes.split(",") if name.strip()]
    found = demo.run(args.out, schemes, tokens=args.tokens or demo.TOKENS, command=command_line(args))
    if args.json:
        json.dump(asdict(found.results), sys.stdout, indent=2)
        print()
    else:
        output.write(describe(found))
    return 0


def command_line(args: argparse.Namespace) -> str:
    """The command that does the same again."""
    parts = ["isobit", "demo", "--out", str(args.out)]
    for option in ("schemes", "tokens"):
        value = getattr(args, option)
        if value is not None:
            parts += [f"--{option}", str(value)]
    return shlex.join(parts)


def describe(found: Demo) -> str:
    """The table, the completions and the next step."""
    from isobit.evaluation import summary, wording

    results = found.results
    own = results.source.likelihood
    folder = found.folders[(summary.smallest_close(results) or summary.closest(results)).name]
    lines = [
        f"What each format keeps, on {own.tokens:,} tokens of {results.method.text}:",
        "",
        wording.table(wording.COLUMNS, wording.rows(results)),
        "",
        "KL: divergence of the next-token distribution from the source's, in nats; p99: 1 token in 100 has more.",
        *map(wording.wrap, filter(None, [wording.doubt(own.windows)])),
        "",
        "How fast each decodes, with one request:",
        "",
        wording.table(wording.SPEED_COLUMNS, wording.speed_rows(results)),
        "",
        wording.wrap(wording.speed_note(results)),
        "",
        wording.wrap(summary.summary(results)),
        *(line for completion in results.completions for line in describe_completion(completion)),
        "",
        f"report   {found.report}  (open it in a browser)",
        f"data     {found.data}",
        f"took     {found.seconds:.0f} s",
        "",
        "Next:",
        f"  isobit generate {shlex.quote(str(folder))} 'def fibonacci(n):'",
        f"  isobit eval {shlex.quote(str(folder))} --against bundled --text some_code.py",
        "  isobit quantize Qwen/Qwen3-0.6B --scheme int8",
    ]
    return "\n".join(lines)


def describe_completion(completion: CompletionResult) -> list[str]:
    """One completion under the name of the model that wrote it, indented."""
    text = completion.prompt + completion.text
    return ["", f"{completion.model} completes:", *(f"    {line}" for line in text.rstrip().splitlines())]
