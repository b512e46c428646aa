"""Sounds written down by a model that hears: prompts of their parts, and the text of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from isobit.engine.answer import Completion, Usage
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.windows import Joined, Window, cuts
from isobit.errors import UsageError
from isobit.models.media import Hearing, MediaPrompt, Sound

SLACK = 64  # tokens of an answer beside those that speech can have
_SPOKEN = 0.5  # tokens of an answer for one of sound that have room at least; people speak about 0.3
_WAVE = 16  # parts that are prepared at once


@dataclass(frozen=True)
class Part:
    """What was heard in a part of a sound.

    Attributes:
        window: the part.
        text: as the model wrote it.
        finish_reason: "stop"; "length" where the model did not come to an end.
    """

    window: Window
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Transcript:
    """A sound, written down.

    Attributes:
        text: of the whole.
        seconds: that it lasts.
        parts: one, or several where the sound is longer than the model hears.
        usage: tokens of all of them.
        notes: what a person should know, as sentences.
    """

    text: str
    seconds: float
    parts: tuple[Part, ...]
    usage: Usage
    notes: tuple[str, ...] = ()


def hearing(llm: LLM) -> Hearing:
    """What a model says of hearing.

    Raises:
        UsageError: it does not hear.
    """
    found = getattr(llm.tower, "hearing", None)
    if found is None:
        why = llm.why_no_media if llm.tower is None else "it takes other media"
        why = why.partition(": leave ")[0]  # the sound is all that there is here
        raise UsageError(
            f"this model ({llm.model.config.family}) does not hear: {why}. Sounds are written down by models like"
            " zai-org/GLM-ASR-Nano-2512"
        )
    return cast(Hearing, found)


class Transcription:
    """What is asked of a model about one sound.

    Args:
        llm: a model that hears.
        sound: it.
        instruction: what is asked, behind the sound; None for what the model was trained with.
        window: seconds of a part at most, if less than the model hears at once.

    Attributes:
        llm: the model.
        windows: the parts.

    Raises:
        UsageError: the model does not hear, or has no chat template; or there is no room to hear anything.
        TemplateError: the template cannot be used.
    """

    def __init__(self, llm: LLM, sound: Sound, instruction: str | None = None, window: float | None = None) -> None:
        self.llm, self._sound, self._hearing = llm, sound, hearing(llm)
        self._instruction = self._hearing.instruction if instruction is None else instruction
        two = math.ceil(2 * self._hearing.rate / self._hearing.tokens)  # samples of so many tokens
        shown = self._asked(Sound(np.zeros(two, np.float32), self._hearing.rate))
        self._around = len(shown.ids) - sum(one.piece.tokens for one in shown.placed)
        longest = self._longest(window)
        self._ranges = cuts(sound.samples, sound.rate, longest)
        self.windows = tuple(Window(one.start / sound.rate, one.stop / sound.rate) for one in self._ranges)
        self._longest_window = longest

    @property
    def seconds(self) -> float:
        """That the sound lasts."""
        return len(self._sound.samples) / self._sound.rate

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know before it begins."""
        if len(self.windows) == 1:
            return ()
        return (
            f"the sound lasts {self.seconds:.0f} seconds: it is cut into {len(self.windows)} parts of up to"
            f" {self._longest_window:.0f} seconds at quiet places, and their texts are joined",
        )

    def prompt(self, place: int) -> MediaPrompt:
        """The prompt of a part.

        Raises:
            UsageError: the sound is damaged, or too short to be heard.
        """
        found = self._ranges[place]
        return self._asked(replace(self._sound, samples=self._sound.samples[found.start : found.stop]))

    def params(self, prompt: MediaPrompt, given: SamplingParams, most: int | None = None) -> SamplingParams:
        """How the text of a part is chosen: it may be as long as speech of that length can be, or ``most`` tokens."""
        sound = sum(one.piece.tokens for one in prompt.placed)
        room = max(1, self._capacity - len(prompt.ids))
        return replace(given, max_tokens=min(room, sound + SLACK if most is None else most))

    @property
    def _capacity(self) -> int:
        longest = self.llm.engine.longest
        return self.llm.context_length if longest is None else min(self.llm.context_length, longest)

    def _asked(self, sound: Sound) -> MediaPrompt:
        """The prompt of a sound."""
        template = self.llm.tokenizer.chat_template
        if template is None:
            raise UsageError(
                "this model has no chat template, so that nobody knows how it is asked to write a sound down:"
                " chat_template.jinja is missing beside its weights"
            )
        content = [{"type": "audio"}, {"type": "text", "text": self._instruction}]
        messages = [{"role": "user", "content": content}]
        return self.llm.media_prompt(template, messages, [sound], add_generation_prompt=True)

    def _longest(self, window: float | None) -> float:
        """Seconds of a part: so that its text has room behind it."""
        room = self._capacity - self._around - SLACK
        seconds = room / (self._hearing.tokens * (1 + _SPOKEN))
        if seconds < 1:
            raise UsageError(
                f"the context holds {self._capacity} tokens, in which no second of sound and its text have room beside"
                f" a request of {self._around}: shorten the prompt, or allow a larger context (--context)"
            )
        if window is not None and not 1 <= window <= self._hearing.longest:
            raise UsageError(f"a part of {window:g} seconds: use 1 to {self._hearing.longest:g}")
        return min(seconds, self._hearing.longest, window or self._hearing.longest)


