"""`isobit doctor`: what this machine is, what each scheme will do on it, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from isobit.cli import output
from isobit.kernels.cpu.library import wanted_threads
from isobit.kernels.status import CpuKernels, cpu_kernels
from isobit.targets.detect import Machine, detect
from isobit.targets.here import display_devices, gpu_machine, gpus, here
from isobit.targets.spec import Board, Target

_GIB = 2**30
_NEEDS = {"avx512": "avx512_vnni", "avx2": "avx2", "neon": "asimddp"}  # of a CPU, by its kernels


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can do, what is missing, and how to get it",
        description="Look at this machine: cores, memory, instruction sets, compiler, GPUs; the CPU kernels and their "
        "threads; how each scheme runs on each target; and what is missing.",
        epilog="`isobit plan MODEL` adds memory and speed for one model.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found; the status is 0 whether or not something is missing."""
    machine, kernels = detect(), cpu_kernels()
    found = here(wanted_threads(), machine)
    missing = advice(machine, kernels)
    if args.json:
        targets = [{"target": row.name, "board": board.name, "schemes": answers(row)} for row, board in found]
        own = asdict(kernels) | {"used": kernels.used}
        document = {"machine": asdict(machine), "cpu_kernels": own, "targets": targets, "advice": missing}
        print(json.dumps(document, indent=2))
        return 0
    output.write("\n".join(columns(machine_rows(machine) + kernel_rows(kernels))))
    for row, board in found:
        output.write("\n" + "\n".join(table(row, board)))
        if row.name.startswith("cpu-") and not kernels.used:
            print("  note: the CPU kernels are not in use, see above: each scheme keeps its numerics, and is slow")
    output.write("\n" + "\n".join(f"Missing: {line}" for line in missing) if missing else f"\n{_whole(machine)}")
    return 0


def answers(target: Target) -> dict[str, dict[str, str]]:
    """How the linears of each scheme run on a target: action, and how or why not."""
    from isobit.formats.schemes import SCHEMES
    from isobit.legalize.ops import Refusal
    from isobit.legalize.planner import decide, sample_ops

    found = {}
    for name, row in SCHEMES.items():
        answer = decide(sample_ops(row, target)[0], target)
        how = "; ".join(answer.reasons) if isinstance(answer, Refusal) else answer.how
        found[name] = {"action": answer.action, "how": how}
    return found


def table(target: Target, board: Board) -> list[str]:
    """One line for each scheme on one target of this machine."""
    found = answers(target)
    width, longest = (max(len(word) for word in words) for words in (found, (a["action"] for a in found.values())))
    lines = [f"{board.name}: target {target.name} ({target.title}), {board.memory / _GIB:.1f} GiB"]
    lines += [f"  {name:<{width}}  {row['action']:<{longest}}  {row['how']}" for name, row in found.items()]
    return [*lines, *(f"  note: {note}" for note in target.notes)]


def _whole(machine: Machine) -> str:
    """Nothing is missing: for what."""
    if gpus(machine):
        return "Nothing is missing."
    return "Nothing is missing to run on this CPU. There is no GPU that `--device cuda` could run on."


def machine_rows(machine: Machine) -> list[tuple[str, str]]:
    """The machine: facts and their names."""
    return [
        ("system", machine.system),
        ("Python", machine.python),
        ("CPU", f"{machine.cpu}, {machine.cores} usable cores"),
        ("features", " ".join(machine.cpu_features) or "none that low-bit kernels ask for"),
        ("memory", f"{machine.memory / _GIB:.1f} GiB, {machine.memory_available / _GIB:.1f} GiB available"),
        ("compiler", machine.compiler or "none"),
        ("GPUs", "; ".join(machine.gpus) or "none found"),
        *((name, version or "not installed") for name, version in machine.packages),
    ]


def kernel_rows(kernels: CpuKernels) -> list[tuple[str, str]]:
    """The CPU kernels: facts and their names."""
    if kernels.problem is not None:
        return [("CPU kernels", f"not in use: {kernels.problem}. Everything runs through the reference path, slowly")]
    left_out = f"; without {', '.join(kernels.left_out)}, unknown to the compiler" if kernels.left_out else ""
    instead = "" if kernels.used else f"not in use: ISOBIT_KERNEL={kernels.forced}; else "
    return [
        ("CPU kernels", f"{instead}{kernels.isa} ({kernels.isa_reason}) of {', '.join(kernels.runnable)}"),
        ("  built", f"for {', '.join(kernels.built)} by {kernels.compiler}{left_out}"),
        ("  threads", f"{kernels.threads} ({kernels.threads_reason})"),
    ]


def columns(rows: list[tuple[str, str]]) -> list[str]:
    """One fact a line."""
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def advice(machine: Machine, kernels: CpuKernels) -> list[str]:
    """What is missing on a machine and how to get it."""
    packages = dict(machine.packages)
    missing = []
    if packages.get("torch") is None:
        missing.append("torch: pip install torch")
    if kernels.remedy is not None:
        missing.append(f"the CPU kernels: {kernels.remedy}")
    unknown = [name for name in kernels.left_out if _NEEDS.get(name) in machine.cpu_features]
    if unknown:
        missing.append(
            f"CPU kernels for {', '.join(unknown)}, which this CPU has and the compiler did not know: install "
            "isobit again with a newer one (CXX names it)"
        )
    return missing + _gpu_advice(machine)


def _gpu_advice(machine: Machine) -> list[str]:
    packages = dict(machine.packages)
    cards = gpus(machine)
    missing = [
        f"{card.name} (compute capability {card.capability}) is older or newer than what isobit compiles for"
        for card in cards
        if gpu_machine(card) is None
    ]
    vendors = display_devices()
    if "nvidia" in vendors and not cards:
        missing.append(
            "an NVIDIA device is there but its driver is not (nvidia-smi does not answer): install the driver"
        )
    if "amd" in vendors:
        missing.append(
            "an AMD GPU is there, which `isobit doctor` cannot name: see `isobit plan MODEL --target gfx942`"
        )
    if cards and packages.get("triton") is None:
        missing.append("Triton, which compiles the GPU kernels: pip install 'isobit[triton]'")
    if cards and "+cpu" in (packages.get("torch") or ""):
        missing.append("torch is a build for CPUs only: install the one for CUDA (pytorch.org, Get Started)")
    return missing
