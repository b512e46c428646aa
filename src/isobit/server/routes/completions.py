"""``/v1/completions``: texts and token ids, one or many, gone on with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.engine.answer import Completion, Piece
from isobit.engine.grammar import Grammar
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.prompts import given_ids, require_known
from isobit.server import sampling
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.errors import wrong
from isobit.server.logprobs import Legacy
from isobit.server.replies import DONE, EventStream, event, json_reply, unless_gone
from isobit.server.requests import Head, require
from isobit.server.schema.common import IDLE, StreamOptions
from isobit.server.schema.completions import REFUSED, CompletionRequest
from isobit.server.serving import Serving
from isobit.server.shapes import grammar_of, require_usable
from isobit.server.usage import Count

DEFAULT_TOKENS = 16  # as OpenAI has it


@dataclass(frozen=True)
class Prompt:
    """A prompt: its token ids, and its text as it is echoed."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Job:
    """A request that was read.

    Attributes:
        prompts: each of which gets ``n`` answers.
        params: of every answer, those of the first prompt first.
        echo: whether answers begin with their prompts.
        logprobs: how many most probable tokens are listed in the place of each; None for no log-probabilities.
        grammar: which answers are right.
    """

    prompts: tuple[Prompt, ...]
    n: int
    params: tuple[SamplingParams, ...]
    echo: bool
    logprobs: int | None
    priority: int
    empty: bool
    grammar: Grammar | None

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """The prompt of every answer."""
        return [prompt.ids for prompt in self.prompts for _ in range(self.n)]

    def prompt(self, place: int) -> Prompt:
        """Of an answer."""
        return self.prompts[place // self.n]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts)


def routes(serving: Serving) -> list[Route]:
    """The route."""

    async def complete(request: Request) -> Response:
        found = await read_object(request, serving.settings.limits)
        body, unknown = read_as(found, CompletionRequest, REFUSED, IDLE)
        serving.require_model(body.model)
        _, options = require(body, serving.settings.limits)
        job = await read_job(serving, body)
        head, headers = Head.new("cmpl", serving.name), warning(unknown)
        if body.stream:
            events = _in_pieces(serving, job, head, options)
            return EventStream(events, serving.settings.limits.ping, headers)
        return json_reply(await unless_gone(request.receive, _whole(serving, job, head)), headers=headers)

    return [Route("/v1/completions", complete, methods=["POST"])]


async def read_job(serving: Serving, body: CompletionRequest) -> Job:
    """What is to be done.

    Raises:
        Refusal: a field is wrong, or a prompt and its answer do not fit the context.
        UsageError: a prompt has no text or impossible ids, or a setting is out of range.
    """
    n, _ = require(body, serving.settings.limits)
    if body.best_of not in (None, n):
        raise wrong(f"best_of must be left out or be n ({n}): all answers that are made are given", "best_of")
    most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if most < 0:
        raise wrong(f"max_tokens must be 0 or more, not {most}", "max_tokens")
    prompts = await _prompts(serving, body)
    if body.max_tokens is None:
        most = max(1, min(most, serving.capacity - max(len(prompt.ids) for prompt in prompts)))
    for prompt in prompts:
        serving.require_room(len(prompt.ids), most)
    scored = bool(body.echo) and body.logprobs is not None
    further: dict[str, Any] = {"prompt_logprobs": body.logprobs} if scored else {}
    empty = most == 0 and not scored
    params = sampling.params(body, serving.tokenizer, 1 if empty else most, logprobs=body.logprobs, **further)
    each = [sampling.seeded(params, seed) for seed in sampling.seeds(params.seed, n)]
    whole = (tuple(prompts), n, tuple(each * len(prompts)), bool(body.echo), body.logprobs, body.priority or 0)
    grammar = grammar_of(body)
    if grammar is not None:
        await require_usable(serving, body, grammar)
    return Job(*whole, empty=empty, grammar=grammar)


async def _prompts(serving: Serving, body: CompletionRequest) -> list[Prompt]:
    """All prompts: of a text, token ids, or a list of either."""
    given = body.prompt
    if given is None:
        raise wrong("prompt is missing: a text, token ids, or a list of either", "prompt")
    listed = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not listed:
        raise wrong("prompt is empty: give at least one text or token id", "prompt")
    if len(listed) > serving.settings.limits.prompts:
        raise wrong(f"{len(listed)} prompts; at most {serving.settings.limits.prompts} go in one request", "prompt")
    special = body.add_special_tokens is not False
    return [await _prompt(serving, one, special, bool(body.echo)) for one in listed]


async def _prompt(serving: Serving, given: object, special: bool, echo: bool) -> Prompt:
    tokenizer = serving.tokenizer
    if isinstance(given, str):
        ids, text = await serving.encode(given, special), given
    elif isinstance(given, list):
        ids = given_ids(given)
        require_known(ids, int(serving.llm.model.config.vocab_size), tokenizer)
        text = await serving.aside(tokenizer.decode, ids) if echo else ""
    else:
        raise wrong("prompt must be a text, token ids, or a list of either", "prompt")
    if not ids:
        raise wrong("a prompt is empty (this tokenizer adds no begin-of-text token by itself)", "prompt")
    return Prompt(tuple(ids), text)


async def _whole(serving: Serving, job: Job, head: Head) -> dict[str, Any]:
    count = Count(job.prompt_tokens)
    if job.empty:
        choices = [_choice(place, _echoed(job, place), "length", None) for place in range(len(job.ids))]
    else:
        made = await serving.whole(job.ids, job.params, priority=job.priority, grammar=job.grammar)
        choices = [_finished(serving, job, place, completion) for place, completion in enumerate(made)]
        for completion in made:
            count.completion += completion.usage.completion_tokens
            count.cached += completion.usage.cached_tokens
    return _reply(head, choices) | {"usage": count.now()}


async def _in_pieces(serving: Serving, job: Job, head: Head, options: StreamOptions) -> AsyncIterator[bytes]:
    """Events; answers with log-probabilities of their prompts are events as wholes."""
    count = Count(job.prompt_tokens)
    usage = {"usage": None} if options.include_usage else {}
    if job.empty:
        for place in range(len(job.ids)):
            yield event(_reply(head, [_choice(place, _echoed(job, place), "length", None)]) | usage)
    else:
        parts = [Parts(serving, job, place) for place in range(len(job.ids))]
        every = serving.follow(job.ids, job.params, priority=job.priority, grammar=job.grammar)
        async with aclosing(every) as batches:
            async for batch in batches:
                told = b""
                for place, piece in batch:
                    count.completion += len(piece.token_ids)
                    if piece.completion is not None:
                        count.cached += piece.completion.usage.cached_tokens
                    choice = parts[place].push(piece)
                    if choice is not None:
                        now = {"usage": count.now()} if options.continuous_usage_stats else usage
                        told += event(_reply(head, [choice]) | now)
                if told:
                    yield told
    if options.include_usage:
        yield event(_reply(head, []) | {"usage": count.now()})
    yield DONE


class Parts:
    """One answer of a stream."""

    def __init__(self, serving: Serving, job: Job, place: int) -> None:
        self._serving, self._job, self._place = serving, job, place
        self._begun = not job.echo
        self._legacy = Legacy(serving.tokenizer, len(_echoed(job, place)))

    def push(self, piece: Piece) -> dict[str, Any] | None:
        """The next choice of the stream; None where there is nothing to tell."""
        job, done = self._job, piece.completion
        if job.echo and job.logprobs is not None:
            return None if done is None else _finished(self._serving, job, self._place, done)
        text = piece.text if self._begun else _echoed(job, self._place) + piece.text
        logprobs = self._legacy.add(piece.token_ids, piece.logprobs) if piece.logprobs else None
        if not text and logprobs is None and done is None:
            return None
        self._begun = True
        return _choice(self._place, text, None if done is None else done.finish_reason, logprobs, done)


def _finished(serving: Serving, job: Job, place: int, done: Completion) -> dict[str, Any]:
    """A whole answer."""
    text, logprobs = _echoed(job, place), None
    if done.logprobs is not None or job.logprobs is not None:
        legacy = Legacy(serving.tokenizer)
        ids: Sequence[int] = done.token_ids
        entries: tuple[TokenLogprob | None, ...] = done.logprobs or ()
        if job.echo:
            ids = (*job.prompt(place).ids, *ids)
            entries = (*(done.prompt_logprobs or ()), *entries)
        logprobs = legacy.add(ids, entries)
    return _choice(place, text + done.text, done.finish_reason, logprobs, done)


def _echoed(job: Job, place: int) -> str:
    return job.prompt(place).text if job.echo else ""


def _choice(
    place: int, text: str, reason: str | None, logprobs: dict[str, Any] | None, done: Completion | None = None
) -> dict[str, Any]:
    stop = {} if reason is None else {"stop_reason": None if done is None else done.stop}
    return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason} | stop


def _reply(head: Head, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }
