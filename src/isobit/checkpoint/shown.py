"""Values from files of strangers as they may stand in a message."""

from __future__ import annotations

import reprlib

_MOST_AXES = 8  # that a message shows
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def short(value: object, length: int = 80) -> str:
    """A value from a file as it may stand in a message: escaped, and cut to about ``length`` characters."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"a {type(value).__name__} without end"
    return text if len(text) <= length else text[: length - 3] + "..."


def bare(value: object, length: int = 80) -> str:
    """A value as :func:`short` has it, a text without its quotes: a name within a sentence."""
    shown = short(value, length)
    return shown[1:-1] if isinstance(value, str) else shown


def listed(shape: tuple[int, ...]) -> str:
    """A shape for a message; only the first sizes of one with very many."""
    return str([*shape]) if len(shape) <= _MOST_AXES else f"[{', '.join(map(str, shape[:_MOST_AXES]))}, ...]"
