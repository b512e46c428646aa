"""Bodies of ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any

import msgspec

from isobit.server.schema.chat import Message


class TokenizeRequest(msgspec.Struct):
    """A text, or a conversation, to be split into tokens; ``content`` is another name of ``prompt``."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct):
    """Token ids to be read as text."""

    model: str | None = None
    tokens: list[int] = []
