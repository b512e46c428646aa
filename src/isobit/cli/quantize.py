"""`isobit quantize`: write a quantized checkpoint in the compressed-tensors layout."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.cli import output
from isobit.cli.parser import SIZES, add_device_arguments, byte_size, path
from isobit.errors import UsageError
from isobit.formats.schemes import SCHEMES

if TYPE_CHECKING:
    from isobit.quantizer.driver import Prediction
    from isobit.quantizer.report import QuantizeReport

EPILOG = """schemes:
{schemes}
  Group sizes can be named: int4-g64, int3-g32. Other tools' names are accepted too: FP8_DYNAMIC, W4A16, q4f16_1, ...

examples:
  isobit quantize bundled --scheme int4
  isobit quantize meta-llama/Llama-2-7b-chat-hf --scheme fp8 --out llama-fp8
  isobit quantize ./model --scheme int4 --rule 'layers\\.(0|31)\\.=fp8' --rule 'down_proj=keep'

Interrupted? Run the same command again: it goes on where it stopped, and the result is the same, byte for byte.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    width = max(len(name) for name in SCHEMES)
    rows = "\n".join(f"  {name:<{width}}  {row.note}" for name, row in SCHEMES.items())
    parser = subparsers.add_parser(
        "quantize",
        help="write a quantized checkpoint, and say which other engines load it",
        description="Quantize a checkpoint tensor by tensor, in bounded memory.",
        epilog=EPILOG.format(schemes=rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a local folder, a GGUF file, a Hugging Face id, or `bundled`")
    parser.add_argument("-s", "--scheme", required=True, help="the scheme of the linear layers, e.g. fp8, int8, int4")
    parser.add_argument("-o", "--out", type=path, help="the folder to write (default: MODEL's name and the scheme's)")
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="REGEX=SCHEME",
        help="modules whose name matches get this scheme, or `keep` to leave them as they are; the first match wins. "
        "lm_head, embeddings and routers are kept unless a rule names them; norms are always kept",
    )
    parser.add_argument(
        "--allow-mixed-fused",
        action="store_true",
        help="let rules give different schemes to layers that engines fuse (q, k and v; gate and up): isobit and "
        "transformers compute what is stored, vLLM refuses it or, worse, computes garbage",
    )
    parser.add_argument(
        "--from-quantized",
        action="store_true",
        help="take a model that is quantized already (GGUF, GPTQ, another scheme) as the numbers it stands for: both "
        "errors add up",
    )
    parser.add_argument(
        "--search", choices=("absmax", "mse"), help="how scales are chosen (default: absmax for 8 bits, mse below)"
    )
    parser.add_argument(
        "--calibration",
        type=path,
        metavar="FILE",
        help="text to calibrate static activation scales on (fp8-static, nvfp4; default: the bundled held-out Python "
        "code)",
    )
    add_device_arguments(parser, "what runs the model to calibrate (default: cpu); all else is computed on the CPU")
    parser.add_argument(
        "--max-shard-size",
        type=byte_size,
        default=None,
        metavar="SIZE",
        help=f"largest weight file, e.g. 5GB (the default); {SIZES}",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to use (default: every core this process may use)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT if it is a finished checkpoint of isobit's"
    )
    parser.add_argument(
        "--no-resume", dest="resume", action="store_false", help="start over instead of going on after an interruption"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)
    parser.hint = "the folder to write is named by -o or --out"


def run(args: argparse.Namespace) -> int:
    """Quantize, then print what was done."""
    from isobit import api

    rules = [parse_rule(text) for text in args.rule]
    arguments.optional_whole("threads", args.threads, 1, api.MOST_THREADS)  # a prediction uses none
    job: dict[str, Any] = {
        "rules": rules,
        "allow_mixed_fused": args.allow_mixed_fused,
        "from_quantized": args.from_quantized,
        "search": args.search,
        "calibration": args.calibration,
        "device": args.device,
        "target": args.target,
        "max_shard_bytes": args.max_shard_size or api.DEFAULT_SHARD_BYTES,
        "revision": args.revision,
    }
    if args.dry_run:
        prediction = api.predict(args.model, args.out, args.scheme, **job)
        if args.json:
            print(json.dumps(asdict(prediction), indent=2))
        else:
            output.write(foresight(prediction))
        return 0
    report = api.quantize(
        args.model,
        args.out,
        args.scheme,
        **job,
        threads=args.threads,
        overwrite=args.overwrite,
        resume=args.resume,
        progress=not args.quiet,
    )
    if args.json:
        json.dump(asdict(report), sys.stdout, indent=2, default=str)
        print()
    else:
        output.write(summary(report, args.model, notes=args.quiet))  # else they were said when it began
    return 0


def parse_rule(text: str) -> tuple[str, str]:
    """Split ``REGEX=SCHEME``; the scheme stands after the last equals sign.

    Raises:
        UsageError: when there is no equals sign or a side is empty.
    """
    pattern, separator, action = text.rpartition("=")
    if not separator or not pattern or not action:
        raise UsageError(f"--rule {text!r}: expected REGEX=SCHEME or REGEX=keep, e.g. 'down_proj=keep'")
    return pattern, action


def foresight(prediction: Prediction) -> str:
    """What would be written, in a few lines of plain text."""
    from isobit.quantizer.progress import format_bytes

    sizes = f"{format_bytes(prediction.source_bytes)} -> {format_bytes(prediction.output_bytes)}"
    lines = [
        f"{prediction.scheme}: {prediction.quantized} of {prediction.tensors} tensors would be quantized",
        f"  size      {sizes}",
    ]
    if prediction.bits_per_weight is not None:
        lines.append(f"  weights   {prediction.bits_per_weight:.3f} bits each")
    lines.append(f"  runs on   {', '.join(prediction.kernels)} (this machine)")
    return "\n".join(lines + [f"  note      {note}" for note in prediction.notes])


def summary(report: QuantizeReport, source: str, *, notes: bool = True) -> str:
    """The report in a few lines of plain text; the last one can be run as it is, with the ``source`` that was given."""
    from isobit.checkpoint.text.fast import has_tokenizer
    from isobit.quantizer.progress import format_bytes, format_seconds

    quantized = sum(module.quantized for module in report.modules)
    lines = [
        f"{report.out}: {report.scheme}, {quantized} of {len(report.modules)} tensors quantized",
        f"  size      {format_bytes(report.source_bytes)} -> {format_bytes(report.output_bytes)}",
    ]
    if report.bits_per_weight is not None and report.relative_squared_error is not None:
        error = f"relative squared error {report.relative_squared_error:.3g}"
        lines.append(f"  weights   {report.bits_per_weight:.3f} bits each, {error}")
    speed = f", {format_bytes(report.bytes_read / report.seconds)}/s" if report.seconds > 0 else ""
    lines.append(f"  took      {format_seconds(report.seconds)}{speed}")
    if report.resumed_from:
        lines.append(f"  resumed   {report.resumed_from} tensors had been done before the interruption")
    lines += [f"  note      {note}" for note in report.notes if notes]
    out = shlex.quote(report.out)
    if not has_tokenizer(Path(report.out)):  # of a file by itself, or a folder that came without
        return "\n".join(
            [*lines, f"Next: isobit plan {out}; with a tokenizer.json in it, isobit eval and isobit generate"]
        )
    lines.append(f"Next: isobit eval {out} --against {shlex.quote(source)}, or isobit generate {out} 'a prompt'")
    return "\n".join(lines)
