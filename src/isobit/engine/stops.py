"""Texts that end an answer."""

from __future__ import annotations

from collections.abc import Sequence


class StopWatch:
    """Finds stop strings in text that arrives piece by piece, and holds back what may become one.

    Args:
        stop: the texts to find. The one that is complete first ends the text, however the text is cut into pieces
            (the longer of two that end together); it and what follows are dropped.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Add text; returns what is safe to give out. After a hit (``found``), nothing more comes."""
        if self.found is not None:
            return ""
        if not self._stop:
            return piece
        text = self._held + piece
        hits = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stop if stop in text]
        if hits:
            _, position, self.found = min(hits)
            self._held = ""
            return text[:position]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text held back when the answer ends without becoming a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
