"""What a model thinks before it answers, split off from the answer: in pieces or whole, the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isobit.engine.grammar import Section
from isobit.engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Marks:
    """What stands around a model's thoughts."""

    begin: str
    end: str


# The first whose end a chat template contains.
KINDS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
)
_MOST_SPACES = 64  # in front of the mark that begins it


def marks_of(templates: Mapping[str, str]) -> Marks | None:
    """Those of a model, from its chat templates; None for a model that does not think."""
    return next((marks for marks in KINDS for text in templates.values() if marks.end in text), None)


def opened(prompt: str, marks: Marks) -> bool:
    """Whether a rendered conversation ends within a section of thoughts."""
    return prompt.rstrip().endswith(marks.begin)


def section(tokenizer: Tokenizer, marks: Marks, open: bool) -> Section:
    """What may stand in front of an answer by a grammar."""
    begin = next((id for id, text in tokenizer.added() if text == marks.begin), None)
    return Section(begin, marks.end, open)


class Splitter:
    """Splits one answer.

    Spaces around the thoughts belong to neither part.

    Args:
        marks: around the thoughts; None splits nothing.
        open: whether the prompt has begun them.
        calls: what begins calls of tools where a model may stop thinking for one: it ends the thoughts, and stays.

    Attributes:
        thinking: whether what comes next is a thought.
    """

    def __init__(self, marks: Marks | None, open: bool = False, calls: str = "") -> None:
        self._marks, self._calls = marks, calls
        self.thinking = marks is not None and open
        self._before = marks is not None and not open  # the mark that begins them may still come
        self._held = ""
        self._said = False  # a thought, behind its first spaces
        self._behind = False  # spaces behind the thoughts are to go

    def push(self, text: str) -> tuple[str, str]:
        """Further text; returns (thoughts, answer) that have become final."""
        if self._marks is None:
            return "", text
        text, self._held = self._held + text, ""
        if self._before:
            stripped = text.lstrip()
            spaces = len(text) - len(stripped)
            mark = self._marks.begin
            if spaces <= _MOST_SPACES and len(stripped) < len(mark) and mark.startswith(stripped):
                self._held = text
                return "", ""
            self._before = False
            if spaces > _MOST_SPACES or not stripped.startswith(mark):
                return "", text
            self.thinking, text = True, stripped[len(mark) :]
        return self._thought(text, self._marks.end) if self.thinking else ("", self._answer(text))

    def _thought(self, text: str, end: str) -> tuple[str, str]:
        if not self._said:
            text = text.lstrip()
            self._said = bool(text)
        found = [(place, mark) for mark in (end, self._calls) if mark and (place := text.find(mark)) >= 0]
        if found:
            place, mark = min(found)
            self.thinking, self._behind = False, True
            return text[:place].rstrip(), self._answer(text[place + (len(end) if mark == end else 0) :])
        keep = len(text) - max(_overlap(text, mark) for mark in (end, self._calls))
        keep = len(text[:keep].rstrip())
        self._held = text[keep:]
        return text[:keep], ""

    def _answer(self, text: str) -> str:
        if self._behind:
            text = text.lstrip()
            self._behind = not text
        return text

    def finish(self) -> tuple[str, str]:
        """The rest, at the end of the answer."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self.thinking else ("", held)


def _overlap(text: str, mark: str) -> int:
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if mark.startswith(text[-size:])), 0)
