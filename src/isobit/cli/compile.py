"""`isobit compile`: the GPU kernels, compiled and read without a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli import notes, output
from isobit.cli.parser import add_cache_argument, path
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
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


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
    if args.sample is not None:
        return _sampled(args, claims, targets)
    outcomes = _prove(claims, args)
    if args.json:
        json.dump([_as_json(one) for one in outcomes], sys.stdout, indent=1)
        print()
    else:
        output.write("\n".join(table(outcomes)))
    failed = [one for one in outcomes if one.problems]
    if args.support is not None and not _support(args.support, outcomes, targets, check=args.check):
        return 1
    return 1 if failed else 0


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


def _support(path: Path, outcomes: list[Outcome], targets: Sequence[Target], *, check: bool) -> bool:
    from isobit.kernels.gpu.compile.processes import triton_version
    from isobit.proof import recorded

    texts = {path: _page(outcomes, targets), recorded.beside(path): recorded.record(outcomes, triton_version())}
    if not check:
        for file, text in texts.items():
            file.write_text(text, encoding="utf-8")
        return True
    stale = [file for file, text in texts.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        _say(f"{file} is not what the kernels are now: run `make support` and commit it")
    return not stale


def _sampled(args: argparse.Namespace, claims: list[Claim], targets: Sequence[Target]) -> int:
    """Compare the page with what is recorded of every kernel, and that with some kernels that are compiled now."""
    import random

    from isobit.kernels.gpu.compile.processes import triton_version
    from isobit.proof import recorded

    version, file = triton_version(), recorded.beside(args.support)
    for one in (args.support, file):
        if not one.is_file():
            raise UsageError(f"{one} is not there: `make support` writes it")
    lines = recorded.read(file.read_text(encoding="utf-8"))
    missing, old = recorded.strangers(claims, lines, version)
    if missing or old:
        some = f", the first {', '.join(missing[:3])}" if missing else ""
        _say(f"{file}: {len(missing)} kernels of now (Triton {version}) are not recorded{some}; {old} records are of "
             "kernels that are no more: run `make support` and commit it")  # fmt: skip
        return 1
    if _page(recorded.outcomes(claims, lines, version), targets) != args.support.read_text(encoding="utf-8"):
        _say(
            f"{args.support} is not what is recorded of kernels and answered by plans: run `make support` and commit it"
        )
        return 1
    compiled = _prove(random.sample(claims, min(args.sample, len(claims))), args)
    output.write("\n".join(table(compiled)))
    wrong = recorded.differences(compiled, lines, version)
    for one in wrong:
        _say(f"{one}: run `make support` and commit it")
    output.write(f"{len(claims)} claims are recorded as the kernels are now; {args.support} is current")
    return 1 if wrong or any(one.problems for one in compiled) else 0


def _say(problem: str) -> None:
    print(f"isobit: error: {problem}", file=sys.stderr)


def _page(outcomes: Sequence[Outcome], targets: Sequence[Target]) -> str:
    from isobit.kernels.gpu.compile.processes import triton_version
    from isobit.proof.page import page

    return page(outcomes, targets, triton_version(), formats(outcomes, targets), library(targets))


def formats(outcomes: Sequence[Outcome], targets: Sequence[Target]) -> dict[str, dict[str, str]]:
    """For every scheme and target: what a plan answers for its linears, and what the code of that kernel shows."""
    from isobit.formats.schemes import SCHEMES
    from isobit.legalize.ops import Lowering
    from isobit.legalize.planner import decide, sample_ops

    shown = {(one.claim.variant, one.claim.target): one.evidence.matrix() for one in outcomes if one.evidence}
    cells: dict[str, dict[str, str]] = {}
    for name, row in SCHEMES.items():
        for target in targets:
            decision = decide(sample_ops(row, target)[0], target)
            cell = "refused"
            if isinstance(decision, Lowering):
                matrix = next(
                    (shown[one, target.name] for one in decision.kernels[::-1] if (one, target.name) in shown), ()
                )
                cell = f"{decision.action} ({matrix[0] if matrix else 'no matrix unit'})"
            cells.setdefault(name, {})[target.name] = cell
    return cells


def library(targets: Sequence[Target]) -> dict[str, list[str]]:
    """PyTorch's products among the kernels, and the targets on which they are chosen."""
    from isobit.kernels.gpu.rows import VARIANTS

    rows = [row for row in VARIANTS if row.library]
    return {row.name: [target.name for target in targets if row.requires(target) is None] for row in rows}


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
