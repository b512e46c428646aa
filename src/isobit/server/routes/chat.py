"""``/v1/chat/completions``: conversations answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server import chats, logprobs
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.chats import Answered, Event, Job
from isobit.server.reading import Called
from isobit.server.replies import DONE, EventStream, event, json_reply, unless_gone
from isobit.server.requests import Head, require
from isobit.server.schema.chat import REFUSED, ChatRequest
from isobit.server.schema.common import IDLE, StreamOptions
from isobit.server.serving import Serving


def routes(serving: Serving) -> list[Route]:
    """The route."""

    async def answer(request: Request) -> Response:
        found = await read_object(request, serving.settings.limits)
        body, unknown = read_as(found, ChatRequest, REFUSED, IDLE)
        serving.require_model(body.model)
        _, options = require(body, serving.settings.limits)
        job = await chats.read_job(serving, body)
        head, headers = Head.new("chatcmpl", serving.name), warning(unknown)
        if body.stream:
            events = _in_pieces(serving, job, head, options)
            return EventStream(events, serving.settings.limits.ping, headers)
        return json_reply(await unless_gone(request.receive, _whole(serving, job, head)), headers=headers)

    return [Route("/v1/chat/completions", answer, methods=["POST"])]


async def _whole(serving: Serving, job: Job, head: Head) -> dict[str, Any]:
    answers, count = await chats.whole(serving, job)
    choices = [_finished(serving, job, place, answer) for place, answer in enumerate(answers)]
    return _reply(head, "chat.completion", choices) | {"usage": count.now()}


def _finished(serving: Serving, job: Job, place: int, answer: Answered) -> dict[str, Any]:
    """A whole answer."""
    found = None
    if job.top is not None:
        entries = answer.completion.logprobs or ()
        found = {"content": logprobs.chat(serving.tokenizer, entries, job.top), "refusal": None}
    parts = answer.parts
    text = parts.text or (None if parts.calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if parts.thoughts:
        message |= {"reasoning": parts.thoughts, "reasoning_content": parts.thoughts}
    if parts.calls:
        message["tool_calls"] = [call.whole() for call in parts.calls]
    return {"index": place, "message": message, "logprobs": found, "finish_reason": answer.reason}


async def _in_pieces(serving: Serving, job: Job, head: Head, options: StreamOptions) -> AsyncIterator[bytes]:
    count = job.count()
    usage = {"usage": None} if options.include_usage else {}
    begun = [False] * len(job.params)
    async with aclosing(chats.follow(serving, job, count)) as came:
        async for batch in came:
            told = b""
            for one in batch:
                now = {"usage": count.now()} if options.continuous_usage_stats else usage
                for choice in _choices(serving, job, one, begun):
                    told += event(_reply(head, "chat.completion.chunk", [choice]) | now)
            if told:
                yield told
    if options.include_usage:
        yield event(_reply(head, "chat.completion.chunk", []) | {"usage": count.now()})
    yield DONE


def _choices(serving: Serving, job: Job, one: Event, begun: list[bool]) -> list[dict[str, Any]]:
    """What has come of an answer, as chunks have it: often one of them, none while a call is being written."""
    deltas = _deltas(one)
    if not deltas and (one.reason is not None or one.piece.logprobs):
        deltas = [{}]
    if deltas and not begun[one.place]:
        begun[one.place] = True
        deltas[0] = {"role": "assistant", "content": ""} | deltas[0]
    found = None
    if job.top is not None and one.piece.logprobs:
        found = {"content": logprobs.chat(serving.tokenizer, one.piece.logprobs, job.top), "refusal": None}
    last = len(deltas) - 1
    return [
        {
            "index": one.place,
            "delta": delta,
            "logprobs": None if number else found,
            "finish_reason": one.reason if number == last else None,
        }
        for number, delta in enumerate(deltas)
    ]


def _deltas(one: Event) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if one.news.thought:
        found.append({"reasoning": one.news.thought, "reasoning_content": one.news.thought})
    if one.news.text:
        found.append({"content": one.news.text})
    for call in one.news.calls:
        found += [{"tool_calls": [part]} for part in _parts(call)]
    return found


def _parts(call: Called) -> list[dict[str, Any]]:
    """A call in deltas: what it is, then its arguments."""
    whole = call.whole()
    begin = whole | {"index": call.index, "function": {"name": call.name, "arguments": ""}}
    return [begin, {"index": call.index, "function": {"arguments": call.arguments}}]


def _reply(head: Head, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model, "choices": choices}
