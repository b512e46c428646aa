"""From sounds to samples: all at once, or in chunks while sounds still come.

A chunk is made of all sounds so far, with the frames of earlier chunks held where they were on the way from noise. Its
end, which sounds to come will change, is kept back: as many sounds as the model looks ahead, and a tenth of a second
that fades into the next chunk's. The first chunk comes behind 25 sounds, a second of speech.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.speech.flow import Flow, Reference, frames
from isobit.speech.vocoder import HARMONICS, HOP, RATE, Vocoder, samples

BLOCKS, AHEAD = (25, 50, 200), (12, 25, 100)  # sounds; those behind are like the last
FADE = RATE // 10  # samples
Samples = NDArray[np.float32]


class Noise:
    """Normal numbers of one seed: the first rows are the same however many are asked for."""

    def __init__(self, seed: int, width: int) -> None:
        self._random, self._rows = np.random.default_rng(seed), np.zeros((0, width), np.float32)

    def rows(self, count: int) -> Tensor:
        """float32 ``[count, width]``."""
        more = count - len(self._rows)
        if more > 0:
            fresh = self._random.standard_normal((more, self._rows.shape[1])).astype(np.float32)
            self._rows = np.concatenate((self._rows, fresh))
        return torch.from_numpy(self._rows[:count])


@dataclass(frozen=True, eq=False)
class Renderer:
    """What makes samples of sounds.

    Attributes:
        flow, vocoder: the models.
        steps: of the flow.
    """

    flow: Flow
    vocoder: Vocoder
    steps: int = 10

    def whole(self, sounds: Sequence[int], voice: Reference, seed: int) -> Samples:
        """Samples of all sounds, where every frame sees all others."""
        stream = Stream(self, voice, seed, causal=False)
        stream.push(sounds)
        return stream.finish()


class Stream:
    """Samples of one part of a text, while its sounds come.

    Args:
        renderer: makes them.
        voice: whose.
        seed: of all noise.
        causal: whether frames see blocks; else there are no chunks before the end.
    """

    def __init__(self, renderer: Renderer, voice: Reference, seed: int, *, causal: bool = True) -> None:
        self._renderer, self._voice, self._causal = renderer, voice, causal
        self._frames = Noise(2 * seed, renderer.flow.config.mel)
        self._throat = Noise(2 * seed + 1, HARMONICS)
        self._sounds: list[int] = []
        self._made = 0  # chunks
        self._before: tuple[tuple[Tensor, ...], int] | None = None
        self._given, self._fading = 0, np.zeros(0, np.float32)

    def push(self, sounds: Sequence[int]) -> list[Samples]:
        """More sounds; returns chunks that are whole now."""
        self._sounds += sounds
        found: list[Samples] = []
        while self._causal and len(self._sounds) > (end := _end(self._made)):  # more must follow, or it is the last
            found.append(self._chunk(end, last=False))
        return [chunk for chunk in found if len(chunk)]

    def finish(self) -> Samples:
        """The rest."""
        return self._chunk(len(self._sounds), last=True) if self._sounds else np.zeros(0, np.float32)

    def _chunk(self, end: int, *, last: bool) -> Samples:
        voice, config = self._voice, self._renderer.flow.config
        count = config.frames(len(voice.sounds) + end)
        pattern = (len(voice.sounds), *BLOCKS) if self._causal else None
        made = frames(
            self._renderer.flow, self._sounds[:end], voice, self._frames.rows(count), steps=self._renderer.steps,
            pattern=pattern, before=self._before,
        )  # fmt: skip
        heard = samples(self._renderer.vocoder, made.mel, self._throat.rows(HOP * len(made.mel))).cpu().numpy()
        rest = heard[self._given :].copy()
        fade = min(len(self._fading), len(rest))
        slope = np.linspace(0, 1, fade, dtype=np.float32)
        rest[:fade] = self._fading[:fade] * (1 - slope) + rest[:fade] * slope
        if last:
            return rest
        ahead = config.frames(AHEAD[min(self._made, len(AHEAD) - 1)])  # frames
        held = HOP * ahead
        out = max(0, len(rest) - held - FADE)
        self._fading = rest[out : max(0, len(rest) - held)]
        self._given += out
        self._before = made.states, count - ahead
        self._made += 1
        return rest[:out]


def _end(chunk: int) -> int:
    """Sounds that a chunk and all before it have."""
    return sum(BLOCKS[min(at, len(BLOCKS) - 1)] for at in range(chunk + 1))
