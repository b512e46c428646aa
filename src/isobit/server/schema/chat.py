"""The body of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Any

import msgspec

from isobit.server.schema.common import REFUSED as COMMON
from isobit.server.schema.common import Sampled

REFUSED = COMMON | {
    "audio": "the model has no voice",
    "functions": "name them in tools",
    "function_call": "say it in tool_choice",
    "web_search_options": "the model does not search the web",
}
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


class Message(msgspec.Struct):
    """A message of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatRequest(Sampled):
    """A conversation to be answered.

    Attributes:
        max_completion_tokens: as ``max_tokens``, which OpenAI called it before.
        logprobs, top_logprobs: of each token, and of this many most probable ones in its place.
        chat_template_kwargs: variables of the model's chat template; those of its own process are refused.
    """

    messages: list[Message] = []
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
