"""What the machine refuses (memory, files, recursion), as one clear line; None for what would be a bug in isobit."""

from __future__ import annotations

import errno
import os

from isobit import shortage

# Extras of isobit, and what is imported of the packages that they bring (the last of them has one).
EXTRAS: dict[str, tuple[str, ...]] = {
    "triton": ("triton",),
    "serve": ("llguidance", "msgspec", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "media": ("PIL", "soundfile", "soxr", "transformers"),
    "video": ("av",),
    "speech": ("onnxruntime", "yaml"),
    "gguf": ("gguf",),
    "harness": ("lm_eval",),
}
_OWN = {"PIL": "pillow", "yaml": "pyyaml"}  # names of packages that are imported as something else


def explain(error: BaseException) -> str | None:
    """One line for a user, or None if this is not the machine's doing.

    Args:
        error: what reached the end of the command.
    """
    if (line := shortage.explain(error)) is not None:
        return line
    if isinstance(error, ModuleNotFoundError) and (line := _not_installed(error)) is not None:
        return line
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read"
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    return None


def _not_installed(error: ModuleNotFoundError) -> str | None:
    """A package of somebody else that is missing, and the extra that brings it; None for a part of isobit."""
    root = (error.name or "").partition(".")[0]
    if not root or root == "isobit":
        return None
    name = _OWN.get(root, root.replace("_", "-"))
    extra = next((extra for extra, brings in EXTRAS.items() if root in brings), None)
    wanted = name if extra is None else f"'isobit[{extra}]'"
    return f"the package {name} is not installed: pip install {wanted}"


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
