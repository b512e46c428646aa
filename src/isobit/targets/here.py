"""This machine as targets and boards: its GPUs, then its CPU. Rows where one is known, estimates where none is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from isobit.errors import UsageError
from isobit.targets.detect import Machine, detect
from isobit.targets.spec import Board, Target
from isobit.targets.table import TARGETS, board, reference_board

_MIB = 1 << 20
_PCI_VENDORS = {"0x10de": "nvidia", "0x1002": "amd"}

# What a CPU must have to be a target, best first.
_CPU_TARGETS = (
    ("cpu-amx", ("amx_int8", "amx_bf16", "avx512_vnni")),
    ("cpu-avx512", ("avx512f", "avx512_vnni")),
    ("cpu-avx2", ("avx2", "fma", "f16c")),
    ("cpu-neon", ("asimddp",)),
    ("cpu-portable", ()),
)

# For a CPU of which nothing but its instruction sets and cores is known: bytes per second that one core can read (two
# Zen 3 cores were measured at 26 to 42 GB/s together), a sustained clock, and float32 and int8 operations per clock.
_CORE_BANDWIDTH = 15e9
_CLOCK = 3e9
_PER_CLOCK = {"cpu-amx": (64, 256), "cpu-avx512": (32, 256), "cpu-avx2": (32, 85), "cpu-neon": (16, 128)}


@dataclass(frozen=True)
class Gpu:
    """A line of ``nvidia-smi``: memory in MiB, compute capability such as ``8.6``."""

    name: str
    capability: str
    memory: int
    driver: str


def gpus(machine: Machine) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of a machine."""
    found = []
    for line in machine.gpus:
        parts = [part.strip() for part in line.rsplit(",", 3)]
        if len(parts) == 4 and parts[2].split()[0].isdigit():
            found.append(Gpu(parts[0], parts[1], int(parts[2].split()[0]), parts[3]))
    return tuple(found)


class Threads(Protocol):
    """How many threads the CPU kernels run on, and what says so."""

    @property
    def count(self) -> int: ...

    @property
    def reason(self) -> str: ...


def here(threads: Threads | None = None, machine: Machine | None = None) -> list[tuple[Target, Board]]:
    """The targets of this machine, GPUs first.

    Args:
        threads: of the CPU kernels; see :func:`cpu_machine`.
        machine: what was found; None to look.
    """
    machine = machine or detect()
    found = [pair for gpu in gpus(machine) if (pair := gpu_machine(gpu)) is not None]
    return [*found, cpu_machine(machine, threads)]


def gpu_machine(gpu: Gpu) -> tuple[Target, Board] | None:
    """A GPU as a target and a board; None when there is no such target.

    Memory is what the driver says. Bandwidth and rates are those of the board of its name, or else, as an estimate, of
    the first board of its target.
    """
    target = TARGETS.get(f"sm_{gpu.capability.replace('.', '')}")
    if target is None:
        return None
    known = _board_named(gpu.name, target)
    like = known or reference_board(target)
    if like is None:
        return None
    return target, replace(like, name=gpu.name, memory=gpu.memory * _MIB, estimated=known is None, here=True)


def _board_named(name: str, target: Target) -> Board | None:
    """The board of the longest part of a device's name that names one of this target, from its first word on."""
    words = name.replace("-", " ").split()
    for end in range(len(words), 0, -1):
        try:
            found = board(" ".join(words[:end]))
        except UsageError:
            continue
        if found.target == target.name:
            return found
    return None


def cpu_target(machine: Machine) -> Target:
    """The target that a machine's CPU is."""
    name = next(name for name, needs in _CPU_TARGETS if set(needs) <= set(machine.cpu_features))
    return TARGETS[name]


def cpu_machine(machine: Machine, threads: Threads | None = None) -> tuple[Target, Board]:
    """A machine's CPU as a target and a board of estimated speed: that of the cores that its kernels' threads run on.

    Args:
        machine: what was found.
        threads: of the CPU kernels: ``isobit.kernels.cpu.library.wanted_threads()``. None for all
            cores, which are as many as count.
    """
    target = cpu_target(machine)
    used = machine.cores if threads is None else min(threads.count, machine.cores)
    name = f"this CPU, {machine.cores} cores"
    flops, int8 = _PER_CLOCK.get(target.name, (8, 8))
    f32, i8 = (used * _CLOCK * per_clock / 1e12 for per_clock in (flops, int8))
    like = reference_board(target)
    bandwidth = used * _CORE_BANDWIDTH
    if like is not None:
        bandwidth = min(bandwidth, like.bandwidth)
    return target, Board(
        name=name
        if threads is None or used == machine.cores
        else f"this CPU, {used} of {machine.cores} cores ({threads.reason})",
        target=target.name,
        memory=machine.memory,
        bandwidth=bandwidth,
        rates=(("f32", f32), ("f16", f32), ("i8", i8)),
        power=None,
        source=f"{machine.cpu}: estimated from its cores and instruction sets",
        estimated=True,
        here=True,
        machine=name,
    )


def display_devices(folder: Path = Path("/sys/bus/pci/devices")) -> frozenset[str]:
    """Makers of the GPUs on the PCI bus (``nvidia``, ``amd``), with or without a driver; Linux only."""
    found = set()
    for device in sorted(folder.glob("*")):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if kind.startswith("0x03") and vendor in _PCI_VENDORS:
            found.add(_PCI_VENDORS[vendor])
    return frozenset(found)
