"""Conversations as token ids. What people write into messages is text: it never becomes a token that steers."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from isobit.engine import chat
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError

Messages = Sequence[Mapping[str, Any]]

_WHOLE_MESSAGE = re.compile(r"\bm(?:sg|essages?)?(?:\s*\|\s*tojson|\.items\()")  # all keys of a message at once


def encode(
    tokenizer: Tokenizer,
    template: str,
    messages: Messages,
    arrange: Callable[[Messages], Messages] | None = None,
    hidden: Sequence[str] = (),
    **options: Any,
) -> list[int]:
    """Token ids of a conversation.

    Special tokens of the template are those tokens. Where a message has their text, as ``<|im_end|>``, that text is
    encoded like any other, also where it begins in one part of the content and ends in another. Neighbouring parts of
    text are one, and empty ones are none.

    Args:
        tokenizer: of the model.
        template, messages, options: as :func:`isobit.engine.chat.render` takes them.
        arrange: puts the messages into the order that the template wants; what it adds is the template's own.
        hidden: texts of tokens that are not special and steer all the same: those that stand for media.

    Raises:
        UsageError: the template would leave out calls of tools, what they gave, tools or documents without a word.
        UsageError, TemplateError, CheckpointError: as rendering and encoding raise them.
    """
    _require_read(template, messages, options)
    controls = (*tokenizer.controls, *(text for text in hidden if text and text not in tokenizer.controls))
    marks = _Marks(controls)
    read: Messages = [{**message, "content": joined(message["content"])} if "content" in message else message
                      for message in messages]  # fmt: skip
    if controls:
        read = [{key: marks.hidden(key, value) for key, value in message.items()} for message in read]
    if arrange is not None:
        read = arrange(read)
    text = chat.render(template, read, special_tokens=tokenizer.special_tokens, **options)
    _require_results(template, read, text)
    ids: list[int] = []
    for part, hidden in marks.found(text):
        ids += tokenizer.encode(part, add_special=False) if part else []
        ids += _as_text(tokenizer, hidden) if hidden else []
    return ids


def _require_read(template: str, messages: Messages, options: Mapping[str, Any]) -> None:
    """Raises a UsageError for what the template has no word for: it would be lost, and the answer another."""
    lost = "the chat template of this model does not read {}, and the model would not see {}: {}"
    if "tool_calls" not in template and not _WHOLE_MESSAGE.search(template):
        for place, message in enumerate(messages):
            if message.get("tool_calls"):
                found = lost.format("calls of tools", "these", "leave them out, or write them into its content")
                raise UsageError(f"messages[{place}].tool_calls: {found}")
    for name in ("tools", "documents"):
        if options.get(name) and name not in template:
            raise UsageError(f"{name}: {lost.format(name, 'them', 'leave them out, or write them into a message')}")


def _require_results(template: str, messages: Messages, text: str) -> None:
    """Raises a UsageError for what a tool gave and a template that has no word for tools left out of its text."""
    if "tool" in template:
        return
    for place, message in enumerate(messages):
        given = message.get("content")
        if message.get("role") != "tool" or not isinstance(given, str) or not given.strip():
            continue
        if given.strip() not in text and json.dumps(given)[1:-1] not in text:
            raise UsageError(
                f"messages[{place}] is what a tool gave, and the chat template of this model leaves it out: the model"
                " would not see it; write it into a message of the user"
            )


def parts_of(messages: Messages) -> list[str]:
    """The kinds of the parts of messages that stand for media, in their order."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    found = [part.get("type") for part in parts if isinstance(part, Mapping)]
    return [kind for kind in found if kind in ("image", "video", "audio")]


def joined(content: Any) -> Any:
    """The content of a message, its neighbouring parts of text as one: templates write them without anything between.

    Empty ones are left out, unless there is nothing else. What is no list stays as it is.
    """
    if not isinstance(content, list | tuple):
        return content
    made: list[Any] = []
    for part in content:
        if not _is_text(part):
            made.append(part)
        elif made and _is_text(made[-1]):
            made[-1] = {**made[-1], "text": made[-1]["text"] + part["text"]}
        elif part["text"]:
            made.append(part)
    return made or list(content[:1])


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in (None, "text") and isinstance(part.get("text"), str)


def _text_of(part: Any) -> str:
    """What of a part a template may write beside what is written of another."""
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


class _Marks:
    """Stands texts that nobody can guess in the place of control tokens, and finds them again.

    Args:
        controls: texts of the tokens that steer.
    """

    def __init__(self, controls: Sequence[str]) -> None:
        self._secret = secrets.token_hex(12)
        self._any = re.compile("|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True)))
        self._hidden: list[str] = []

    def hidden(self, key: str, value: Any) -> Any:
        """The value of a message's key with marks."""
        made = self.hide(value)
        return self._over_parts(made) if key == "content" and isinstance(made, list) else made

    def _over_parts(self, parts: list[Any]) -> list[Any]:
        """Parts with marks for each piece of a control token that would arise if a template wrote nothing between."""
        texts = [_text_of(part) for part in parts]
        begins = list(accumulate(map(len, texts), initial=0))
        cuts: list[list[tuple[int, int]]] = [[] for _ in texts]
        for hit in self._any.finditer("".join(texts)):
            spans = [(max(hit.start(), begin) - begin, min(hit.end(), end) - begin) for begin, end in pairwise(begins)]
            held = [place for place, (begin, end) in enumerate(spans) if begin < end]
            for place in held if len(held) > 1 else ():
                cuts[place].append(spans[place])
        for place, found in enumerate(cuts):
            text = texts[place]
            for begin, end in reversed(found):
                text = text[:begin] + self._put(text[begin:end]) + text[end:]
            if found:
                parts[place] = {**parts[place], "text": text} if isinstance(parts[place], Mapping) else text
        return parts

    def hide(self, value: Any) -> Any:
        """The value with marks, in all its texts."""
        if isinstance(value, str):
            return self._any.sub(self._mark, value)
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def _mark(self, control: re.Match[str]) -> str:
        return self._put(control[0])

    def _put(self, text: str) -> str:
        """The mark of a text."""
        self._hidden.append(text)
        return f"({self._secret}:{len(self._hidden) - 1})"

    def found(self, text: str) -> list[tuple[str, str]]:
        """The parts of a text, each with the control token's text that stood behind it; empty for the last."""
        if not self._hidden:
            return [(text, "")]
        pieces = re.split(rf"\({self._secret}:(\d+)\)", text)
        hidden = [self._hidden[int(number)] for number in pieces[1::2]]
        return list(zip(pieces[::2], [*hidden, ""], strict=True))


def _as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a control token's text, none of them special: it is cut so that it is not recognized."""
    for pieces in ((text[:1], text[1:]), text):
        ids = [id for piece in pieces if piece for id in tokenizer.encode(piece, add_special=False)]
        if not any(tokenizer.is_special(id) for id in ids):
            return ids
    return [id for id in ids if not tokenizer.is_special(id)]
