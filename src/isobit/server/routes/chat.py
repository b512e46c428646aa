"""``/v1/chat/completions``: conversations answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.engine.answer import Completion, Piece
from isobit.engine.params import SamplingParams
from isobit.server import logprobs, sampling
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.conversation import prompt_of
from isobit.server.errors import wrong
from isobit.server.replies import DONE, EventStream, event, json_reply, unless_gone
from isobit.server.requests import Head, require
from isobit.server.schema.chat import REFUSED, ChatRequest
from isobit.server.schema.common import IDLE, StreamOptions
from isobit.server.serving import Serving
from isobit.server.usage import Count


@dataclass(frozen=True)
class Job:
    """A request that was read: the conversation as token ids, and how each of its answers is chosen."""

    prompt: tuple[int, ...]
    params: tuple[SamplingParams, ...]
    top: int | None
    priority: int

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """The prompt of every answer."""
        return [self.prompt] * len(self.params)


def routes(serving: Serving) -> list[Route]:
    """The route."""

    async def answer(request: Request) -> Response:
        found = await read_object(request, serving.settings.limits.body)
        body, unknown = read_as(found, ChatRequest, REFUSED, IDLE)
        serving.require_model(body.model)
        _, options = require(body, serving.settings.limits)
        job = await read_job(serving, body)
        head, headers = Head.new("chatcmpl", serving.name), warning(unknown)
        if body.stream:
            events = _in_pieces(serving, job, head, options)
            return EventStream(events, serving.settings.limits.ping, headers)
        return json_reply(await unless_gone(request.receive, _whole(serving, job, head)), headers=headers)

    return [Route("/v1/chat/completions", answer, methods=["POST"])]


async def read_job(serving: Serving, body: ChatRequest) -> Job:
    """What is to be done.

    Raises:
        Refusal: a field is wrong, or the conversation and its answer do not fit the context.
        IsobitError: the template refuses the messages, or a setting is out of range.
    """
    n, _ = require(body, serving.settings.limits)
    _require_served(body)
    top = _top(serving, body)
    opens = body.add_generation_prompt is not False
    prompt = await prompt_of(serving, body.messages, variables=body.chat_template_kwargs, opens=opens)
    if not prompt:
        raise wrong("the conversation is empty: the model's chat template makes no text of it", "messages")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    serving.require_room(len(prompt), asked)
    most = asked or serving.tokenizer.defaults.max_tokens or serving.capacity
    params = sampling.params(body, serving.tokenizer, min(most, serving.capacity - len(prompt)), logprobs=top)
    each = [sampling.seeded(params, seed) for seed in sampling.seeds(params.seed, n)]
    return Job(tuple(prompt), tuple(each), top, body.priority or 0)


def _require_served(body: ChatRequest) -> None:
    """Raises a Refusal for what is asked for and not there."""
    if (body.max_tokens is not None and body.max_tokens < 1) or (
        body.max_completion_tokens is not None and body.max_completion_tokens < 1
    ):
        raise wrong("max_completion_tokens must be 1 or more", "max_completion_tokens")
    if body.modalities not in (None, [], ["text"]):
        raise wrong("modalities: the model writes text only", "modalities")
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise wrong("response_format: only text is served", "response_format", "unsupported_parameter")
    if body.tools and body.tool_choice != "none":
        raise wrong("tools are not served", "tools", "unsupported_parameter")


def _top(serving: Serving, body: ChatRequest) -> int | None:
    """How many most probable tokens are listed in the place of each; None for no log-probabilities."""
    if body.top_logprobs is not None and not body.logprobs:
        raise wrong("top_logprobs need logprobs: true", "top_logprobs")
    most = serving.settings.limits.top_logprobs
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= most:
        raise wrong(f"top_logprobs must be between 0 and {most}, not {body.top_logprobs}", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


async def _whole(serving: Serving, job: Job, head: Head) -> dict[str, Any]:
    made = await serving.whole(job.ids, job.params, priority=job.priority)
    count = Count(len(job.prompt))
    for completion in made:
        count.completion += completion.usage.completion_tokens
        count.cached += completion.usage.cached_tokens
    choices = [_finished(serving, job, place, completion) for place, completion in enumerate(made)]
    return _reply(head, "chat.completion", choices) | {"usage": count.now()}


def _finished(serving: Serving, job: Job, place: int, done: Completion) -> dict[str, Any]:
    """A whole answer."""
    found = None
    if job.top is not None:
        found = {"content": logprobs.chat(serving.tokenizer, done.logprobs or (), job.top), "refusal": None}
    message = {"role": "assistant", "content": done.text, "refusal": None}
    return {"index": place, "message": message, "logprobs": found, "finish_reason": done.finish_reason}


async def _in_pieces(serving: Serving, job: Job, head: Head, options: StreamOptions) -> AsyncIterator[bytes]:
    count = Count(len(job.prompt))
    usage = {"usage": None} if options.include_usage else {}
    begun = [False] * len(job.params)
    async with aclosing(serving.follow(job.ids, job.params, priority=job.priority)) as pieces:
        async for place, piece in pieces:
            count.completion += len(piece.token_ids)
            if piece.completion is not None:
                count.cached += piece.completion.usage.cached_tokens
            if not (piece.text or piece.logprobs or piece.completion):
                continue
            role = {} if begun[place] else {"role": "assistant"}
            begun[place] = True
            now = {"usage": count.now()} if options.continuous_usage_stats else usage
            yield event(_reply(head, "chat.completion.chunk", [_delta(serving, job, place, piece, role)]) | now)
    if options.include_usage:
        yield event(_reply(head, "chat.completion.chunk", []) | {"usage": count.now()})
    yield DONE


def _delta(serving: Serving, job: Job, place: int, piece: Piece, role: dict[str, str]) -> dict[str, Any]:
    """The next part of an answer."""
    found = None
    if job.top is not None and piece.logprobs:
        found = {"content": logprobs.chat(serving.tokenizer, piece.logprobs, job.top), "refusal": None}
    reason = None if piece.completion is None else piece.completion.finish_reason
    content = {"content": piece.text} if piece.text or role else {}
    return {"index": place, "delta": role | content, "logprobs": found, "finish_reason": reason}


def _reply(head: Head, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model, "choices": choices}
