"""The body of ``/v1/audio/speech``."""

from __future__ import annotations

from typing import Any

import msgspec

REFUSED = {"instructions": "the model takes none: how it speaks is in the recording of its voice"}
IDLE = frozenset({"user"})


class SpeechRequest(msgspec.Struct):
    """A text to be spoken.

    Attributes:
        input: the text.
        voice: the name of a voice, or an object with it as ``id``.
        response_format: ``mp3`` (as OpenAI has it), ``wav``, ``flac``, ``opus`` or ``pcm``.
        speed: 1.
        stream_format: ``audio``, or ``sse`` for events.
        stream: give chunks as they come.
        seed: the same one gives the same samples.
    """

    input: str | None = None
    model: str | None = None
    voice: str | dict[str, Any] | None = None
    response_format: str | None = None
    speed: float | None = None
    stream_format: str | None = None
    stream: bool | None = None
    seed: int | None = None
