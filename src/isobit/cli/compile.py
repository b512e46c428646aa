"""`isobit compile`: the GPU kernels, compiled and read without a GPU."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, output
from isobit.cli.parser import add_cache_argument, path
from isobit.cli.support import Page
from isobit.errors import UsageError
from isobit.formats.caches import cache_format

if TYPE_CHECKING:
    from isobit.proof.matrix import Claim, Outcome
    from isobit.targets.spec import Target


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "compile",
        help="compile the GPU kernels without a GPU, and check their machine code",
        description="Compile every kernel that the tables claim for the named targets, on a machine that has none of "
        "them; read the machine code; and fail if it does not show the promised instructions or if registers spill in "
        "a hot loop. Results are kept in the cache (ISOBIT_CACHE, else XDG_CACHE_HOME).",
        epilog="With MODEL and -o: compile what that model needs on one target into a folder (a kernel pack), with "
        "which its layers start there without compiling anything: set ISOBIT_PACK=PACK. Compiling needs Triton (pip "
        "install triton), and neither a GPU nor a CUDA toolkit.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a checkpoint to make a kernel pack for, with -o")
    parser.add_argument(
        "--target",
        metavar="all|NAMES",
        default="all",
        help="targets, comma-separated: sm_86,gfx942 (default: all GPUs)",
    )
    parser.add_argument("--variant", metavar="PATTERN", help="only kernels whose name matches, e.g. 'many*e4m3*'")
    parser.add_argument("-j", "--jobs", type=_positive, metavar="N", help="processes (default: the usable cores)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--listings", type=path, metavar="DIR", help="write every kernel's disassembly to this folder")
    parser.add_argument("--support", type=path, metavar="FILE", help="write the result as a page (docs/support.md)")
    parser.add_argument("--check", action="store_true", help="with --support: only check that the page is current")
    parser.add_argument(
        "--sample",
        type=_positive,
        metavar="N",
        help="with --check: compile N kernels only, drawn at random; the others are compared by their keys and by what "
        "the file beside the page (.evidence) says of them",
    )
    parser.add_argument("-o", "--out", type=path, metavar="PACK", help="the kernel pack to write, a folder")
    parser.add_argument(
        "--dtype", help="of the pack's activations: bfloat16, float16, float32 (default: the checkpoint's)"
    )
    add_cache_argument(parser, " of the pack's model")
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.set_defaults(run=run)
    parser.hint = "what is written is named by -o"


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 1 on")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Compile, print, and say with the status whether every claim holds (0) or not (1)."""
    if (args.model is None) != (args.out is None):
        raise UsageError("a kernel pack is made of MODEL into -o PACK: name both, or neither to compile all kernels")
    if args.out is not None:
        for option in ("variant", "listings", "support", "json", "check", "sample"):
            if getattr(args, option) not in (None, False):
                raise UsageError(f"--{option} is for all kernels: a pack with -o has those that its model needs")
        return _pack(args)
    if args.kv_cache != "auto":
        raise UsageError("--kv-cache is of a pack's model: all kernels are compiled for caches of every format")
    for option in ("dtype", "revision"):
        if getattr(args, option) is not None:
            raise UsageError(f"--{option} is for a kernel pack: name MODEL and -o PACK")
    if args.check and args.support is None:
        raise UsageError("--check compares a page with what was compiled: say which with --support docs/support.md")
    if args.sample is not None and not args.check:
        raise UsageError("--sample is for --check, which compares a page: without it every kernel is compiled")
    targets = gpu_targets(args.target)
    claims = _claims(args.variant, targets)
    page = None if args.support is None else Page.of(args.support, args.target, args.variant)
    lines = page.current(claims, targets) if page is not None and args.sample is not None else {}
    if lines is None:
        return 1
    chosen = claims if args.sample is None else random.sample(claims, min(args.sample, len(claims)))
    outcomes = _prove(chosen, args)
    if args.json:
        json.dump([_as_json(one) for one in outcomes], sys.stdout, indent=1)
        print()
    else:
        output.write("\n".join(table(outcomes)))
    holds = not any(one.problems for one in outcomes)
    if page is not None and args.sample is not None:
        holds = page.shows(outcomes, lines) and holds
    elif page is not None:
        holds = (page.compares if args.check else page.write)(outcomes, targets) and holds
    return 0 if holds else 1


