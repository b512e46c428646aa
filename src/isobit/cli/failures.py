"""What the machine refuses (memory, files, recursion), as one clear line; None for what would be a bug in isobit."""

from __future__ import annotations

import errno
import os

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
)
_NO_THREADS = ("can't start new thread", "resource temporarily unavailable", "thread constructor failed")


def explain(error: BaseException) -> str | None:
    """One line for a user, or None if this is not the machine's doing.

    Args:
        error: what reached the end of the command.
    """
    text = str(error).lower()
    if isinstance(error, MemoryError) or (_of_a_library(error) and any(words in text for words in _NO_MEMORY)):
        return (
            f"memory does not suffice{_said(error)}: close other programs, raise the limit (ulimit -v, the "
            "container's), or use a smaller model, context or format"
        )
    if _of_a_library(error) and any(words in text for words in _NO_THREADS):
        return f"no thread could be started{_said(error)}: raise the limits of processes and memory (ulimit -u, -v)"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read"
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    return None


def _of_a_library(error: BaseException) -> bool:
    return isinstance(error, (RuntimeError, OSError, ImportError)) or type(error).__module__.split(".")[0] != "builtins"


def _said(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f" ({first[:200]})" if first else ""


def _system(error: OSError) -> str:
    reason = error.strerror or os.strerror(error.errno or 0)
    where = ", ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes)))
    advice = {
        errno.ENOSPC: ": free some space, or use another disk",
        errno.EDQUOT: ": your quota on this disk is used up",
        errno.EFBIG: ": files may not become so large here (ulimit -f, or the file system's limit)",
        errno.EMFILE: ": raise the limit of open files (ulimit -n)",
        errno.ENFILE: ": this machine has too many files open",
    }.get(error.errno or 0, "")
    return f"{where}: {reason}{advice}" if where else f"{reason}{advice}"
