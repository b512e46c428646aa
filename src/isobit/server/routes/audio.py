"""``/v1/audio/transcriptions``: what is said in a sound, as text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from isobit.engine.params import SamplingParams
from isobit.engine.transcription import Progress, Transcript, Transcription
from isobit.errors import UsageError
from isobit.media import sound
from isobit.models.media import MediaPrompt
from isobit.server import sampling
from isobit.server.bodies import read_as, warning
from isobit.server.errors import wrong
from isobit.server.forms import read_form
from isobit.server.replies import DONE, EventStream, event, json_reply, unless_gone
from isobit.server.schema.audio import FORMATS, IDLE, REFUSED, SEVERAL, TIMED, TranscriptionRequest
from isobit.server.serving import Serving

PATH = "/v1/audio/transcriptions"


@dataclass(frozen=True)
class Job:
    """A request that was read.

    Attributes:
        asked: what of the model.
        most: tokens of the text of a part, if that was asked for.
        prompts, params: of the parts of the sound.
        priority: of all of them.
    """

    asked: Transcription
    most: int | None
    prompts: tuple[MediaPrompt, ...]
    params: tuple[SamplingParams, ...]
    priority: int

    def usage(self, done: Transcript) -> dict[str, Any]:
        """As OpenAI counts it."""
        heard = sum(one.piece.tokens for prompt in self.prompts for one in prompt.placed)
        read, written = done.usage.prompt_tokens, done.usage.completion_tokens
        return {
            "type": "tokens",
            "input_tokens": read,
            "input_token_details": {"audio_tokens": heard, "text_tokens": read - heard},
            "output_tokens": written,
            "total_tokens": read + written,
        }


def routes(serving: Serving) -> list[Route]:
    """The routes."""

    async def transcribe(request: Request) -> Response:
        _require_hearing(serving)
        limits = serving.settings.limits
        form = await read_form(request, "file", serving.settings.media.bytes, limits.silence, SEVERAL)
        body, unknown = read_as(form.fields, TranscriptionRequest, REFUSED, IDLE, texts=True)
        serving.require_model(body.model)
        shape = _shape(body)
        job = await _read_job(serving, body, form.file)
        headers = warning((*unknown, *(["language"] if body.language else [])))
        if body.stream:
            return EventStream(_in_pieces(serving, job), limits.ping, headers)
        done = await unless_gone(request.receive, _whole(serving, job))
        if shape == "text":
            return PlainTextResponse(done.text, headers=headers)
        return json_reply(_reply(job, done, verbose=shape == "verbose_json"), headers=headers)

    async def translate(request: Request) -> Response:
        _require_hearing(serving)
        raise wrong(f"this model writes down what is said in the language it is said in: {PATH}", "model")

    return [
        Route(PATH, transcribe, methods=["POST"]),
        Route("/v1/audio/translations", translate, methods=["POST"]),
    ]


def _require_hearing(serving: Serving) -> None:
    if getattr(serving.llm.tower, "hearing", None) is None:
        read = ", ".join(serving.media.modalities)
        raise wrong(
            f"the model {serving.name!r} does not hear: it reads {read}, at /v1/chat/completions and /v1/completions"
            + (f" ({serving.llm.why_no_media})" if serving.llm.tower is None else ""),
            "model",
            "unsupported_model",
        )


def _shape(body: TranscriptionRequest) -> str:
    shape = body.response_format or "json"
    if shape in TIMED:
        raise wrong(f"response_format {shape}: this model gives no times of what is said", "response_format")
    if shape not in FORMATS:
        raise wrong(f"response_format must be one of {', '.join(FORMATS)}", "response_format")
    if body.stream and shape == "verbose_json":
        raise wrong("a stream has no response_format verbose_json: use json", "response_format")
    return shape


async def _read_job(serving: Serving, body: TranscriptionRequest, file: bytes | None) -> Job:
    """What is to be done.

    Raises:
        Refusal: there is no sound, it cannot be decoded, is too long or too short; a field is wrong.
    """
    if file is None:
        raise wrong("file is missing: a sound (WAV, FLAC, OGG, MP3), sent as a file of the form", "file")
    if body.max_tokens is not None and body.max_tokens < 1:
        raise wrong(f"max_tokens must be 1 or more, not {body.max_tokens}", "max_tokens")
    params = sampling.params(body, serving.tokenizer, body.max_tokens)
    asked, prompts = await serving.media.aside(_prepared, serving, file, body.prompt)
    serving.media.count(prompts)
    each = tuple(asked.params(prompt, params, body.max_tokens) for prompt in prompts)
    return Job(asked, body.max_tokens, prompts, each, body.priority or 0)


def _prepared(serving: Serving, file: bytes, prompt: str | None) -> tuple[Transcription, tuple[MediaPrompt, ...]]:
    try:
        asked = Transcription(serving.llm, sound(file, serving.settings.media, name="file"), prompt or None)
        return asked, tuple(asked.prompt(place) for place in range(len(asked.windows)))
    except UsageError as error:
        raise wrong(str(error), "file") from error


async def _whole(serving: Serving, job: Job) -> Transcript:
    progress = Progress(job.asked, job.most)
    done = await serving.whole(job.prompts, job.params, priority=job.priority)
    for place, one in enumerate(done):
        progress.push(place, one.text, one)
    return progress.transcript()


def _reply(job: Job, done: Transcript, *, verbose: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"text": done.text, "usage": job.usage(done)}
    if done.notes:
        found["notes"] = list(done.notes)
    if verbose:  # the model does not say which language it heard
        found |= {"task": "transcribe", "duration": done.seconds, "language": "unknown"}
    return found


async def _in_pieces(serving: Serving, job: Job) -> AsyncIterator[bytes]:
    """Events by the names of OpenAI: the texts of all deltas are the text of the last event."""
    progress = Progress(job.asked, job.most)
    every = serving.follow(job.prompts, job.params, priority=job.priority)
    async with aclosing(every) as batches:
        async for batch in batches:
            new = [progress.push(place, piece.text, piece.completion) for place, piece in batch]
            if any(new):
                yield b"".join(event({"type": "transcript.text.delta", "delta": text}) for text in new if text)
    done = progress.transcript()
    notes = {"notes": list(done.notes)} if done.notes else {}
    yield event({"type": "transcript.text.done", "text": done.text, "usage": job.usage(done), **notes})
    yield DONE
