"""``/v1/responses``: conversations answered, as OpenAI's newer interface has it; nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server import chats, items, logprobs
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.chats import Event, Job
from isobit.server.errors import wrong
from isobit.server.items import Items
from isobit.server.replies import EventStream, json_reply, named_event, unless_gone
from isobit.server.schema.chat import ChatRequest
from isobit.server.schema.responses import IDLE, REFUSED, ResponsesRequest
from isobit.server.serving import Serving
from isobit.server.usage import Count

_SAME = (
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "priority", "parallel_tool_calls",
    "chat_template_kwargs",
)  # fmt: skip


def routes(serving: Serving) -> list[Route]:
    """The route."""

    async def respond(request: Request) -> Response:
        found = await read_object(request, serving.settings.limits)
        body, unknown = read_as(found, ResponsesRequest, REFUSED, IDLE)
        serving.require_model(body.model)
        job = await chats.read_job(serving, as_chat(body))
        head, headers = _head(serving, found, body), warning(unknown)
        if body.stream:
            return EventStream(_in_events(serving, job, head), serving.settings.limits.ping, headers)
        return json_reply(await unless_gone(request.receive, _whole(serving, job, head)), headers=headers)

    return [Route("/v1/responses", respond, methods=["POST"])]


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """The same request as a chat.

    Raises:
        Refusal: an item or a field is none that is served.
    """
    if body.truncation not in (None, "disabled"):
        raise wrong("truncation: conversations are not shortened; leave it out, or disabled", "truncation")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise wrong("max_output_tokens must be 1 or more", "max_output_tokens")
    choice = body.tool_choice
    effort = (body.reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise wrong("reasoning.effort must be a word", "reasoning")
    format = (body.text or {}).get("format")
    if format is not None and not isinstance(format, dict):
        raise wrong("text.format must be an object", "text")
    return ChatRequest(
        **{name: getattr(body, name) for name in _SAME},
        messages=items.messages(body.input, body.instructions),
        max_completion_tokens=body.max_output_tokens,
        tools=items.tools(body.tools),
        tool_choice=choice,
        response_format=format,
        reasoning_effort=effort,
        logprobs=body.top_logprobs is not None or None,
        top_logprobs=body.top_logprobs,
    )


def _head(serving: Serving, found: dict[str, Any], body: ResponsesRequest) -> dict[str, Any]:
    """What a response says of its request."""
    return {
        "id": items.new("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": found.get("metadata") or {},
        "model": serving.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _finished(head: dict[str, Any], output: list[dict[str, Any]], count: Count, reason: str) -> dict[str, Any]:
    used = {
        "input_tokens": count.prompt,
        "input_tokens_details": {"cached_tokens": count.cached},
        "output_tokens": count.completion,
        "output_tokens_details": {"reasoning_tokens": count.reasoning},
        "total_tokens": count.prompt + count.completion,
    }
    cut = reason == "length"
    ended = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
    return head | {"status": "completed", "output": output, "usage": used} | ended


async def _whole(serving: Serving, job: Job, head: dict[str, Any]) -> dict[str, Any]:
    made = Items()

    def hear(one: Event) -> None:
        for _ in _told(serving, job, made, one):
            pass

    (answer,), count = await chats.whole(serving, job, hear)
    return _finished(head, made.output, count, answer.reason)


def _told(serving: Serving, job: Job, made: Items, one: Event) -> Iterator[dict[str, Any]]:
    """What has come of the answer, as events."""
    entries = one.piece.logprobs
    listed = logprobs.chat(serving.tokenizer, entries, job.top) if job.top is not None and entries else None
    yield from made.add(one.news, listed)
    if one.reason is not None:
        yield from made.close(one.reason != "length")


async def _in_events(serving: Serving, job: Job, head: dict[str, Any]) -> AsyncIterator[bytes]:
    count = job.count()
    made = Items()
    number = 0

    def told(event: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return named_event(event | {"sequence_number": number - 1})

    async with aclosing(chats.follow(serving, job, count)) as came:
        async for batch in came:
            found = b""
            for one in batch:
                if number == 0:
                    found += told({"type": "response.created", "response": head})
                    found += told({"type": "response.in_progress", "response": head})
                for event in _told(serving, job, made, one):
                    found += told(event)
                if one.reason is not None:
                    done = _finished(head, made.output, count, one.reason)
                    found += told({"type": f"response.{done['status']}", "response": done})
            if found:
                yield found
