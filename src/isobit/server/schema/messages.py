"""The bodies of ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from typing import Any

import msgspec

REFUSED = {
    "mcp_servers": "other servers are not asked",
    "container": "there are no containers",
    "context_management": "conversations are not shortened",
}
IDLE = frozenset({"metadata", "service_tier", "inference_geo", "cache_control", "betas"})


class MessagesRequest(msgspec.Struct):
    """A conversation to be answered; the names are Anthropic's."""

    messages: list[dict[str, Any]] = []
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    stream: bool | None = None
