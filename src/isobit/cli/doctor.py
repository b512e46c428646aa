"""`isobit doctor`: what this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from isobit.formats.schemes import SCHEMES, Scheme
from isobit.targets.detect import Machine, detect


def register(subparsers: Any) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can do, what is missing, and how to get it",
        description="Look at this machine: cores, memory, instruction sets, compiler, GPUs, and what runs each scheme.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found; the status is 0 whether or not something is missing."""
    machine = detect()
    kernels = {name: kernel_for(row) for name, row in SCHEMES.items()}
    if args.json:
        print(json.dumps({"machine": asdict(machine), "kernels": kernels, "advice": advice(machine)}, indent=2))
        return 0
    print("\n".join(describe(machine)))
    print("\nWhat runs each scheme here:")
    width = max(map(len, kernels))
    for name, kernel in kernels.items():
        print(f"  {name:<{width}}  {kernel}")
    for line in advice(machine):
        print(f"\n{line}")
    return 0


def kernel_for(row: Scheme) -> str:
    """The kernel that runs a scheme's linear layers on this machine, or why none does."""
    from isobit.errors import Unsupported
    from isobit.kernels.registry import choose

    try:
        return choose(row.weights, row.activations, "cpu").name
    except Unsupported as refusal:
        return "; ".join(refusal.reasons)


def describe(machine: Machine) -> list[str]:
    """The machine, one fact a line."""
    gib = 2**30
    rows = [
        ("system", machine.system),
        ("Python", machine.python),
        ("CPU", f"{machine.cpu}, {machine.cores} usable cores"),
        ("features", " ".join(machine.cpu_features) or "none that low-bit kernels ask for"),
        ("memory", f"{machine.memory / gib:.1f} GiB, {machine.memory_available / gib:.1f} GiB available"),
        ("compiler", machine.compiler or "none"),
        ("GPUs", "; ".join(machine.gpus) or "none found"),
        *((name, version or "not installed") for name, version in machine.packages),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def advice(machine: Machine) -> list[str]:
    """What is missing and how to get it, or that nothing is."""
    missing = []
    if dict(machine.packages).get("torch") is None:
        missing.append("torch is not installed: pip install torch")
    if machine.gpus:
        missing.append("A GPU was found, but this version runs models on the CPU only.")
    return missing or ["Nothing is missing for the reference path in plain torch, which runs every scheme."]
