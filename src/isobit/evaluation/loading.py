"""Models that are measured: batch-invariant where that can be had, unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import Unsupported
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model


def load_measured(source: Path | Checkpoint, *, batch_invariant: bool | None = None, **options: Any) -> Decoder:
    """Load a checkpoint to be measured.

    Args:
        source: the folder, or the opened checkpoint.
        batch_invariant: whether what is measured beside a token may change none of its bits; None for yes where that
            can be had, and a note where it cannot.
        options: of :func:`isobit.models.weights.load_model`.

    Raises:
        Unsupported: it was asked for, and cannot be had; or nothing can run the checkpoint.
    """
    if batch_invariant is not None:
        return load_model(source, batch_invariant=batch_invariant, **options)
    try:
        return load_model(source, batch_invariant=True, **options)
    except Unsupported as refusal:
        model = load_model(source, **options)
        model.notes += (
            "measured without batch invariance, so that the last digits depend on what is computed at once: "
            + "; ".join(refusal.reasons),
        )
        return model
