"""Models by name, devices by name: what the functions of the interface begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isobit import arguments
from isobit.errors import UsageError

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
MOST_SEQUENCES = 4096


def find(model: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: what every function here that takes one begins with.

    Args:
        model: a local folder, a Hugging Face id, which is downloaded once, or ``"bundled"``.
        revision: branch, tag or commit of a Hugging Face id.
        weights: False is content with configuration and tokenizer.

    Raises:
        UsageError: ``model`` is no name that a model can have, or a revision is given of what has none.
        SourceError: there is no such model.
    """
    from isobit.checkpoint.source import resolve

    return resolve(model_named("model", model, revision), revision=revision, weights=weights)


def model_named(name: str, model: object, revision: object = None) -> str:
    """The name of a model, checked."""
    found = arguments.path(name, model)
    arguments.optional_text("revision", revision)
    try:
        here = found == "bundled" or Path(found).expanduser().exists()
    except RuntimeError:
        raise UsageError(f"{name} {found}: there is no user of this name, or no home folder is known") from None
    if here and revision is not None:
        what = "comes with isobit" if found == "bundled" else "is on this machine"
        reason = f"{found} {what}, and only models of the Hugging Face hub have revisions"
        raise UsageError(f"revision {revision!r}: {reason}; leave it out")
    return found


def default_name(model: str | Path) -> str:
    """The last part of a path or of a Hugging Face id, without a file's ending, for naming an output folder."""
    name = str(model).rstrip("/").rpartition("/")[2]
    name = name if name not in ("", ".", "..") else Path(model).resolve().name
    return name.removesuffix(".gguf")


def device_and_target(device: str, target: str | None) -> dict[str, Any]:
    """A device and whose lowering runs on it, as what loads models takes them; refused before anything is fetched.

    Raises:
        UsageError: there is no such device or target, or a target without a GPU.
        Unsupported: there is no GPU that can be used.
    """
    arguments.choice("device", device, DEVICES)
    if arguments.optional_text("target", target) is not None or device != "cpu":
        from isobit.models.place import place

        place(device, target)
    return {"device": device, "lowering": target}
