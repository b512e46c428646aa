"""An answer taken apart while it comes: what the model thinks, what it says, which tools it calls."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isobit.engine.answer import Piece
from isobit.engine.grammar import Grammar
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.server import channels, reasoning
from isobit.server.channels import Channels
from isobit.server.errors import wrong
from isobit.server.reasoning import Marks, Splitter
from isobit.server.tools.asked import Asked
from isobit.server.tools.calls import Call
from isobit.server.tools.forced import forced
from isobit.server.tools.scan import Scanner

_ENDING = 24  # tokens of a prompt, in which a section of thoughts may be begun
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Shape:
    """The form of a request's answers.

    Attributes:
        grammar: which are right; None for all.
        marks: around what the model thinks; None if it does not.
        open: whether the prompt has begun that.
        tools: that may be called.
        kept: special tokens that are marks.
        channels: whether thoughts, texts and calls are in channels.
    """

    grammar: Grammar | None = None
    marks: Marks | None = None
    open: bool = False
    tools: Asked = field(default_factory=Asked)
    kept: tuple[int, ...] = ()
    channels: bool = False

    def reader(self) -> Reader:
        """What takes one of the answers apart."""
        return Reader(self)


def shape_of(tokenizer: Tokenizer, prompt: Sequence[int], grammar: Grammar | None, tools: Asked) -> Shape:
    """The form of the answers to a conversation.

    Args:
        tokenizer: of the model.
        prompt: the conversation.
        grammar: that was asked for.
        tools: that were asked for.

    Raises:
        Refusal: a call is to be forced and the tool's schema cannot be enforced, or an answer of another form is asked
            for, too.
    """
    in_channels = channels.used_by(tokenizer.chat_templates)
    marks = None if in_channels else reasoning.marks_of(tokenizer.chat_templates)
    open = marks is not None and reasoning.opened(tokenizer.decode(prompt[-_ENDING:], skip_special=False), marks)
    if tools.form is not None and tools.forced:
        if grammar is not None:
            raise wrong(
                "tool_choice asks for a call, and another field for an answer of a form: give one", "tool_choice"
            )
        try:
            chosen = {name: tools.schemas[name] for name in tools.forced}
            grammar = forced(tools.form, tokenizer, chosen, many=tools.many)
        except UsageError as error:
            raise wrong(f"tools: {error}", "tools") from None
    if grammar is not None and marks is not None:
        grammar = replace(grammar, after=reasoning.section(tokenizer, marks, open))
    if grammar is not None and in_channels:
        grammar = _in_channels(grammar, tokenizer)
    written = {*(() if tools.form is None else tools.form.marks), *(() if marks is None else (marks.begin, marks.end))}
    written |= {*channels.MARKS} if in_channels else set()
    kept = tuple(id for id, text in tokenizer.added() if text in written and tokenizer.is_special(id))
    return Shape(grammar, marks, open, tools, kept, in_channels)


def _in_channels(grammar: Grammar, tokenizer: Tokenizer) -> Grammar:
    try:
        return channels.grammar_of(grammar, tokenizer)
    except UsageError as error:
        raise wrong(str(error), "grammar") from None


@dataclass(frozen=True)
class Called:
    """A call: its place among those of the answer, its id, name and arguments as JSON text."""

    index: int
    id: str
    name: str
    arguments: str

    def whole(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class News:
    """What is new of an answer."""

    thought: str = ""
    text: str = ""
    calls: tuple[Called, ...] = ()


class Reader:
    """Takes one answer apart.

    Attributes:
        thoughts, text, calls: so far.
        reasoning_tokens: of the thoughts, with their marks.
    """

    def __init__(self, shape: Shape) -> None:
        form = shape.tools.form
        self._splitter = Splitter(shape.marks, shape.open, "" if form is None else form.interrupts)
        most = None if shape.tools.many else 1
        self._scanner = None if form is None or form.channels else Scanner(form, shape.tools.schemas, most)
        self._channels = Channels(form is not None, most) if shape.channels else None
        self._short = form is not None and form.short
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self.calls: list[Called] = []
        self.reasoning_tokens = 0

    @property
    def thoughts(self) -> str:
        """What the model has thought."""
        return "".join(self._thoughts)

    @property
    def text(self) -> str:
        """What it has said."""
        return "".join(self._texts)

    def see(self, piece: Piece) -> News:
        """The next piece of the answer, its last one included."""
        split = self._splitter if self._channels is None else self._channels
        was = split.thinking
        thought, parts = self._in_parts(piece.text, piece.completion is not None)
        if was or split.thinking:
            self.reasoning_tokens += len(piece.token_ids)
        said = "".join(part for part in parts if isinstance(part, str))
        calls = tuple(self._called(part) for part in parts if isinstance(part, Call))
        self._thoughts.append(thought)
        self._texts.append(said)
        return News(thought, said, calls)

    def _in_parts(self, text: str, last: bool) -> tuple[str, Iterable[str | Call]]:
        """What of further text is thought, and what is said and called."""
        if self._channels is not None:
            thought, parts = self._channels.push(text)
            more, rest = self._channels.finish() if last else ("", [])
            return thought + more, [*parts, *rest]
        thought, text = self._splitter.push(text)
        if last:
            more, behind = self._splitter.finish()
            thought, text = thought + more, text + behind
        return thought, self._parts(text, last)

    def _parts(self, text: str, last: bool) -> Iterable[str | Call]:
        if self._scanner is None:
            return [text]
        return [*self._scanner.push(text), *(self._scanner.finish() if last else [])]

    def _called(self, call: Call) -> Called:
        id = call.id
        if id is None:
            id = _word(9) if self._short else f"call_{_word(24)}"
        self.calls.append(Called(len(self.calls), id, call.name, call.arguments))
        return self.calls[-1]

    def reason(self, finished: str) -> str:
        """Why the answer ended, as OpenAI says it."""
        return "tool_calls" if self.calls and finished == "stop" else finished


def _word(letters: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(letters))
