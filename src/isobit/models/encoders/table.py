"""Opens the tower of a checkpoint by its row of :mod:`isobit.models.towers`, whose file is imported only then."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import UsageError
from isobit.media.values import PLURALS
from isobit.models.media import Tower
from isobit.models.names import is_beside
from isobit.models.towers import tower_of

EXTRA = "pip install 'isobit[media]'"
_NEEDED = ("transformers",)  # packages that every tower is made of
Opener = Callable[[Checkpoint, torch.dtype, "torch.device | None"], Tower]


def open_tower(ck: Checkpoint, dtype: torch.dtype, device: torch.device | None = None) -> Tower | str:
    """The tower of a checkpoint; or why there is none, and what to do, as a sentence for who gives it media.

    Args:
        ck: the checkpoint; its tensors under the names that they are stored under.
        dtype, device: of its decoder.

    Raises:
        CheckpointError: tensors of the tower are missing or misshapen, or files beside them are wrong.
        ModelError: its configuration asks for what is not implemented.
    """
    row, why = tower_of(ck.config), why_none(ck.config)
    if row is None or why is not None:
        return str(why)
    if not any(map(is_beside, ck.tensors)):
        takes = " and ".join(PLURALS[kind] for kind in row.kinds)
        return f"this checkpoint has no tensors of what reads {takes}: text works; take the whole model for more"
    opener: Opener = getattr(importlib.import_module(f"isobit.models.encoders.{row.file}"), row.opener)
    try:
        return opener(ck, dtype, device)
    except UsageError as error:  # a package that its own parts need: text works without
        return str(error)


def why_none(config: Mapping[str, Any]) -> str | None:
    """Why no tower of a model with this ``config.json`` is opened, and what to do; None where one is."""
    row = tower_of(config)
    if row is None:
        return "this model reads text alone: leave out the images, videos and sounds, or use a model that takes them"
    if not row.file:
        takes = " and ".join(PLURALS[kind] for kind in row.kinds)
        return f"this model takes {takes}, and isobit runs its decoder alone, on text: leave them out"
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"images, videos and sounds need {' and '.join(missing)}, which is not installed: {EXTRA}"
    return None
