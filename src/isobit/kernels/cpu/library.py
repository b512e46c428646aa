"""The shared library of the CPU kernels: loading it, its threads, its instruction sets. Needs no torch.

Environment variables, read once when the library is loaded:
    ISOBIT_THREADS   threads of the pool; else OMP_NUM_THREADS, else the cores this process may use (cpu_threads.py)
    ISOBIT_ISA       the instruction set to use instead of the best one, e.g. ``portable``
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from isobit.errors import IsobitError, Unsupported, UsageError
from isobit.kernels.cpu import library_file
from isobit.kernels.cpu import threads as cpu_threads
from isobit.targets.cores import cores
from isobit.targets.detect import find_compiler

LIBRARY = Path(__file__).with_name("_cpu.so")
NOTE = LIBRARY.with_suffix(".json")  # how the build went, written by cpp/build.py
ABI = 9  # ISOBIT_CPU_ABI of cpp/isobit_cpu.h

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float

# name: (result, arguments) of the functions in isobit_cpu.h that have to do with linears and with the library itself.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "isobit_cpu_built": (ctypes.c_char_p, ()),
    "isobit_cpu_compiler": (ctypes.c_char_p, ()),
    "isobit_cpu_isas": (ctypes.c_char_p, ()),
    "isobit_cpu_use_isa": (ctypes.c_int, (ctypes.c_char_p,)),
    "isobit_cpu_isa": (ctypes.c_char_p, ()),
    "isobit_cpu_set_threads": (ctypes.c_int, (ctypes.c_int,)),
    "isobit_cpu_threads": (ctypes.c_int, ()),
    "isobit_cpu_error": (ctypes.c_char_p, ()),
    "isobit_cpu_linear": (ctypes.c_int, (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE)),
    "isobit_cpu_linears": (ctypes.c_int, (_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER)),
    "isobit_cpu_quantize": (ctypes.c_int, (_INT, _INT, _SIZE, _FLOAT, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER)),
    "isobit_cpu_has_nan": (ctypes.c_int, (_INT, _POINTER, _SIZE, _SIZE, _SIZE)),
    "isobit_cpu_read": (ctypes.c_uint64, (_POINTER, _SIZE)),
}


@dataclass(frozen=True)
class Problem:
    """Why the library cannot be used, and how to mend that."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


def library() -> ctypes.CDLL:
    """The library, with the threads and the instruction set that the environment asks for.

    Raises:
        Unsupported: it was not built, or cannot be loaded.
        UsageError: an environment variable asks for what cannot be.
    """
    loaded = _load()
    if isinstance(loaded, Problem):
        raise Unsupported("the CPU kernels", [str(loaded)], instead="the reference path: ISOBIT_KERNEL=reference")
    return loaded


def problem() -> str | None:
    """Why the library cannot be used and how to mend that, or None.

    Raises:
        UsageError: an environment variable asks for what cannot be.
    """
    found = problem_found()
    return None if found is None else str(found)


def problem_found() -> Problem | None:
    """:func:`problem` in its two parts."""
    loaded = _load()
    return loaded if isinstance(loaded, Problem) else None


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | Problem:
    note = _note()
    if not LIBRARY.exists():
        return Problem(f"the CPU kernels are not built ({_why_not_built(note)})", remedy(note))
    try:
        damage = _damage(note)
        found = None if damage else ctypes.CDLL(str(LIBRARY))
        damage = damage or _another_version(found)
    except OSError as error:
        damage = str(error)
    if damage or found is None:
        return Problem(f"the CPU kernels cannot be loaded ({LIBRARY}: {damage})", remedy(note))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    _set_up(found)
    return found


def _damage(note: dict[str, Any]) -> str | None:
    """Why the file must not be given to the system's loader, or None."""
    if sys.platform != "linux":
        return None
    return library_file.damage(LIBRARY.read_bytes(), platform.machine(), note.get("digest"))


def _another_version(found: Any) -> str | None:
    """Why the library's functions must not be called, or None."""
    if not hasattr(found, "isobit_cpu_abi"):
        return "it is of an older version of isobit, or of something else"
    if (abi := found.isobit_cpu_abi()) != ABI:
        return f"it is of another version of isobit: it has interface {abi}, and this version calls {ABI}"
    missing = [name for name in _SIGNATURES if not hasattr(found, name)]
    return f"it lacks {', '.join(missing)}" if missing else None


def _set_up(found: ctypes.CDLL) -> None:
    count = wanted_threads().count
    if found.isobit_cpu_set_threads(count):
        raise UsageError(f"{count} threads: {found.isobit_cpu_error().decode()}")
    isa = os.environ.get("ISOBIT_ISA", "").strip()
    if isa and found.isobit_cpu_use_isa(isa.encode()):
        here, built = (names().decode().split(",") for names in (found.isobit_cpu_isas, found.isobit_cpu_built))
        why = "this CPU does not have it" if isa in built else "it is not in this build"
        raise UsageError(f"ISOBIT_ISA={isa}: {why}; choose one of {', '.join(here)}, or unset it for the first")


def wanted_threads() -> cpu_threads.Threads:
    """Threads of the pool by the environment and the cores of this process, and why so many.

    Raises:
        UsageError: a variable holds no number of threads.
    """
    return cpu_threads.choose(os.environ, cores())


# ---------------------------------------------------------------------- what to do without it


def _note() -> dict[str, Any]:
    """What the build wrote down; empty if it wrote nothing that can be read."""
    try:
        note = json.loads(NOTE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _why_not_built(note: dict[str, Any]) -> str:
    """The first line of why the build failed."""
    if not note:
        return "this copy of the package was never built"
    problem = note.get("problem")
    return str(problem).partition("\n")[0] if problem else "the library was removed after it was built"


def remedy(note: dict[str, Any] | None = None) -> str:
    """What to do about kernels that cannot be used: commands for this machine and this installation."""
    failed = (_note() if note is None else note).get("problem")
    if find_compiler() is None:
        named = os.environ.get("CXX", "").strip()
        first = "install a C++ compiler (for example: apt-get install g++)" + (
            f" or unset CXX, which is {named}" if named else ""
        )
    elif failed and "there is no C++ compiler" not in failed:
        first = f"mend that ({NOTE} has all that the compiler said) or name another compiler in CXX"
    else:
        return _reinstall()
    return f"{first}, then {_reinstall()}"


def _reinstall() -> str:
    """The command that installs this package again as it was installed, and compiles."""
    command = "pip install --force-reinstall --no-deps --no-cache-dir"
    try:
        origin = json.loads(metadata.distribution("isobit").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return f"{command} isobit"
    url = str(origin.get("url", ""))
    if not url:
        return f"{command} --no-binary isobit isobit"
    if not url.startswith("file://"):
        return f"{command} {shlex.quote(url)}"
    path = shlex.quote(unquote(urlsplit(url).path))
    if path.rstrip("'").endswith(".whl"):
        return f"make the wheel again (pip wheel --no-deps SOURCES) and {command} it"
    editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
    return f"{command} {editable}{path}"


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


def built_isas() -> tuple[str, ...]:
    """Instruction sets that this build has, best first, whether or not this machine has them."""
    return tuple(library().isobit_cpu_built().decode().split(","))


def left_out() -> tuple[str, ...]:
    """Instruction sets for this kind of machine that the compiler did not know."""
    return tuple(_note().get("left_out") or ())


def built() -> str:
    """The digest of the library that was built; empty if none was."""
    return str(_note().get("digest") or "")


def compiler() -> str:
    """The compiler that built it, and its version."""
    return str(library().isobit_cpu_compiler().decode())


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
