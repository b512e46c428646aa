"""A pipeline that is loaded: voices are learned of a recording, and texts are spoken in them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from isobit import arguments
from isobit.engine.generate import load_llm
from isobit.engine.llm import LLM
from isobit.engine.params import Repetition, SamplingParams
from isobit.errors import CapacityError, CheckpointError, UsageError
from isobit.media import Sound
from isobit.speech import files, flow, sounds, spectra, text, vocoder
from isobit.speech.flow_config import read_flow_config
from isobit.speech.rule import BEGIN, END, FIRST, LEAST, MOST, Marks, OnlySounds, marks
from isobit.speech.speaker import Campplus, SpeakerModel, embedding
from isobit.speech.streaming import Renderer, Samples, Stream
from isobit.speech.weights import on

RATE = vocoder.RATE  # samples a second
SHORTEST, LONGEST = 0.5, sounds.LONGEST  # seconds of a recording
STEPS = 100  # at most
_REMEMBERED = 750  # sounds of earlier parts and of the part at hand, about


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice.

    Attributes:
        said: token ids of what the recording says.
        reference: what the flow takes of it.
    """

    said: tuple[int, ...]
    reference: flow.Reference

    @property
    def sounds(self) -> list[int]:
        """Of the recording."""
        found: list[int] = self.reference.sounds.tolist()
        return found


