"""Answers in channels, as gpt-oss writes them (OpenAI's harmony format): what is thought, said and called, taken apart.

An answer is several messages. Each has a header (``<|channel|>analysis``, ``<|channel|>commentary to=functions.NAME
<|constrain|>json``, ``<|channel|>final``), a mark, and its content up to the next mark; the prompt ends within the
first header. Source of the format: OpenAI's description of harmony.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from isobit.engine.grammar import Grammar, quoted
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.server.tools.calls import Call, made

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)

_LONGEST_HEADER = 512
_LAST = (*ENDS, START)  # marks that end a message's content
_RECIPIENT = re.compile(r"(?:^|\s)to=(\S{1,300})")
_FUNCTIONS = "functions."


def used_by(templates: Mapping[str, str]) -> bool:
    """Whether a model answers in channels, from its chat templates."""
    return any(CHANNEL in text and MESSAGE in text for text in templates.values())


class Channels:
    """Takes one answer apart.

    Args:
        calls: whether calls of functions are given as such; else they are text.
        most: calls that are given; those behind them are dropped.

    Attributes:
        thinking: whether what comes next is a thought.
    """

    def __init__(self, calls: bool, most: int | None = None) -> None:
        self._calls, self._most = calls, most
        self._held = ""  # may become part of a mark
        self._header: str | None = ""  # the header so far; None within a message's content
        self._recipient = ""
        self._call: list[str] | None = None  # the arguments so far
        self._count = 0
        self._begun = False  # there was a message
        self.thinking = False

    def push(self, text: str) -> tuple[str, list[str | Call]]:
        """Further text; returns (thoughts, texts and calls) that have become final."""
        text, self._held = self._held + text, ""
        thoughts, found = "", []  # type: str, list[str | Call]
        while text:
            place, mark = _first(text, MARKS)
            if mark is None:
                keep = len(text) - max(_overlap(text, one) for one in MARKS)
                text, self._held = text[:keep], text[keep:]
                place = len(text)
            thought = self._more(text[:place], found)
            thoughts += thought
            if mark is None:
                break
            self._marked(mark, found)
            text = text[place + len(mark) :]
        return thoughts, found

    def finish(self) -> tuple[str, list[str | Call]]:
        """The rest, at the end of the answer."""
        held, self._held = self._held, ""
        found: list[str | Call] = []
        thoughts = self._more(held, found)
        self._close(found)
        return thoughts, found

    def _more(self, text: str, found: list[str | Call]) -> str:
        """Text of what is open; returns what of it is a thought."""
        if not text:
            return ""
        if self._header is not None:
            self._header += text
            if not _may_be_header(self._header):
                found.append(self._header)  # a model that writes no channels
                self._header, self.thinking = None, False
            return ""
        if self._call is not None:
            self._call.append(text)
            return ""
        if self.thinking:
            return text
        found.append(text)
        return ""

    def _marked(self, mark: str, found: list[str | Call]) -> None:
        if mark == MESSAGE and self._header is not None:
            self._open(self._header)
        elif mark in _LAST:
            self._close(found)
            self._header = ""
        elif mark == CHANNEL and self._header is None:
            self._close(found)  # the model left out what ends a message: the next one's header begins
            self._header = mark
        elif self._header is not None:
            self._header += mark

    def _open(self, header: str) -> None:
        """A message's content begins."""
        role, _, rest = header.partition(CHANNEL)
        hit = _RECIPIENT.search(rest) or _RECIPIENT.search(role)
        self._recipient = "" if hit is None else hit[1].split("<")[0]
        channel = rest.split(None, 1)[0].split("<")[0] if rest.strip() else "final"
        self._header, self._begun = None, True
        if self._calls and self._recipient.startswith(_FUNCTIONS):
            self._call, self.thinking = [], False
            return
        self.thinking = channel == "analysis" or bool(self._recipient)

    def _close(self, found: list[str | Call]) -> None:
        """A message's content, or its header, has ended."""
        if self._call is not None:
            text = "".join(self._call)
            call = made(self._recipient.removeprefix(_FUNCTIONS), text.strip() or "{}")
            if call is None:
                found.append(text)
            else:
                self._count += 1
                if self._most is None or self._count <= self._most:
                    found.append(call)
        elif self._header and not self._begun and CHANNEL not in self._header:
            found.append(self._header)
        self._call, self.thinking = None, False


def grammar_of(grammar: Grammar, tokenizer: Tokenizer, *, header: str = "final") -> Grammar:
    """A grammar of a content as one of whole answers: thoughts, then the message whose content it is.

    Args:
        grammar: of the content; of the kind "tools": of whole messages, behind their header's first mark.
        tokenizer: of the model; marks that it has as tokens are written as these.
        header: what the message's header says.

    Raises:
        UsageError: it is written in a way that cannot be put into another.
    """
    if grammar.gbnf:
        raise UsageError(
            "this model answers in channels, and a grammar in GBNF cannot stand in one: write it in Lark's"
        )
    added = {text: id for id, text in tokenizer.added()}
    mark = {text: f"<[{added[text]}]>" if text in added else quoted(text) for text in MARKS}
    inner = json.loads(grammar.source)["grammars"][0] | {"name": "content"}
    said = "@content" if grammar.kind == "tools" else f'{mark[CHANNEL]} "{header}" {mark[MESSAGE]} @content'
    rules = f"""start: thought* {said}
thought: {mark[CHANNEL]} "analysis" {mark[MESSAGE]} /(?s:.*)/ {mark["<|end|>"]} {mark[START]} "assistant"
"""
    return replace(grammar, source=json.dumps({"grammars": [{"lark_grammar": rules}, inner]}))


def _may_be_header(text: str) -> bool:
    """Whether a header can begin so: a role, to whom, a channel."""
    if len(text) > _LONGEST_HEADER or CHANNEL in text:
        return len(text) <= _LONGEST_HEADER
    begin = text.lstrip()
    return any(word.startswith(begin) or begin.startswith(word) for word in ("assistant", "to="))


def _first(text: str, marks: tuple[str, ...]) -> tuple[int, str | None]:
    hits = [(place, mark) for mark in marks if (place := text.find(mark)) >= 0]
    return min(hits) if hits else (len(text), None)


def _overlap(text: str, mark: str) -> int:
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if mark.startswith(text[-size:])), 0)
