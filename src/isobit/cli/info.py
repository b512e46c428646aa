"""`isobit info`: what is in a checkpoint, from its headers alone."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from isobit.cli import output


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "info",
        help="what is in a checkpoint: schemes, bytes, bits per weight",
        description="Describe a checkpoint, quantized or not, by any tool. Reads headers, scales that are"
        " tensors of their own, and the first 256 MiB of all else, where NaN and infinity are looked for; loads no"
        " weights.",
    )
    parser.add_argument("model", metavar="MODEL", help="a local folder, a GGUF file, a Hugging Face id, or `bundled`")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    from isobit import api

    found = api.info(args.model, revision=args.revision)
    if args.json:
        shown = asdict(found)
        if not args.tensors:
            del shown["tensors"]
        json.dump(shown, sys.stdout, indent=2)
        print()
    else:
        from isobit.evaluation import info

        output.write(info.text(found, tensors=args.tensors))
    return 0
