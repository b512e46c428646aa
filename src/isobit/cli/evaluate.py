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
from isobit.cli.parser import add_cache_argument, add_device_arguments, add_memory_argument, path
from isobit.errors import UsageError
from isobit.formats.caches import AUTO, cache_format

if TYPE_CHECKING:
    from isobit.evaluation.comparison import Comparison
    from isobit.evaluation.measure import Evaluation
    from isobit.evaluation.tasks.evaluate import TaskComparison

EPILOG = """examples:
  isobit eval bundled-int4 --against bundled
  isobit eval bundled-int4 --against bundled --text my.py --report report.html
  isobit eval bundled-fp8 bundled-int8 bundled-int4 --against bundled --work results
  isobit eval bundled-int4 --against bundled --tasks hellaswag,arc_easy --limit 200

All models read the same windows of the text. KL is the divergence of a model's next-token distribution from its
source's, in nats per token: 0 means that nothing was lost. Intervals are 95 %, from how far whole windows of the text
lie apart; with fewer than 4 windows there are none. Figures hold for what ran the models: device, target and kernels
are printed with them. Tasks are those of lm-evaluation-harness (pip install 'isobit[harness]'); docs/evaluation.md has
the rules they are scored by.
"""


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "eval",
        help="perplexity, KL divergence, top-1 agreement and tasks of models against their source",
        description="Measure how well models predict a text or do tasks, and what they lost against their source.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="local folders, GGUF files, Hugging Face ids, or `bundled`; a row for each",
    )
    parser.add_argument(
        "--against", metavar="SOURCE", help="the model they were made from; without it, perplexity alone"
    )
    parser.add_argument(
        "--text",
        type=path,
        metavar="FILE",
        help="a UTF-8 text file or a folder of them (default: held-out Python code; with --tasks: none)",
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
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the bootstrap (default: 0) and of tasks (default: the harness's)"
    )
    add_device_arguments(parser, "what runs the models (default: cpu)")
    add_cache_argument(
        parser, " of MODEL", "; without --against, MODEL is then compared with itself with a cache as activations"
    )
    add_memory_argument(parser, "each model")
    parser.add_argument(
        "--batch-invariant",
        action=argparse.BooleanOptionalAction,
        help="measure the same bits whatever is computed at once (default: yes where that can be had)",
    )
    add_task_arguments(parser)
    parser.add_argument(
        "--work",
        type=path,
        metavar="FOLDER",
        help="keep results here as they come, and go on from those that are there",
    )
    parser.add_argument(
        "--logits",
        type=float,
        default=8.0,
        metavar="GB",
        help="of the source's logits kept in --work for further models (default: 8; more are computed again)",
    )
    parser.add_argument(
        "--report",
        type=path,
        metavar="FILE",
        help="write a report: FILE.html (with plots; needs --against or --tasks) or FILE.md",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)
    parser.hint = "the source is named by --against"


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tasks, and how they are asked."""
    group = parser.add_argument_group("tasks of lm-evaluation-harness")
    group.add_argument("--tasks", metavar="NAME,...", help="tasks or groups of tasks, for example hellaswag,arc_easy")
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples before each question (default: the task's)"
    )
    group.add_argument(
        "--limit", type=float, metavar="N", help="only the first N items of each task, or a share of them below 1"
    )
    group.add_argument(
        "--include-path",
        type=path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder with task files of yours",
    )
    group.add_argument(
        "--apply-chat-template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="make questions conversations, by the model's template (of that name)",
    )
    group.add_argument("--system-instruction", metavar="TEXT", help="the system message of these")
    group.add_argument(
        "--bos",
        choices=("yes", "no"),
        help="whether contexts begin with begin-of-text (default: what the tokenizer does; it is printed)",
    )
    group.add_argument("--max-length", type=int, metavar="N", help="tokens read at most (default: the model's context)")
    group.add_argument("--batch", type=int, default=64, metavar="N", help="items worked on at once (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the report if one was asked for."""
    if args.against is None and cache_format(args.kv_cache) != AUTO and len(args.models) == 1:
        args.against = args.models[0]  # with a cache as activations
    if args.report is not None:
        check_report(args.report, args.against, args.tasks)
    command = command_line(args)
    one = len(args.models) == 1 and args.tasks is None and args.work is None
    found = compare(args, command)
    if args.report is not None:
        write_report(found, args.report)
    notes.show(found.notes)
    if args.json:
        json.dump(as_json(found.texts[0]) if one else all_as_json(found), sys.stdout, indent=2, allow_nan=False)
        print()
    else:
        output.write(summary(found, args.against))
        if args.report is not None:
            output.write(f"\nreport: {args.report}")
    return 0


def compare(args: argparse.Namespace, command: str) -> Comparison:
    """What was asked for."""
    from isobit import api

    return api.compare(
        args.models,
        args.against,
        tasks=[] if args.tasks is None else [task.strip() for task in args.tasks.split(",")],
        text=args.text,
        ctx=args.ctx,
        stride=args.stride,
        tokens=args.tokens,
        seed=args.seed,
        device=args.device,
        target=args.target,
        kv_cache=args.kv_cache,
        batch_invariant=args.batch_invariant,
        memory=args.memory,
        work=args.work,
        logits_gb=args.logits,
        command=command,
        progress=None if args.quiet else show_progress,
        quiet=args.quiet,
        **{} if args.tasks is None else task_options(args),
    )


def task_options(args: argparse.Namespace) -> dict[str, Any]:
    """How tasks are asked, in the words of the Python interface."""
    return {
        "shots": args.num_fewshot,
        "limit": args.limit,
        "include": [str(folder) for folder in args.include_path],
        "chat": args.apply_chat_template,
        "system": args.system_instruction,
        "add_bos": None if args.bos is None else args.bos == "yes",
        "max_length": args.max_length,
        "batch": args.batch,
    }


def write_report(found: Comparison, path: Path) -> None:
    """The report, in the format that its name says."""
    from isobit.evaluation import report

    if path.suffix.lower() == ".md":
        report.write_file(path, found.markdown())
    else:
        report.write(found.results, path, found.tasks, found.command)


def all_as_json(found: Comparison) -> dict[str, Any]:
    """What was measured of several models, or in tasks, as JSON."""
    return {
        "models": [as_json(one) for one in found.texts],
        "source": found.source,
        "tasks": None if found.tasks is None else tasks_as_json(found.tasks),
        "command": found.command,
        "notes": found.notes,
    }


def tasks_as_json(found: TaskComparison) -> dict[str, Any]:
    """What tasks found: every run with every item, and what each model lost."""
    from isobit.evaluation.tasks.paired import changes

    source = None if found.source is None else found.source[1]
    runs = [
        {"model": name, **asdict(run), "changes": [] if source is None else changes(source, run)}
        for name, run in found.models
    ]
    return {"setup": asdict(found.setup), "source": None if source is None else asdict(source), "models": runs}


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


def check_report(path: Path, against: str | None, tasks: str | None = None) -> None:
    """Refuse a report that can't be written before anything is measured.

    Raises:
        UsageError: there is no source to compare with, no folder to write into, or another file of that name.
    """
    if against is None and tasks is None and path.suffix.lower() != ".md":
        raise UsageError("--report compares a model with its source: give the source with --against")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--report {path}: the folder {path.absolute().parent} does not exist")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError(f"--report {path}: this is a pipe or a device; name a file")
    if path.is_dir():
        raise UsageError(f"--report {path}: this is a folder; name a file, for example {path / 'report.html'}")
    if path.exists() and not _may_be_replaced(path):
        raise UsageError(f"--report {path}: this file is there and is no report; name another, or remove it")
    if path.suffix.lower() not in (".html", ".htm", ".md"):
        raise UsageError(f"--report {path}: a report is a page (FILE.html) or Markdown (FILE.md); name one of these")


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty or a page, such as a report of before: a model's own files are not written over."""
    try:
        with open(path, "rb") as file:
            start = file.read(15)
    except OSError:
        return True  # whether it can be written is said where it is
    return not start or start.lower() in (b"<!doctype html>", b"# isobit eval: ")


_REPEATED = (
    "against", "text", "ctx", "stride", "tokens", "tasks", "num-fewshot", "limit", "apply-chat-template",
    "system-instruction", "bos", "max-length",
)  # fmt: skip


def command_line(args: argparse.Namespace, command: str = "eval") -> str:
    """The command that measures the same again."""
    parts = ["isobit", command, *(args.models if command == "eval" else [args.model])]
    for option in _REPEATED:
        value = getattr(args, option.replace("-", "_"), None)
        if value is not None and value is not False:
            parts += (
                [f"--{option}"] if value is True else [f"--{option}", f"{value:g}" if option == "limit" else str(value)]
            )
    for folder in getattr(args, "include_path", []):
        parts += ["--include-path", str(folder)]
    if args.seed:
        parts += ["--seed", str(args.seed)]
    if args.device != "cpu":
        parts += ["--device", args.device]
    if args.target is not None:
        parts += ["--target", args.target]
    if cache_format(args.kv_cache) != AUTO:
        parts += ["--kv-cache", args.kv_cache]
    if args.batch_invariant is not None:
        parts.append("--batch-invariant" if args.batch_invariant else "--no-batch-invariant")
    return shlex.join(parts)


def show_progress(done: int, total: int) -> None:
    """One line on stderr that counts windows; rewritten in place on a terminal, else at the end alone."""
    if sys.stderr.isatty():
        print(f"\rmeasuring: window {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total:
        print(f"measured {total} window{'s' if total > 1 else ''}", file=sys.stderr)


def summary(found: Comparison, against: str | None) -> str:
    """What was measured, a line each, with intervals."""
    hint = (
        ""
        if against is not None or found.tasks is not None
        else "\n\nGive the model it was made from with --against to see what it lost."
    )
    return f"{found}{hint}"