def _pack(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from isobit import api
    from isobit.kernels.gpu.compile.processes import triton_version
    from isobit.kernels.gpu.packs.write import write_pack
    from isobit.models.contents import contents
    from isobit.models.opening import runnable
    from isobit.models.pack import requests
    from isobit.targets.detect import usable_cores

    targets = gpu_targets(args.target)
    if len(targets) != 1:
        raise UsageError("a kernel pack is for one target: name it, e.g. --target sm_86")
    triton_version()  # says how to get it, before anything large is read
    held = contents(runnable(api.find(args.model, revision=args.revision)))
    stored = cache_format(args.kv_cache)
    wanted, dtype = requests(held, targets[0], args.dtype, stored)
    notes.show(held.notes)
    with tqdm(total=len(wanted), unit="kernel", desc="compiling", disable=not sys.stderr.isatty(), leave=False) as bar:
        made = write_pack(
            args.out,
            wanted,
            targets[0],
            model=str(args.model),
            dtype=dtype,
            processes=args.jobs or usable_cores(),
            progress=lambda: bar.update() and None,
        )
    size = sum((args.out / kernel.file).stat().st_size for kernel in made.kernels)
    output.write(f"{args.out}: {len(made.kernels)} kernels for {args.model} on {made.target}, {size / 1e6:.1f} MB")
    output.write(f"Next: set ISOBIT_PACK={args.out} where the model runs on that GPU")
    return 0


def gpu_targets(names: str) -> tuple[Target, ...]:
    """The targets that a comma-separated list names; ``all`` is every target that Triton compiles for.

    Raises:
        UsageError: an unknown name, or a target without a GPU.
        Unsupported: a target that isobit knows and does not compile for.
    """
    from isobit.targets.table import TARGETS, lookup

    if names == "all":
        return tuple(row for row in TARGETS.values() if row.backend is not None)
    rows = tuple(dict.fromkeys(lookup(name.strip())[0] for name in names.split(",") if name.strip()))
    if not rows:
        raise UsageError("--target names no target: say all, or sm_86,gfx942")
    for row in rows:
        if row.backend is None:
            raise UsageError(f"--target {row.name}: GPU kernels are not compiled for it; name a GPU target or `all`")
    return rows


def _claims(pattern: str | None, targets: Sequence[Target]) -> list[Claim]:
    from isobit.proof.claims import all_rows, claims, select

    found = claims(select(all_rows(), pattern), targets)
    if not found:
        raise UsageError("none of these kernels is claimed for any of these targets: nothing to compile")
    return found


def _prove(claims: list[Claim], args: argparse.Namespace) -> list[Outcome]:
    from tqdm import tqdm

    from isobit.proof.matrix import prove
    from isobit.proof.store import Store, cache_folder
    from isobit.targets.detect import usable_cores

    with tqdm(total=len(claims), unit="kernel", desc="compiling", disable=not sys.stderr.isatty(), leave=False) as bar:
        return prove(
            claims,
            Store(cache_folder() / "proof"),
            processes=args.jobs or usable_cores(),
            listings=args.listings,
            progress=lambda outcome: bar.update() and None,
        )


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """One line per kernel and target, the failures once more at the end, and a count."""
    header = ("target", "kernel", "hot loop shows", "registers", "shared", "spills", "")
    rows = [header, *(_row(one) for one in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    failed = [one for one in outcomes if one.problems]
    compiled = sum(not one.cached for one in outcomes)
    for one in failed:
        lines += ["", f"{one.name}:", *(f"  - {problem}" for problem in one.problems)]
    held = len(outcomes) - len(failed)
    lines += ["", f"{held} of {len(outcomes)} claims hold; {compiled} compiled now, {len(outcomes) - compiled} cached"]
    return lines


def _row(one: Outcome) -> tuple[str, ...]:
    verdict = "FAILS" if one.problems else "ok"
    if one.evidence is None:
        return one.claim.target, one.claim.variant, "-", "-", "-", "-", verdict
    evidence = one.evidence
    return (
        one.claim.target,
        one.claim.variant,
        " ".join(evidence.matrix()) or "no matrix unit",
        str(evidence.registers),
        str(evidence.shared),
        f"{evidence.loop_spills}+{evidence.spills - evidence.loop_spills}" if evidence.spills else "0",
        verdict,
    )


def _as_json(one: Outcome) -> dict[str, Any]:
    return {
        "variant": one.claim.variant,
        "target": one.claim.target,
        "promises": one.claim.promises,
        "problems": one.problems,
        "cached": one.cached,
        "evidence": None if one.evidence is None else one.evidence.as_json(),
    }
