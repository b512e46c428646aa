"""Conversations to be answered, whichever route they come by: read, followed, and their answers taken apart."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from isobit.engine.answer import Completion, Piece
from isobit.engine.params import SamplingParams
from isobit.engine.prepare import Prompt
from isobit.models.media import MediaPrompt
from isobit.server import sampling
from isobit.server.conversation import prompt_of
from isobit.server.errors import wrong
from isobit.server.reading import News, Reader, Shape, shape_of
from isobit.server.requests import require
from isobit.server.schema.chat import ChatRequest
from isobit.server.serving import Serving
from isobit.server.shapes import grammar_of, require_usable
from isobit.server.tools import asked as tools_asked
from isobit.server.usage import Count

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Job:
    """A request that was read: the conversation as a prompt, how each of its answers is chosen, and its form."""

    prompt: MediaPrompt
    params: tuple[SamplingParams, ...]
    top: int | None
    priority: int
    shape: Shape = field(default_factory=Shape)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompt of every answer."""
        prompt: Prompt = self.prompt if self.prompt.placed else self.prompt.ids
        return [prompt] * len(self.params)

    def count(self) -> Count:
        """Of what it costs, before the first token of an answer."""
        media: dict[str, int] = {}
        for placed in self.prompt.placed:
            media[placed.piece.kind] = media.get(placed.piece.kind, 0) + placed.piece.tokens
        return Count(len(self.prompt.ids), media)


@dataclass(frozen=True)
class Answered:
    """A whole answer, and its parts."""

    completion: Completion
    parts: Reader

    @property
    def reason(self) -> str:
        """Why it ended, as OpenAI says it."""
        return self.parts.reason(self.completion.finish_reason)


@dataclass(frozen=True)
class Event:
    """What has come of one of the answers.

    Attributes:
        place: of the answer.
        piece: of it, as the engine gives it.
        news: what of its parts is new.
        parts: all of them so far.
    """

    place: int
    piece: Piece
    news: News
    parts: Reader

    @property
    def reason(self) -> str | None:
        """Why the answer has ended; None while it goes on."""
        done = self.piece.completion
        return None if done is None else self.parts.reason(done.finish_reason)


async def read_job(serving: Serving, body: ChatRequest) -> Job:
    """What is to be done.

    Raises:
        Refusal: a field is wrong, or the conversation and its answer do not fit the context.
        IsobitError: the template refuses the messages, or a setting is out of range.
    """
    n, _ = require(body, serving.settings.limits)
    _require_served(body)
    top = _top(serving, body)
    grammar = grammar_of(body)
    tools = tools_asked.read(serving.tokenizer, body.tools, body.tool_choice, body.parallel_tool_calls)
    opens = body.add_generation_prompt is not False
    prompt = await prompt_of(
        serving, body.messages, variables=_variables(body), tools=list(tools.listed) or None, opens=opens
    )
    if not prompt.ids:
        raise wrong("the conversation is empty: the model's chat template makes no text of it", "messages")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    serving.require_room(len(prompt.ids), asked)
    most = asked or serving.tokenizer.defaults.max_tokens or serving.capacity
    params = sampling.params(body, serving.tokenizer, min(most, serving.capacity - len(prompt.ids)), logprobs=top)
    shape = shape_of(serving.tokenizer, prompt.ids, grammar, tools)
    if shape.kept:
        params = replace(params, kept_special=shape.kept)
    if shape.grammar is not None:
        await require_usable(serving, body, shape.grammar)
    each = [sampling.seeded(params, seed) for seed in sampling.seeds(params.seed, n)]
    return Job(prompt, tuple(each), top, body.priority or 0, shape)


def _variables(body: ChatRequest) -> dict[str, Any]:
    """Of the template."""
    found = dict(body.chat_template_kwargs or {})
    effort = body.reasoning_effort
    if effort is not None:
        if effort not in EFFORTS:
            raise wrong(f"reasoning_effort must be one of {', '.join(EFFORTS)}", "reasoning_effort")
        found = {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {}) | found
    return found


def _require_served(body: ChatRequest) -> None:
    """Raises a Refusal for what is asked for and not there."""
    for name in ("max_tokens", "max_completion_tokens"):
        most = getattr(body, name)
        if most is not None and most < 1:
            raise wrong(f"{name} must be 1 or more", name)
    if body.modalities not in (None, [], ["text"]):
        raise wrong("modalities: the model writes text only", "modalities")


def _top(serving: Serving, body: ChatRequest) -> int | None:
    """How many most probable tokens are listed in the place of each; None for no log-probabilities."""
    if body.top_logprobs is not None and not body.logprobs:
        raise wrong("top_logprobs need logprobs: true", "top_logprobs")
    most = serving.settings.limits.top_logprobs
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= most:
        raise wrong(f"top_logprobs must be between 0 and {most}, not {body.top_logprobs}", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


class _Reading:
    """Takes the answers of a job apart, and counts what they cost."""

    def __init__(self, job: Job, count: Count) -> None:
        self.parts = [job.shape.reader() for _ in job.params]
        self._count = count

    def see(self, place: int, piece: Piece) -> Event:
        """The next piece of one of them."""
        parts, count = self.parts[place], self._count
        before = parts.reasoning_tokens
        news = parts.see(piece)
        count.completion += len(piece.token_ids)
        count.reasoning += parts.reasoning_tokens - before
        if piece.completion is not None:
            count.cached += piece.completion.usage.cached_tokens
        return Event(place, piece, news, parts)


async def whole(
    serving: Serving, job: Job, hear: Callable[[Event], object] = lambda event: None
) -> tuple[list[Answered], Count]:
    """All answers, in their order, and what they cost; ``hear`` is called with every event."""
    count = job.count()
    reading = _Reading(job, count)
    made = await serving.whole(
        job.prompts,
        job.params,
        priority=job.priority,
        grammar=job.shape.grammar,
        see=lambda place, piece: hear(reading.see(place, piece)),
    )
    return [Answered(*pair) for pair in zip(made, reading.parts, strict=True)], count


async def follow(serving: Serving, job: Job, count: Count) -> AsyncGenerator[Iterator[Event], None]:
    """The answers as they come, several events where they came at once; what each costs is counted before it is given.

    Each batch must be read to its end.
    """
    reading = _Reading(job, count)
    every = serving.follow(job.prompts, job.params, priority=job.priority, grammar=job.shape.grammar)
    async with aclosing(every) as batches:
        async for batch in batches:
            yield (reading.see(place, piece) for place, piece in batch)