@dataclass
class Progress:
    """The text of a transcription while its parts are written.

    Attributes:
        asked: what of the model.
        most: tokens of the text of a part, if that was asked for.
        said: the whole so far.
    """

    asked: Transcription
    most: int | None = None
    said: str = ""
    _done: dict[int, Completion] = field(default_factory=dict)
    _joined: Joined = field(init=False)

    def __post_init__(self) -> None:
        self._joined = Joined(len(self.asked.windows))

    def push(self, place: int, text: str, completion: Completion | None) -> str:
        """More text of a part, and its end; what that adds to the whole."""
        if completion is not None:
            self._done[place] = completion
        new = self._joined.push(place, text, ended=completion is not None)
        self.said += new
        return new

    def transcript(self) -> Transcript:
        """The whole, when all parts have ended."""
        parts = tuple(
            Part(window, self._done[place].text, self._done[place].finish_reason)
            for place, window in enumerate(self.asked.windows)
        )
        usages = [one.usage for one in self._done.values()]
        usage = Usage(
            sum(one.prompt_tokens for one in usages),
            sum(one.completion_tokens for one in usages),
            sum(one.cached_tokens for one in usages),
        )
        return Transcript(self.said, self.asked.seconds, parts, usage, (*self.asked.notes, *_unended(parts, self.most)))


def _unended(parts: Sequence[Part], most: int | None) -> Iterator[str]:
    why = "the model may have repeated itself there" if most is None else f"max_tokens is {most}"
    for part in parts:
        if part.finish_reason == "length":
            yield (
                f"the text of {part.window.begin:.1f} to {part.window.end:.1f} seconds did not come to an end and was"
                f" cut off: {why}"
            )


def follow(asked: Transcription, params: SamplingParams, most: int | None = None) -> Iterator[str | Transcript]:
    """Writes a sound down: pieces of its text as they come, and last the whole.

    Args:
        asked: the request.
        params: how tokens are chosen.
        most: tokens of the text of a part; None for as many as its length suggests.

    Raises:
        UsageError, IsobitError: as :meth:`isobit.engine.llm.LLM.stream_all` raises them.
    """
    progress = Progress(asked, most)
    for first in range(0, len(asked.windows), _WAVE):
        places = range(first, min(first + _WAVE, len(asked.windows)))
        prompts = [asked.prompt(place) for place in places]
        each = [asked.params(prompt, params, most) for prompt in prompts]
        for place, piece in asked.llm.stream_all(prompts, each):
            if new := progress.push(first + place, piece.text, piece.completion):
                yield new
    yield progress.transcript()
