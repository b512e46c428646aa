"""The body of ``/v1/responses``."""

from __future__ import annotations

from typing import Any

import msgspec

REFUSED = {
    "previous_response_id": "nothing is stored: send the whole conversation as input",
    "conversation": "nothing is stored: send the whole conversation as input",
    "background": "answers are given at once; use stream",
    "prompt": "there are no stored prompts",
    "context_management": "conversations are not shortened",
}
IDLE = frozenset(
    """store include metadata user safety_identifier prompt_cache_key prompt_cache_retention service_tier stream_options
    max_tool_calls""".split()
)


class ResponsesRequest(msgspec.Struct):
    """A conversation to be answered; the names are OpenAI's."""

    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    stream: bool | None = None
    priority: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
