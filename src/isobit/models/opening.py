"""Checkpoints to run: a family that does not run is refused before a file is missed that could not help it."""

from __future__ import annotations

from pathlib import Path

from isobit.checkpoint import methods
from isobit.checkpoint.files import is_there
from isobit.checkpoint.gguf.wording import in_its_words
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.models.archs import model_config
from isobit.models.planning import read_config


def require_family(folder: Path) -> None:
    """That config.json is of a model that runs, where there is one: of a folder, nothing else is read.

    Raises:
        ModelError: the family does not run, or config.json asks for what isobit does not implement.
        CheckpointError: config.json is damaged.
        Unsupported: the weights are quantized by a method that isobit does not run.
    """
    if is_there(folder / "config.json"):
        config = read_config(folder)
        methods.refuse_unread(config, folder)  # a method that nobody reads is said before the family, as by plans
        model_config(config)


def runnable(folder: str | Path) -> Checkpoint:
    """A folder's checkpoint, of whose weights headers are read.

    Args:
        folder: as :meth:`Checkpoint.open` takes it.

    Raises:
        ModelError: as :func:`require_family` says.
        CheckpointError: files are missing or damaged.
    """
    try:
        ck = Checkpoint.open(folder)
    except CheckpointError:
        require_family(Path(folder))
        raise
    with in_its_words(ck.path):
        ck.require_readable()  # what nobody can read is refused first
        model_config(ck.config, ck.tensors)
    return ck
