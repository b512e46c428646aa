"""Calls found in an answer while it comes: text in pieces becomes text and calls, the same however it is cut.

Every character is looked at a bounded number of times. What turns out to be no call comes out as the text it is.
"""

from __future__ import annotations

from isobit.server.tools.calls import Call, Tools
from isobit.server.tools.forms import Form

Part = str | Call
_SPACES = 256  # before a call that are no text, at most


class Scanner:
    """Reads one answer.

    Args:
        form: how its model writes calls.
        tools: that there are.
        most: calls that are given; those behind them are dropped.
    """

    def __init__(self, form: Form, tools: Tools, most: int | None = None) -> None:
        self._form, self._tools, self._most = form, tools, most
        self._marks = (*form.begin, *form.frames)
        self._held = ""  # outside of a call: what may become part of a mark, and spaces before it
        self._spaces = ""  # before the call that is open
        self._open: str | None = None  # the mark of the call that is open
        self._block: list[str] = []
        self._tail = ""  # the end of the open call, which may begin its last mark
        self._start = form.bare  # nothing but spaces has come
        self.count = 0  # calls found

    def push(self, text: str) -> list[Part]:
        """Further text; returns what has become final."""
        found: list[Part] = []
        while text or self._open is None:
            if self._open is not None:
                text = self._in_call(text, found)
                continue
            text, again = self._outside(self._held + text, found)
            if not again:
                break
        return _joined(found)

    def finish(self) -> list[Part]:
        """The rest, at the end of the answer."""
        found: list[Part] = []
        if self._open is not None:
            self._close("", found)
        if self._held and not (self.count and self._held.isspace()):
            found.append(self._held)
        self._held = ""
        return _joined(found)

    def _outside(self, text: str, found: list[Part]) -> tuple[str, bool]:
        """Text up to the next mark; returns what is behind it, and whether there was one."""
        self._held = ""
        if self._start:
            begin = len(text) - len(text.lstrip())
            if begin == len(text) <= _SPACES:
                self._held = text
                return "", False
            self._start = False
            if begin <= _SPACES and text[begin] == "{":
                self._begin("", text[:begin])
                return text[begin:], True
        hits = [(place, -len(mark), mark) for mark in self._marks if (place := text.find(mark)) >= 0]
        if hits:
            place, _, mark = min(hits)
            before = text[:place]
            kept = _end_of_text(before)
            if kept:
                found.append(before[:kept])
            if mark in self._form.begin:
                self._begin(mark, before[kept:])
            return text[place + len(mark) :], True
        safe = len(text) - max(_overlap(text, mark) for mark in self._marks)
        safe = _end_of_text(text[:safe])
        if safe:
            found.append(text[:safe])
        self._held = text[safe:]
        return "", False

    def _begin(self, mark: str, spaces: str) -> None:
        self._open, self._spaces, self._block, self._tail = mark, spaces, [], ""

    def _in_call(self, text: str, found: list[Part]) -> str:
        """Text of the call that is open; returns what is behind it."""
        end = self._form.end
        if not end:
            self._block.append(text)
            return ""
        seen = self._tail + text
        place = seen.find(end)
        if place < 0:
            keep = min(len(seen), len(end) - 1)
            self._block.append(seen[: len(seen) - keep])
            self._tail = seen[len(seen) - keep :]
            return ""
        self._block.append(seen[:place])
        self._tail = ""
        self._close(end, found)
        return seen[place + len(end) :]

    def _close(self, end: str, found: list[Part]) -> None:
        mark, block = self._open or "", "".join(self._block) + self._tail
        self._open, self._block, self._tail = None, [], ""
        made = self._form.parse(block, self._tools)
        if made is None:
            found.append(self._spaces + mark + block + end)
            return
        for call in made:
            self.count += 1
            if self._most is None or self.count <= self._most:
                found.append(call)


def _end_of_text(text: str) -> int:
    """Where the spaces at its end begin, at most so many as are no text before a call."""
    return max(len(text.rstrip()), len(text) - _SPACES)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of the text that begins the mark."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if mark.startswith(text[-size:])), 0)


def _joined(parts: list[Part]) -> list[Part]:
    """Texts that stand beside each other are one."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        elif part:
            found.append(part)
    return found
