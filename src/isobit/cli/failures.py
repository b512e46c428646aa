"""What the machine refuses (memory, files, recursion), as one clear line; None for what would be a bug in isobit."""

from __future__ import annotations

import errno
import os

from isobit import shortage


def explain(error: BaseException) -> str | None:
    """One line for a user, or None if this is not the machine's doing.

    Args:
        error: what reached the end of the command.
    """
    if (line := shortage.explain(error)) is not None:
        return line
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read"
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    return None


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
