"""What this machine is: cores, memory, instruction sets, compiler, accelerators. Reads only; needs no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from isobit.targets.cores import cores

# What low-bit kernels ask a CPU for, in the spelling of Linux' cpuinfo (x86 "flags", Arm "Features").
CPU_FEATURES = (
    "avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimddp", "asimdhp", "bf16", "i8mm", "sve",
)  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
CGROUP_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Machine:
    """This machine, as far as running few-bit models on it goes. Sizes are in bytes."""

    system: str
    python: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    memory: int
    memory_available: int
    compiler: str | None
    gpus: tuple[str, ...]
    packages: tuple[tuple[str, str | None], ...]


def detect(*, programs: bool = True) -> Machine:
    """Look at this machine; without ``programs`` none is started, and no compiler and no GPU is found."""
    cpu, features = _cpu()
    total, available = memory()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=cpu,
        cpu_features=features,
        cores=usable_cores(),
        memory=total,
        memory_available=available,
        compiler=_compiler() if programs else None,
        gpus=_gpus() if programs else (),
        packages=tuple((name, _version(name)) for name in ("torch", "triton", "transformers", "compressed-tensors")),
    )


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, capped by the CPU quotas of its control groups."""
    return cores().count


def find_compiler() -> str | None:
    """The C++ compiler that would build the CPU kernels: that of CXX, or the first of COMPILERS; None without one."""
    if named := os.environ.get("CXX", "").strip():
        try:
            return shutil.which(shlex.split(named)[0])
        except ValueError:  # a quote without an end
            return None
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def _cpu() -> tuple[str, tuple[str, ...]]:
    model, words = platform.processor() or "unknown", set[str]()
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            words.update(value.split())
    return model, tuple(name for name in CPU_FEATURES if name in words)


def memory() -> tuple[int, int]:
    """(bytes of memory, bytes of it that are available)."""
    fields = {}
    for line in _text(Path("/proc/meminfo")).splitlines():
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0]) * 1024 if value.split() else 0
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    for path in CGROUP_MEMORY:
        limit = _text(path).strip()
        if limit.isdigit() and 0 < int(limit) < total:
            total, available = int(limit), min(available, int(limit))
    return total, available


def _compiler() -> str | None:
    found = find_compiler()
    return None if found is None else (_first_line([found, "--version"]) or found)


def _gpus() -> tuple[str, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    return tuple(line.strip() for line in _output(query).splitlines() if line.strip())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str:
    return next(iter(_output(command).splitlines()), "")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
