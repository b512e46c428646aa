"""What a checkpoint asks for that isobit does otherwise, or that other engines do otherwise: said on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from isobit.errors import printable


def show(notes: Iterable[str]) -> None:
    """Prints every note once. They come from ``Checkpoint.notes``, by way of whatever the command has loaded."""
    for note in dict.fromkeys(notes):
        print(f"isobit: note: {printable(note)}", file=sys.stderr)
