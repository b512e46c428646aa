"""`isobit bench`: how fast a model is on this machine, beside what the plan says; kept for later plans."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, output
from isobit.cli.parser import add_cache_argument, add_device_arguments, add_memory_argument, numbers, path

if TYPE_CHECKING:
    from isobit.evaluation.benched import Bench, Figure

EPILOG = """examples:
  isobit bench ./model-int4
  isobit bench ./model-fp8 --device cuda --batch 1,8,64,256 --context 4000
  isobit plan ./model-int4                  # on this machine it now says what was measured

Answers are made as the engine makes them for everybody, greedily and to the end. A step counts when every sequence gets
a token in it. "bandwidth" is bytes that a step reads, as the plan counts them, over what memory gives in the same time
and run when it does nothing else; "host" is the time of a step in which nobody waits for the model; "first" the time to
the first token; figures are medians.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "bench",
        help="how fast a model is on this machine, beside what the plan says; later plans use it",
        description="Measure how fast a model decodes and reads prompts on this machine, compare it with what the plan "
        "predicts, and keep it, so that later plans for this machine use what was measured.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a local folder, a GGUF file, a Hugging Face id, or `bundled`")
    add_device_arguments(parser, "what runs it (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="what is computed in")
    parser.add_argument(
        "--batch", metavar="NUMBERS", type=numbers, help="sequences at once (default: 1,8; with a GPU 1,8,64)"
    )
    parser.add_argument("--prompt", type=int, metavar="N", default=64, help="tokens of each prompt (default: 64)")
    parser.add_argument(
        "--new", type=int, metavar="N", help="tokens of each answer (default: 32 on a CPU, 128 on a GPU)"
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="also decode one sequence behind so many tokens (default: do not)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", default=3, help="repetitions of each case (default: 3)")
    add_cache_argument(parser)
    add_memory_argument(parser)
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--calibration", type=path, metavar="FILE", help="keep it here instead of in isobit's own file")
    kept.add_argument("--no-store", action="store_true", help="keep nothing: later plans predict as before")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--out", type=path, metavar="FILE", help="write the JSON to this file, too")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, keep, print."""
    from isobit import api
    from isobit.models import calibration

    if args.calibration is not None and not args.no_store:
        calibration.require_own(args.calibration)

    found = api.bench(
        args.model,
        device=args.device,
        target=args.target,
        dtype=args.dtype,
        batches=args.batch,
        prompt=args.prompt,
        new=args.new,
        context=args.context,
        rounds=args.rounds,
        kv_cache=args.kv_cache,
        memory=args.memory,
        revision=args.revision,
        progress=None if args.quiet else _progress,
    )
    notes.show(found.notes)
    kept = None
    if not args.no_store and found.measurements:
        kept = args.calibration or calibration.usual_path()
        if kept is not None:
            calibration.store(kept, found.measurements)
    document = as_json(found, kept)
    if args.out is not None:
        _write(args.out, document)
    if args.json:
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        output.write("\n".join(lines(found, kept, stores=not args.no_store)))
    return 0


def _write(file: Path, document: dict[str, Any]) -> None:
    from isobit.errors import UsageError

    try:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {file}: it cannot be written: {error.strerror or error}; name another file") from None


def _progress(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr, flush=True)


_HEADER = ("sequences", "behind", "tok/s", "ms/step", "bandwidth", "host ms", "first ms", "planned", "of planned")


def lines(found: Bench, kept: Path | None, stores: bool) -> list[str]:
    """What was measured, and what is kept of it and why not more, where something was to be: for people."""
    threads = f", {found.threads} thread{'s' if found.threads > 1 else ''}" if found.threads else ""
    said = [
        f"{found.model}: {found.title}",
        f"{found.hardware}; lowering {found.target}, activations {found.dtype}{threads}",
        f"linears: {found.kernels[0]}; layers: {found.kernels[1]}",
        f"memory gives {found.bandwidth / 1e9:.1f} GB/s when nothing else is done",
        "",
    ]
    decoding = [one for one in found.figures if one.phase == "decode"]
    rows = [_HEADER, *map(_row, decoding)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADER))]
    said += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    said.append("")
    for one in found.figures:
        if one.phase == "prefill":
            said.append(
                f"a prompt of {one.measured.case.prompt} tokens: {one.speed:.0f} tok/s, first token after"
                f" {1e3 * one.measured.first_token:.1f} ms; planned {_figure(one.predicted, '.0f')} tok/s"
                f" ({_figure(_ratio(one), '.2f')} of it)"
            )
    said.append("")
    if kept is not None:
        said.append(f"kept in {kept}: {_what_is_kept(found)}; plans for this machine use it from now on")
    if stores:
        said += [f"not kept: {reason}" for reason in found.unkept]
    return said if said[-1] else said[:-1]


def _what_is_kept(found: Bench) -> str:
    count = len(found.measurements)
    cases = f"{count} case{'s' if count > 1 else ''}"
    last = found.measurements[-1]
    if not (found.estimated and last.steady):
        return cases
    return f"{cases} and, for other models, too, the memory's bandwidth of {last.bandwidth / 1e9:.1f} GB/s"


def _row(one: Figure) -> tuple[str, ...]:
    measured = one.measured
    return (
        str(measured.case.batch),
        str(measured.case.prompt),
        f"{one.speed:.1f}",
        f"{1e3 * measured.step:.3f}",
        _figure(one.share, ".0%"),
        _figure(None if measured.host is None else 1e3 * measured.host, ".3f"),
        f"{1e3 * measured.first_token:.1f}",
        _figure(one.predicted, ".1f"),
        _figure(_ratio(one), ".2f"),
    )


def _ratio(one: Figure) -> float | None:
    return one.speed / one.predicted if one.predicted else None


def _figure(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def as_json(found: Bench, kept: Path | None) -> dict[str, Any]:
    """The same for programs: seconds, tokens and bytes per second."""
    return {
        "model": found.model,
        "title": found.title,
        "hardware": found.hardware,
        "target": found.target,
        "dtype": found.dtype,
        "threads": found.threads or None,
        "linears": found.kernels[0],
        "layers": found.kernels[1],
        "bandwidth_bytes_per_second": found.bandwidth,
        "cases": [
            {
                "phase": one.phase,
                "sequences": one.measured.case.batch,
                "prompt_tokens": one.measured.case.prompt,
                "new_tokens": one.measured.case.new,
                "tokens_per_second": one.speed,
                "step_seconds": one.measured.step,
                "host_seconds": one.measured.host,
                "first_token_seconds": one.measured.first_token,
                "prefill_tokens_per_second": one.measured.prefill,
                "all_tokens_per_second": one.measured.whole,
                "share_of_bandwidth": one.share,
                "bandwidth_bytes_per_second": one.measured.bandwidth,
                "planned_tokens_per_second": one.predicted,
                "of_planned": _ratio(one),
                "rounds": len(one.measured.rounds),
                "not_kept": one.doubt,
            }
            for one in found.figures
        ],
        "kept_in": None if kept is None else str(kept),
        "not_kept": list(found.unkept),
        "notes": list(found.notes),
    }
