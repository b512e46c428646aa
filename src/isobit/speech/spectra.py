"""Spectra of a reference: of the flow (mel, 24 kHz), of the tokenizer of sounds (Whisper's, 16 kHz), of the speaker's
model (Kaldi's filter bank, 16 kHz). In float64 and then float32: nobody computes them twice.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isobit.errors import UsageError
from isobit.media import Sound

Array = NDArray[np.float64]
FLOW_RATE, LOW_RATE = 24000, 16000
_FLOW_WINDOW, _FLOW_HOP, _FLOW_HIGHEST = 1920, 480, 8000.0
_WHISPER_WINDOW, WHISPER_HOP = 400, 160
_KALDI_WINDOW, _KALDI_HOP, _KALDI_SIZE, _KALDI_BINS, _KALDI_LOWEST = 400, 160, 512, 80, 20.0


def resampled(sound: Sound, rate: int) -> NDArray[np.float64]:
    """Samples at another rate, from -1 to 1.

    Raises:
        UsageError: soxr is not installed.
    """
    if sound.rate == rate:
        return sound.samples.astype(np.float64)
    try:
        import soxr
    except ImportError:
        raise UsageError("a voice cannot be read at this rate without soxr: pip install 'isobit[speech]'") from None
    made: Array = soxr.resample(sound.samples.astype(np.float64), sound.rate, rate, quality="VHQ")
    return made


def _framed(samples: Array, window: int, hop: int) -> Array:
    """``[T, window]``: every place where a whole window fits."""
    return np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]


def _hann(size: int) -> Array:
    found: Array = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(size) / size)
    return found


def _slaney(hertz: Array) -> Array:
    """Mel by Slaney: straight up to 1000 Hz, logarithmic above."""
    high = 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * (27 / math.log(6.4))
    found: Array = np.where(hertz < 1000, hertz * (3 / 200), high)
    return found


def _from_slaney(mel: Array) -> Array:
    found: Array = np.where(mel < 15, mel * (200 / 3), 1000 * np.exp((mel - 15) * (math.log(6.4) / 27)))
    return found


@lru_cache(4)
def slaney_bank(rate: int, size: int, bins: int, highest: float) -> Array:
    """Triangles over the frequencies of a transform, each of area 1: ``[bins, size // 2 + 1]``."""
    edges = _from_slaney(np.linspace(0, _slaney(np.array(highest)).item(), bins + 2))
    hertz = np.linspace(0, rate / 2, size // 2 + 1)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    found: Array = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    found.flags.writeable = False
    return found


def flow_mel(samples: Array, bins: int) -> NDArray[np.float32]:
    """Logarithmic mel at 50 frames a second of samples at 24 kHz: ``[T, bins]``."""
    padding = (_FLOW_WINDOW - _FLOW_HOP) // 2
    if len(samples) <= padding:
        raise UsageError(f"the voice is too short: it has {len(samples) / FLOW_RATE:.3f} seconds")
    framed = _framed(np.pad(samples, padding, mode="reflect"), _FLOW_WINDOW, _FLOW_HOP)
    power = np.abs(np.fft.rfft(framed * _hann(_FLOW_WINDOW))) ** 2
    bank = slaney_bank(FLOW_RATE, _FLOW_WINDOW, bins, _FLOW_HIGHEST)
    mel = np.sqrt(power + 1e-9) @ bank.T
    return np.log(np.maximum(mel, 1e-5)).astype(np.float32)


def whisper_mel(samples: Array, bins: int) -> NDArray[np.float32]:
    """Whisper's logarithmic mel of samples at 16 kHz, 100 frames a second: ``[bins, T]``."""
    half = _WHISPER_WINDOW // 2
    framed = _framed(np.pad(samples, half, mode="reflect"), _WHISPER_WINDOW, WHISPER_HOP)[:-1]
    power = np.abs(np.fft.rfft(framed * _hann(_WHISPER_WINDOW))) ** 2
    mel = np.log10(np.maximum(slaney_bank(LOW_RATE, _WHISPER_WINDOW, bins, LOW_RATE / 2) @ power.T, 1e-10))
    found: NDArray[np.float32] = ((np.maximum(mel, mel.max() - 8) + 4) / 4).astype(np.float32)
    return found


@lru_cache(1)
def _kaldi_bank() -> Array:
    """Triangles on Kaldi's mel scale, without norm: ``[80, 256]``; it leaves the highest frequency out."""

    def scale(hertz: Array) -> Array:
        found: Array = 1127 * np.log1p(hertz / 700)
        return found

    low, high = scale(np.array(_KALDI_LOWEST)), scale(np.array(LOW_RATE / 2))
    edges = low + (high - low) / (_KALDI_BINS + 1) * np.arange(_KALDI_BINS + 2)
    mel = scale(np.arange(_KALDI_SIZE // 2, dtype=np.float64) * (LOW_RATE / _KALDI_SIZE))
    rising = (mel - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - mel) / np.diff(edges)[1:, None]
    found: Array = np.maximum(0, np.minimum(rising, falling))
    return found


def kaldi_bank(samples: Array) -> NDArray[np.float32]:
    """Kaldi's filter bank of samples at 16 kHz, 100 frames a second, without dither: ``[T, 80]``.

    Raises:
        UsageError: there is not one whole window.
    """
    if len(samples) < _KALDI_WINDOW:
        raise UsageError(f"the voice is too short: it has {len(samples) / LOW_RATE:.3f} seconds")
    framed = _framed(samples, _KALDI_WINDOW, _KALDI_HOP)
    framed = framed - framed.mean(axis=1, keepdims=True)
    framed = framed - 0.97 * np.concatenate((framed[:, :1], framed[:, :-1]), axis=1)
    window = (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(_KALDI_WINDOW) / (_KALDI_WINDOW - 1))) ** 0.85
    power = np.abs(np.fft.rfft(framed * window, _KALDI_SIZE)) ** 2
    energies = power[:, :-1] @ _kaldi_bank().T
    return np.log(np.maximum(energies, np.finfo(np.float32).eps)).astype(np.float32)
