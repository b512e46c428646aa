"""The form of ``/v1/audio/transcriptions``."""

from __future__ import annotations

import msgspec

FORMATS = ("json", "text", "verbose_json")
TIMED = ("srt", "vtt")
SEVERAL = frozenset({"include", "timestamp_granularities", "known_speaker_names", "known_speaker_references"})
_TIMES = "this model gives no times of what is said"
REFUSED = {
    "timestamp_granularities": _TIMES,
    "known_speaker_names": "this model does not tell speakers apart",
    "known_speaker_references": "this model does not tell speakers apart",
    "include": "log-probabilities are not given here; /v1/chat/completions gives them, with the sound as input_audio",
}
# A sound that is longer than the model hears is always cut where it is quiet.
IDLE = frozenset({"user", "chunking_strategy", "stream_options"})


class TranscriptionRequest(msgspec.Struct):
    """How a sound is to be written down.

    Attributes:
        prompt: what is asked of the model, behind the sound.
        language: of what is said; the model finds it out itself, and this changes nothing.
    """

    model: str | None = None
    prompt: str | None = None
    response_format: str | None = None
    language: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
