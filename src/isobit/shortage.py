"""Memory and threads that the machine does not give: recognized in the words of every library, said in our own.

The command line catches what is left; the places that load, compute and write convert it here, so that Python's callers
get a :class:`~isobit.errors.CapacityError`, too.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import CapacityError, IsobitError

# How other libraries spell "no memory", in the text of RuntimeError, ImportError, OSError or an error of their own.
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "failed to map segment",
    "cudaerrormemoryallocation",
    "unable to mmap",
)
_NO_THREADS = ("can't start new thread", "resource temporarily unavailable", "thread constructor failed")

_INSTALLED = (sys.prefix, sys.base_prefix, str(Path(__file__).parent))  # whose modules can be parsed

# Address space that torch and the libraries beside it take before a model is there. With less, some of them (libgomp,
# OpenBLAS, C++ itself) end the process.
_TORCH, _THREAD = 900_000_000, 8 << 20


def explain(error: BaseException) -> str | None:
    """What is lacking and what helps; None if the error is about something else."""
    text = str(error).lower()
    if isinstance(error, IsobitError):
        return None
    if (
        isinstance(error, MemoryError)
        or _cut_short(error)
        or (_of_a_library(error) and any(words in text for words in _NO_MEMORY))
    ):
        return (
            f"memory does not suffice{_said(error)}: close other programs, raise the limit (ulimit -v, the "
            "container's), or use a smaller model, context or format"
        )
    if _of_a_library(error) and any(words in text for words in _NO_THREADS):
        return f"no thread could be started{_said(error)}: raise the limits of processes and memory (ulimit -u, -v)"
    return None


@contextmanager
def shortages() -> Iterator[None]:
    """Turns what libraries raise for want of memory or threads into our own error; also a decorator of functions.

    Raises:
        CapacityError: memory or threads do not suffice.
    """
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        raise CapacityError(line) from error


def require_address_space(threads: int) -> None:
    """There must be room for torch before it is imported: its libraries end the process where it lacks.

    Args:
        threads: how many it will start.

    Raises:
        CapacityError: the limit of this process (``ulimit -v``) is too low.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    need = _TORCH + threads * _THREAD
    if limit != resource.RLIM_INFINITY and limit < need:
        raise CapacityError(
            f"this process may use {limit:,} bytes of memory (ulimit -v); torch and {threads} threads need some"
            f" {need:,} before a model is loaded: raise the limit"
        )


def require_headroom(size: int, what: str) -> None:
    """Something that ends the process when memory lacks, as Rust's libraries do, must find it.

    Args:
        size: bytes that it will need.
        what: it, for the error.

    Raises:
        CapacityError: the limit of this process (``ulimit -v``) leaves less.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    free = limit - _used()
    if free < size:
        raise CapacityError(
            f"memory does not suffice: {what} needs some {size:,} bytes, and {max(free, 0):,} of {limit:,} are left"
            " (ulimit -v): raise the limit"
        )


def _used() -> int:
    """Bytes of address space in use; 0 where nobody says."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _cut_short(error: BaseException) -> bool:
    """Whether Python's parser ran out of memory over a module that is fine: it says "invalid syntax" then (3.11)."""
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return limited and isinstance(error, SyntaxError) and (error.filename or "").startswith(_INSTALLED)


def _of_a_library(error: BaseException) -> bool:
    return isinstance(error, (RuntimeError, OSError, ImportError)) or type(error).__module__.split(".")[0] != "builtins"


def _said(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f" ({first[:200]})" if first else ""
