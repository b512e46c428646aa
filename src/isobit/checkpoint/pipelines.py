"""Folders that hold several models, one of which is a language model: pipelines of speech, as GLM-TTS is.

Whoever asks for a model gets the language model; what copies a folder takes the rest along.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from isobit.checkpoint.files import is_file, is_folder, is_there, why
from isobit.checkpoint.folder import entries, inside
from isobit.errors import CheckpointError, UsageError

MODEL, FLOW = "llm", "flow/flow.pt"
_CODE = (".py", ".so", ".sh", ".ckpt")  # and programs of TorchScript
_HALF = ".isobit-part"  # what a file is called before it is whole


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline of speech."""
    return is_folder(folder) and all(is_there(folder / part) for part in (f"{MODEL}/config.json", FLOW))


def language_model(folder: Path) -> Path:
    """The folder of a pipeline's language model; any other folder as it is."""
    return folder / MODEL if not is_there(folder / "config.json") and is_pipeline(folder) else folder


def others(folder: Path) -> list[Path]:
    """The files of a pipeline beside its language model, relative to it, sorted: no code, nothing that leads out."""
    found: list[Path] = []
    for path in entries(folder):
        if is_folder(path) and path.name != MODEL and not path.name.startswith("."):
            found += [one for one in entries(path) if is_file(one)]
        elif is_file(path):
            found.append(path)
    kept = [path for path in found if path.suffix.lower() not in _CODE and inside(path, folder)]
    return [path.relative_to(folder) for path in kept]


def copy_others(source: Path, target: Path, overwrite: bool) -> None:
    """Copies what :func:`others` lists, each file whole or not at all; one that is there already is left.

    Raises:
        UsageError: the target has another file of the same name, and nothing may be overwritten; or it is the source.
        CheckpointError: a file cannot be copied.
    """
    if target.resolve() == source.resolve():
        raise UsageError(f"{target} is the model itself: name another folder")
    listed = others(source)
    left = [one for one in listed if not _same(source / one, target / one)]
    taken = [one for one in left if is_there(target / one)]
    if taken and not overwrite:
        raise UsageError(f"{target} has another {taken[0]}: name another folder, or replace it with --overwrite")
    for one in left:
        half = target / one.with_name(one.name + _HALF)
        try:
            half.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / one, half)
            os.replace(half, target / one)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise CheckpointError(f"cannot be copied to {target}: {why(error)}", file=source / one) from None


def _same(one: Path, two: Path) -> bool:
    return is_file(two) and filecmp.cmp(one, two, shallow=False)
