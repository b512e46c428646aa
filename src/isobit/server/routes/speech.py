"""``/v1/audio/speech``: a text as speech, whole, or in chunks as they come; ``/v1/audio/voices``: who can speak it."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from isobit.errors import IsobitError, UsageError
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.errors import Refusal, refusal, wrong
from isobit.server.logs import note
from isobit.server.replies import ClientGone, EventStream, error_reply, json_reply, named_event, unless_gone
from isobit.server.schema.speech import IDLE, REFUSED, SpeechRequest
from isobit.server.serving import Serving
from isobit.server.speaking import Speaking

FORMATS = ("mp3", "wav", "flac", "opus", "pcm")
STREAMED = ("wav", "pcm")  # what can be written before its end is known
LONGEST = 10_000  # characters of a text
_SHOWN = 20  # voices that an error names
_SEEDS = 2**63 - 1


def routes(serving: Serving) -> list[Route]:
    """The routes."""

    async def speak(request: Request) -> Response:
        found = await read_object(request, serving.settings.limits)
        body, unknown = read_as(found, SpeechRequest, REFUSED, IDLE)
        serving.require_model(body.model)
        speaking = _speaking(serving)
        said, name = _said(body), _voice(speaking, body)
        form, events = _form(body), body.stream_format == "sse"
        headers = warning(unknown)
        if not (events or body.stream):
            samples = await unless_gone(request.receive, _whole(serving, speaking, said, name, body.seed))
            from isobit.speech import writing

            data = await serving.aside(writing.encoded, samples, form)
            return Response(data, headers=headers, media_type=form.kind)
        chunks = _chunks(serving, speaking, said, name, body.seed)
        parts = _parts(chunks, form.name)
        if events:
            return EventStream(_events(parts), serving.settings.limits.ping, headers)
        return _AudioStream(parts, form.kind, headers)

    async def listed(request: Request) -> Response:
        return json_reply({"object": "list", "data": [{"id": one} for one in _speaking(serving).recordings]})

    return [
        Route("/v1/audio/speech", speak, methods=["POST"]),
        Route("/v1/audio/voices", listed, methods=["GET"]),
    ]


def _speaking(serving: Serving) -> Speaking:
    if serving.speaking is None:
        raise Refusal(404, "the model that is served here does not speak; serve a folder of GLM-TTS", code="no_speech")
    return serving.speaking


def _said(body: SpeechRequest) -> str:
    from isobit.speech import text

    if not body.input:
        raise wrong("input is empty: give a text to speak", "input")
    if len(body.input) > LONGEST:
        raise wrong(f"input has {len(body.input):,} characters; {LONGEST:,} are the most that are spoken", "input")
    if body.speed not in (None, 1.0):
        raise wrong("speed must be 1: the model speaks at the speed of its voice", "speed", "unsupported_parameter")
    if body.seed is not None and not 0 <= body.seed <= _SEEDS:
        raise wrong(f"seed must be between 0 and {_SEEDS}", "seed")
    try:
        text.tidied(body.input, "input")
    except UsageError as error:
        raise wrong(str(error), "input") from None
    return body.input


def _voice(speaking: Speaking, body: SpeechRequest) -> str:
    """The name of the voice that is asked for; of the only one, if none is."""
    names = [*speaking.recordings]
    name = body.voice.get("id") if isinstance(body.voice, dict) else body.voice
    if name is None and len(names) == 1:
        return names[0]
    if isinstance(name, str) and name in speaking.recordings:
        return name
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise wrong(f"voice must be one of {', '.join(names[:_SHOWN])}{more}", "voice", "voice_not_found")


def _form(body: SpeechRequest) -> Any:
    """The kind of file that is asked for."""
    from isobit.speech import writing

    if body.stream_format not in (None, "audio", "sse"):
        raise wrong("stream_format must be audio or sse", "stream_format")
    streams = body.stream or body.stream_format == "sse"
    name = body.response_format or ("pcm" if streams else FORMATS[0])
    if name not in FORMATS:
        raise wrong(f"response_format must be one of {', '.join(FORMATS)}", "response_format")
    if streams and name not in STREAMED:
        raise wrong(f"chunks are written as {' or '.join(STREAMED)} alone, not as {name}", "response_format")
    try:
        return writing.form_named(name)
    except UsageError as error:
        raise wrong(str(error), "response_format") from None


async def _chunks(
    serving: Serving, speaking: Speaking, said: str, name: str, seed: int | None, *, stream: bool = True
) -> AsyncGenerator[NDArray[np.float32], None]:
    with serving.admitted(1):
        try:
            async with aclosing(speaking.speak(said, name, seed, stream)) as found:
                async for chunk in found:
                    yield chunk
        except UsageError as error:
            raise refusal(error) from error
        except IsobitError as error:
            raise refusal(error, asked=False) from error


async def _whole(serving: Serving, speaking: Speaking, said: str, name: str, seed: int | None) -> NDArray[np.float32]:
    async with aclosing(_chunks(serving, speaking, said, name, seed, stream=False)) as found:
        return np.concatenate([chunk async for chunk in found])


async def _parts(chunks: AsyncGenerator[NDArray[np.float32], None], form: str) -> AsyncGenerator[bytes, None]:
    """Bytes of a file that is written as it comes."""
    from isobit.speech import writing

    begun = form == "pcm"
    async with aclosing(chunks):
        async for chunk in chunks:
            data = writing.pcm(chunk)
            yield data if begun else writing.wav_header(writing.UNKNOWN) + data
            begun = True


async def _events(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for part in parts:
            yield named_event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})
    yield named_event({"type": "speech.audio.done"})


class _AudioStream(Response):
    """Bytes as they come; an error before the first of them is a reply of its own, a later one breaks the reply off."""

    def __init__(self, parts: AsyncIterator[bytes], kind: str, headers: dict[str, str]) -> None:
        super().__init__(media_type=kind, headers=headers)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self._parts, self._begun = parts, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of them."""
        try:
            await unless_gone(receive, self._write(send))
        except ClientGone:
            pass
        except Exception as error:
            note(scope, error)
            if self._begun:
                raise
            await error_reply(error, asked=False)(scope, receive, send)
        finally:
            await self._parts.aclose()  # type: ignore[attr-defined]

    async def _write(self, send: Send) -> None:
        async for part in self._parts:
            if not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
