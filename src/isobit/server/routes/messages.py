"""``/v1/messages``: conversations answered, as Anthropic's clients ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.engine.answer import Completion
from isobit.errors import IsobitError
from isobit.server import blocks, chats, items
from isobit.server.blocks import Blocks
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.chats import Event, Job
from isobit.server.errors import refusal, wrong
from isobit.server.logs import note
from isobit.server.replies import EventStream, json_reply, named_event, unless_gone
from isobit.server.schema.chat import ChatRequest
from isobit.server.schema.messages import IDLE, REFUSED, MessagesRequest
from isobit.server.serving import Serving
from isobit.server.usage import Count

_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream")
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "abort": "end_turn"}
# OpenAI's words for errors, where Anthropic has others.
_TYPES = {"server_error": "api_error", "request_too_large": "request_too_large"}
Handler = Callable[[Request], Awaitable[Response]]


def routes(serving: Serving) -> list[Route]:
    """The routes."""

    async def answer(request: Request) -> Response:
        body, headers = await _read(request, serving)
        if body.max_tokens is None:
            raise wrong("max_tokens is missing", "max_tokens")
        job = await chats.read_job(serving, as_chat(body))
        if body.stream:
            events = _in_events(serving, job, request)
            return EventStream(events, serving.settings.limits.ping, headers)
        return json_reply(await unless_gone(request.receive, _whole(serving, job)), headers=headers)

    async def count(request: Request) -> Response:
        body, headers = await _read(request, serving)
        job = await chats.read_job(serving, as_chat(msgspec.structs.replace(body, max_tokens=None)))
        return json_reply({"input_tokens": len(job.prompt.ids)}, headers=headers)

    return [
        Route("/v1/messages", _said_so(answer), methods=["POST"]),
        Route("/v1/messages/count_tokens", _said_so(count), methods=["POST"]),
    ]


async def _read(request: Request, serving: Serving) -> tuple[MessagesRequest, dict[str, str]]:
    found = await read_object(request, serving.settings.limits)
    body, unknown = read_as(found, MessagesRequest, REFUSED, IDLE)
    serving.require_model(body.model)
    return body, warning(unknown)


def _said_so(handler: Handler) -> Handler:
    """The same; errors are told in Anthropic's shape."""

    async def handled(request: Request) -> Response:
        try:
            return await handler(request)
        except IsobitError as error:
            found = refusal(error)
            if found.status >= 500:
                note(request.scope, error)
            return json_reply(_error(error), found.status, found.all_headers)

    return handled


def _error(error: BaseException, *, asked: bool = True) -> dict[str, Any]:
    told = refusal(error, asked=asked).body["error"]
    kind = _TYPES.get(told["type"], told["type"])
    return {"type": "error", "error": {"type": kind, "message": told["message"]}}


def as_chat(body: MessagesRequest) -> ChatRequest:
    """The same request as a chat.

    Raises:
        Refusal: a block or a field is none that is served.
    """
    choice, parallel = blocks.choice(body.tool_choice)
    format = body.output_format or (body.output_config or {}).get("format")
    if format is not None and not isinstance(format, dict):
        raise wrong("output_config.format must be an object", "output_config")
    thinking = (body.thinking or {}).get("type")
    if thinking not in (None, "enabled", "disabled", "adaptive"):
        raise wrong("thinking.type must be enabled, disabled or adaptive", "thinking")
    effort = (body.output_config or {}).get("effort")
    variables = {"enable_thinking": thinking != "disabled"} if thinking is not None else None
    return ChatRequest(
        **{name: getattr(body, name) for name in _SAME},
        messages=blocks.messages(body.messages, body.system),
        stop=body.stop_sequences,
        tools=blocks.tools(body.tools),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=format,
        reasoning_effort=effort if isinstance(effort, str) else None,
        chat_template_kwargs=variables,
    )


def _message(serving: Serving, content: list[dict[str, Any]], count: Count) -> dict[str, Any]:
    return {
        "id": items.new("msg"),
        "type": "message",
        "role": "assistant",
        "model": serving.name,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(count),
    }


def _usage(count: Count) -> dict[str, int]:
    """Tokens; those that were read from the cache are counted by themselves."""
    return {
        "input_tokens": count.prompt - count.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": count.cached,
        "output_tokens": count.completion,
    }


def _ended(reason: str, done: Completion) -> dict[str, Any]:
    if isinstance(done.stop, str) and reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": done.stop}
    return {"stop_reason": _REASONS[reason], "stop_sequence": None}


async def _whole(serving: Serving, job: Job) -> dict[str, Any]:
    made = Blocks()

    def hear(one: Event) -> None:
        for _ in made.add(one.news):
            pass

    (answer,), count = await chats.whole(serving, job, hear)
    for _ in made.close():
        pass
    return _message(serving, made.content, count) | _ended(answer.reason, answer.completion)


async def _in_events(serving: Serving, job: Job, request: Request) -> AsyncIterator[bytes]:
    """Events; an error before the first is a reply of its own, as is any other route's."""
    count = job.count()
    made, begun = Blocks(), False
    try:
        async with aclosing(chats.follow(serving, job, count)) as came:
            async for batch in came:
                events: list[dict[str, Any]] = []
                for one in batch:
                    if not begun:
                        begun = True
                        events.append({"type": "message_start", "message": _message(serving, [], job.count())})
                    events += made.add(one.news)
                    done = one.piece.completion
                    if done is not None and one.reason is not None:
                        events += made.close()
                        ended = {"type": "message_delta", "delta": _ended(one.reason, done), "usage": _usage(count)}
                        events += [ended, {"type": "message_stop"}]
                if events:
                    yield b"".join(map(named_event, events))
    except Exception as error:
        if not begun:
            raise
        note(request.scope, error)
        yield named_event(_error(error, asked=False))
