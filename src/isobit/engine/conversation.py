"""Conversations as token ids. What people write into messages is text: it never becomes a token that steers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isobit.engine import chat
from isobit.engine.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


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
    encoded like any other.

    Args:
        tokenizer: of the model.
        template, messages, options: as :func:`isobit.engine.chat.render` takes them.
        arrange: puts the messages into the order that the template wants; what it adds is the template's own.
        hidden: texts of tokens that are not special and steer all the same: those that stand for media.

    Raises:
        UsageError, TemplateError, CheckpointError: as rendering and encoding raise them.
    """
    controls = (*tokenizer.controls, *(text for text in hidden if text and text not in tokenizer.controls))
    marks = _Marks(controls)
    read = (
        [{key: marks.hide(value) for key, value in message.items()} for message in messages] if controls else messages
    )
    if arrange is not None:
        read = arrange(read)
    text = chat.render(template, read, special_tokens=tokenizer.special_tokens, **options)
    ids: list[int] = []
    for part, hidden in marks.found(text):
        ids += tokenizer.encode(part, add_special=False) if part else []
        ids += _as_text(tokenizer, hidden) if hidden else []
    return ids


def parts_of(messages: Messages) -> list[str]:
    """The kinds of the parts of messages that stand for media, in their order."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    found = [part.get("type") for part in parts if isinstance(part, Mapping)]
    return [kind for kind in found if kind in ("image", "video", "audio")]


class _Marks:
    """Stands texts that nobody can guess in the place of control tokens, and finds them again.

    Args:
        controls: texts of the tokens that steer.
    """

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = tuple(controls)
        self._secret = secrets.token_hex(12)
        self._any = re.compile("|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True)))
        self._used = False

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
        self._used = True
        return f"({self._secret}:{self._controls.index(control[0])})"

    def found(self, text: str) -> list[tuple[str, str]]:
        """The parts of a text, each with the control token's text that stood behind it; empty for the last."""
        if not self._used:
            return [(text, "")]
        pieces = re.split(rf"\({self._secret}:(\d+)\)", text)
        hidden = [self._controls[int(number)] for number in pieces[1::2]]
        return list(zip(pieces[::2], [*hidden, ""], strict=True))


def _as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a control token's text, none of them special: it is cut so that it is not recognized."""
    for pieces in ((text[:1], text[1:]), text):
        ids = [id for piece in pieces if piece for id in tokenizer.encode(piece, add_special=False)]
        if not any(tokenizer.is_special(id) for id in ids):
            return ids
    return [id for id in ids if not tokenizer.is_special(id)]