class Talker:
    """Texts to speech. Any number of threads may ask.

    Args:
        llm: the language model.
        tokenizer: of sounds.
        speaker: tells speakers apart.
        renderer: makes samples.
        marks: token ids.
        notes: what people should know.
    """

    def __init__(
        self,
        llm: LLM,
        tokenizer: sounds.SoundTokenizer,
        speaker: SpeakerModel,
        renderer: Renderer,
        marks: Marks,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.llm, self.marks, self.notes = llm, marks, notes
        self._tokenizer, self._speaker, self._renderer = tokenizer, speaker, renderer
        # Sounds are looked for by what all of them begin with; phonemes may be written.
        self._controls = {BEGIN, END, FIRST.removesuffix("0|>"), *llm.tokenizer.controls}

    def voice(self, recording: Sound, said: str) -> Voice:
        """The voice of a recording.

        Args:
            recording: half a second to 30 seconds of one person.
            said: its words.

        Raises:
            UsageError: it is too short, too long or silent, or nothing is said.
        """
        words = self._tidied(said, "what the voice says") + " "
        seconds = len(recording.samples) / recording.rate
        if not SHORTEST <= seconds <= LONGEST:
            raise UsageError(f"the voice lasts {seconds:.2f} seconds; {SHORTEST:g} to {LONGEST:g} can be used")
        if float(np.abs(recording.samples).max()) < 1e-4:
            raise UsageError("the voice is silent")
        low = spectra.resampled(recording, spectra.LOW_RATE)[: int(LONGEST * spectra.LOW_RATE)]
        high = spectra.resampled(recording, spectra.FLOW_RATE)
        device = self._renderer.flow.weights["proj_out.weight"].device
        reference = flow.Reference(
            torch.tensor(sounds.sounds(self._tokenizer, low), device=device),
            torch.from_numpy(spectra.flow_mel(high, self._renderer.flow.config.mel)).to(device),
            torch.from_numpy(embedding(self._speaker, low)).to(device),
        )
        return Voice(tuple(self.llm.tokenizer.encode(words, add_special=False)), reference)

    def speak(
        self,
        said: str,
        voice: Voice,
        *,
        seed: int | None = None,
        stream: bool = False,
        stopped: threading.Event | None = None,
    ) -> Iterator[Samples]:
        """Samples of a text, 24000 a second, in chunks: one for each part of the text, or as they come.

        Args:
            said: the text. What is wrong with it is raised before the first chunk is made.
            voice: whose.
            seed: the same one gives the same samples; None draws one.
            stream: whether chunks of a part are given before its end.
            stopped: set by another thread, it ends the speech between two sounds.

        Raises:
            UsageError, CapacityError: the text is empty, or too long for the model's context.
        """
        arguments.optional_whole("seed", seed, 0, 2**63 - 1)
        pieces = text.parts(self._tidied(said, "the text"))
        first = random.randrange(2**62) if seed is None else seed
        return self._spoken(pieces, voice, first, stream, stopped or threading.Event())

    def _tidied(self, said: str, what: str) -> str:
        found = text.tidied(said, what)
        control = next((one for one in self._controls if one in found), None)
        if control is not None:
            raise UsageError(f"{what} has the control token {control!r}: it would not be spoken")
        return found

    def _spoken(
        self, pieces: list[str], voice: Voice, seed: int, stream: bool, stopped: threading.Event
    ) -> Iterator[Samples]:
        told: list[tuple[list[int], list[int]]] = [([*voice.said], voice.sounds)]
        for number, piece in enumerate(pieces):
            ids = self.llm.tokenizer.encode(piece, add_special=False)
            _forget(told, len(ids))
            made: list[int] = []
            chunks = Stream(self._renderer, voice.reference, seed + number, causal=stream)
            for sound in self._sounds(ids, told, seed + number):
                if stopped.is_set():
                    return
                made.append(sound)
                yield from chunks.push([sound])
            if not made:
                raise CheckpointError("the language model made no sound")
            yield chunks.finish()
            told.append((ids, made))

    def _sounds(self, ids: list[int], told: list[tuple[list[int], list[int]]], seed: int) -> Iterator[int]:
        """The sounds of a part of a text, behind the parts before it."""
        prompt = [id for words, _ in told for id in words] + ids + [self.marks.begin]
        prompt += [self.marks.first + one for _, heard in told for one in heard]
        room = self.llm.context_length - len(prompt)
        if room < LEAST * len(ids):
            raise CapacityError(
                f"the voice and this part of the text have {len(prompt)} tokens, and the language model reads "
                f"{self.llm.context_length}: give a shorter voice"
            )
        params = SamplingParams(
            temperature=1.0, top_k=25, top_p=0.8, repetition_aware=Repetition(10, 0.1), seed=seed,
            max_tokens=min(room, MOST * len(ids)),
        )  # fmt: skip
        rule = OnlySounds(self.marks, LEAST * len(ids))
        for piece in self.llm.stream(prompt, params, constraint=rule):
            yield from (id - self.marks.first for id in piece.token_ids if id != self.marks.end)


def _forget(told: list[tuple[list[int], list[int]]], tokens: int) -> None:
    """Parts behind the recording go, the oldest first, until what is left and what is to come are short enough."""
    while len(told) > 1:
        heard, words = sum(len(sounds) for _, sounds in told), sum(len(words) for words, _ in told)
        if heard + int(heard / max(1, words) * tokens) <= _REMEMBERED:
            return
        del told[1]


def load_talker(
    folder: Path,
    dtype: str | None = None,
    device: str = "cpu",
    *,
    steps: int = 10,
    speaker: SpeakerModel | None = None,
    **options: object,
) -> Talker:
    """Load the folder of a pipeline.

    Args:
        folder: with the parts of :mod:`isobit.speech.files`.
        dtype, device, options: of the language model (:func:`isobit.engine.generate.load_llm`). The others are computed
            in float32, on the same device.
        steps: of the flow, 1 to 100.
        speaker: in place of the folder's.

    Raises:
        CheckpointError, ModelError: a part is missing or cannot be used.
        Unsupported: onnxruntime is not installed.
    """
    arguments.whole("steps", steps, 1, STEPS)
    found = files.parts(folder)
    config = read_flow_config(folder / files.FLOW_CONFIG)
    model = flow.load_flow(folder / files.FLOW, config)
    horn = vocoder.load_vocoder(folder / files.VOCODER)
    tokenizer = sounds.load_sounds(folder / files.SOUNDS)
    if horn.mel != config.mel:
        raise CheckpointError(
            f"frames have {config.mel} numbers in {files.FLOW} and {horn.mel} in {files.VOCODER}", file=folder
        )
    if model.sounds < tokenizer.config.codes:
        raise CheckpointError(
            f"there are {tokenizer.config.codes} sounds, and {files.FLOW} knows {model.sounds}", file=folder
        )
    who = Campplus(folder / files.SPEAKER, flow.SPEAKER) if speaker is None else speaker
    llm = load_llm(found.model, dtype, device, tokenizer=found.tokenizer, **options)  # type: ignore[arg-type]
    try:
        ids = marks(llm.tokenizer, tokenizer.config.codes, int(llm.model.config.vocab_size))
    except CheckpointError as error:
        raise CheckpointError(str(error), file=found.tokenizer) from None
    place = llm.model.place.tensors
    model = flow.Flow(config, on(model.weights, place), model.depth, model.rounds, on(model.affine, place))
    renderer = Renderer(model, vocoder.Vocoder(on(horn.weights, place), horn.mel), steps)
    tokenizer = sounds.SoundTokenizer(tokenizer.config, on(tokenizer.weights, place))
    return Talker(llm, tokenizer, who, renderer, ids, (*llm.model.notes, *found.notes))
