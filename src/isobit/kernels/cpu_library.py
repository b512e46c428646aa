"""The shared library of the CPU kernels: loading it, its threads, its instruction sets. Needs no torch.

Environment variables, read once when the library is loaded:
    ISOBIT_THREADS   threads of the pool; else OMP_NUM_THREADS; else the cores this process may use
    ISOBIT_ISA       the instruction set to use instead of the best one, e.g. ``portable``
"""

from __future__ import annotations

import ctypes
import json
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from isobit.errors import IsobitError, Unsupported, UsageError
from isobit.targets.detect import usable_cores

LIBRARY = Path(__file__).with_name("_cpu.so")
NOTE = LIBRARY.with_suffix(".json")  # how the build went, written by setup.py

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float

# name: (result, arguments) of the functions in isobit_cpu.h that have to do with linears and with the library itself.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "isobit_cpu_isas": (ctypes.c_char_p, ()),
    "isobit_cpu_use_isa": (ctypes.c_int, (ctypes.c_char_p,)),
    "isobit_cpu_isa": (ctypes.c_char_p, ()),
    "isobit_cpu_set_threads": (ctypes.c_int, (ctypes.c_int,)),
    "isobit_cpu_threads": (ctypes.c_int, ()),
    "isobit_cpu_error": (ctypes.c_char_p, ()),
    "isobit_cpu_linear": (ctypes.c_int, (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE)),
    "isobit_cpu_linears": (ctypes.c_int, (_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER)),
    "isobit_cpu_quantize": (ctypes.c_int, (_INT, _SIZE, _FLOAT, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER)),
    "isobit_cpu_has_nan": (ctypes.c_int, (_INT, _POINTER, _SIZE, _SIZE, _SIZE)),
    "isobit_cpu_read": (ctypes.c_uint64, (_POINTER, _SIZE)),
}


def library() -> ctypes.CDLL:
    """The library, with the threads and the instruction set that the environment asks for.

    Raises:
        Unsupported: it was not built, or cannot be loaded.
        UsageError: an environment variable asks for what cannot be.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise Unsupported("the CPU kernels", [loaded], instead="the reference path: ISOBIT_KERNEL=reference")
    return loaded


def problem() -> str | None:
    """Why the library cannot be used and how to mend that, or None.

    Raises:
        UsageError: an environment variable asks for what cannot be.
    """
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | str:
    if not LIBRARY.exists():
        return f"the CPU kernels are not built ({_reason()}); {remedy()}"
    try:
        found = ctypes.CDLL(str(LIBRARY))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return f"the CPU kernels cannot be loaded ({error}); {remedy()}"
    _set_up(found)
    return found


def _set_up(found: ctypes.CDLL) -> None:
    if found.isobit_cpu_set_threads(wanted_threads()):
        raise UsageError(f"{wanted_threads()} threads: {found.isobit_cpu_error().decode()}")
    isa = os.environ.get("ISOBIT_ISA")
    if isa and found.isobit_cpu_use_isa(isa.encode()):
        known = found.isobit_cpu_isas().decode()
        raise UsageError(f"ISOBIT_ISA={isa}: {found.isobit_cpu_error().decode()}; it has {known}")


def wanted_threads() -> int:
    """Threads of the pool: ISOBIT_THREADS, else OMP_NUM_THREADS, else the cores this process may use.

    Raises:
        UsageError: a variable holds no positive number.
    """
    for name in ("ISOBIT_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()  # OpenMP lists a number for each level of nesting
        if text:
            if not text.isdecimal() or not 1 <= int(text) <= 4096:
                raise UsageError(f"{name}={text}: give a number of threads from 1 to 4096")
            return int(text)
    return usable_cores()


def _reason() -> str:
    """The first line of why the build failed."""
    try:
        note = json.loads(NOTE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "this copy of the package was never built"
    problem = note.get("problem")
    return str(problem).splitlines()[0] if problem else "the library was removed after it was built"


def remedy() -> str:
    """What to do about kernels that are not built: commands for this installation."""
    return f"install a C++ compiler (for example: apt-get install g++), then {_reinstall()}"


def _reinstall() -> str:
    command = "pip install --force-reinstall --no-deps --no-cache-dir"
    try:
        origin = json.loads(metadata.distribution("isobit").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return f"{command} isobit"
    url = str(origin.get("url", ""))
    if not url.startswith("file://"):
        return f"{command} {url or 'isobit'}"
    editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
    return f"{command} {editable}{url.removeprefix('file://')}"


# ---------------------------------------------------------------------- the library as it is


def check(code: int) -> None:
    """Turns the result of a call into an error.

    Raises:
        IsobitError: the call failed; says why.
    """
    if code:
        raise IsobitError(f"the CPU kernels refused a call: {last_error()}")


def last_error() -> str:
    """Why the last call of this thread failed."""
    return str(library().isobit_cpu_error().decode())


def isas() -> tuple[str, ...]:
    """Instruction sets that this machine and this build have, best first."""
    return tuple(library().isobit_cpu_isas().decode().split(","))


def isa() -> str:
    """The instruction set in use."""
    return str(library().isobit_cpu_isa().decode())


def use_isa(name: str) -> None:
    """Uses this instruction set from now on.

    Raises:
        IsobitError: it cannot run here.
    """
    check(library().isobit_cpu_use_isa(name.encode()))


def threads() -> int:
    """Threads of the pool, the caller included."""
    return int(library().isobit_cpu_threads())


def set_threads(count: int) -> None:
    """Uses this many threads from now on, the caller included; at least 1."""
    check(library().isobit_cpu_set_threads(count))
