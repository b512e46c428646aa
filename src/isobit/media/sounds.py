"""Files of sound to samples of one channel. Nothing is decoded before the header has said how long it is."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import IsobitError, UsageError
from isobit.media.lengths import cut_off
from isobit.media.limits import LIMITS, Limits, require_size
from isobit.media.values import Sound
from isobit.shortage import explain, shortages

NAMES = "WAV, FLAC, OGG (Vorbis, Opus), MP3"
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
RATES = (1000, 384_000)  # samples a second
CHANNELS = 64
LOUDEST = 1e6  # full scale is 1: no recording is 120 dB above it, and squares of much more overflow
_BLOCK = 1 << 18  # samples of all channels that are decoded at once


def sound(data: bytes, limits: Limits = LIMITS, *, name: str = "the sound") -> Sound:
    """The sound of a file; of several channels the mean.

    Args:
        data: the whole file: WAV, FLAC, OGG with Vorbis or Opus, or MP3.
        limits: what it may cost.
        name: what errors call it.

    Raises:
        UsageError: it is no such file, is cut off or damaged, is empty or too long, or has values that are no numbers
            or beyond a million times full scale.
        CapacityError: memory does not suffice.
    """
    require_size(data, limits, name)
    if not _known(data):
        raise UsageError(f"{name} is no sound that can be read: {NAMES} are")
    if (missing := cut_off(data)) is not None:
        raise UsageError(f"{name} is cut off: {missing}")
    data = _whole(data, name)
    with _opened(data, name) as file:
        rate, channels = int(file.samplerate), int(file.channels)
        if file.format not in _FORMATS:
            raise UsageError(f"{name} is no sound that can be read: {NAMES} are")
        if not RATES[0] <= rate <= RATES[1]:
            raise UsageError(f"{name} has {rate} samples a second; {RATES[0]} to {RATES[1]} can be read")
        if not 1 <= channels <= CHANNELS:
            raise UsageError(f"{name} has {channels} channels; 1 to {CHANNELS} can be read")
        most = min(int(limits.seconds * rate), limits.samples)
        if file.frames > most and file.format != "MP3":  # what MP3 says of its length is an estimate
            raise UsageError(f"{name} lasts {file.frames / rate:.1f} seconds; the limit is {most / rate:g}")
        samples = _mono(file, channels, most)
        if len(samples) > most:
            raise UsageError(f"{name} lasts more than {most / rate:g} seconds, which is the limit")
        if file.format == "FLAC" and len(samples) < file.frames:
            raise UsageError(f"{name} is cut off: it has {len(samples)} of {file.frames} samples")
    if not len(samples):
        raise UsageError(f"{name} has no samples")
    if not np.isfinite(samples).all():
        raise UsageError(f"{name} holds values that are no numbers (NaN or infinite)")
    if (loudest := float(np.abs(samples).max())) > LOUDEST:
        raise UsageError(f"{name} has a sample of {loudest:.3g}; full scale is 1, and up to {LOUDEST:g} can be read")
    return Sound(samples, rate)


def _mono(file: Any, channels: int, most: int) -> NDArray[np.float32]:
    """Samples, at most one more than ``most``: the mean of the channels, block by block."""
    made: list[NDArray[np.float32]] = []
    left = most + 1
    while left > 0:
        block = file.read(min(left, max(1, _BLOCK // channels)), dtype="float32", always_2d=True)
        if not len(block):
            break
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
            made.append(block[:, 0] if channels == 1 else block.mean(axis=1, dtype=np.float32))
        left -= len(block)
    return np.concatenate(made) if made else np.zeros(0, np.float32)


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Any]:
    """The file, its header read. Whatever its library raises while it is open becomes an error of ours."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise UsageError(f"{name} cannot be read without soundfile: pip install 'isobit[media]'") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            yield file
    except IsobitError:
        raise
    except Exception as error:
        if explain(error) is not None:
            with shortages():
                raise
        raise UsageError(f"{name} is damaged or cut off: it cannot be decoded as sound") from error


def _known(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is read: its library would try many more."""
    if data[:4] in (b"RIFF", b"RF64"):
        return data[8:12] == b"WAVE"
    mpeg = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2  # a frame of layer III
    return data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or mpeg


def _whole(data: bytes, name: str) -> bytes:
    """The file; where a WAV file says that it has no samples, and some are there, with their size.

    Programs that write into pipes leave the size at 0 or at its maximum; such files end where they end.

    Raises:
        UsageError: a WAV file has fewer samples than it says, which its library does not mind.
    """
    at = 12
    while data[:4] == b"RIFF" and at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        begin = at + 8
        if kind == b"data":
            there = len(data) - begin
            if size > there and size < 0x7FFFFFFF:
                raise UsageError(f"{name} is cut off: it has {there:,} of {size:,} bytes of samples")
            if size == 0 and there and not _is_chunk(data, begin):
                return b"".join((data[: at + 4], struct.pack("<I", min(there, 0xFFFFFFFF)), data[begin:]))
            return data
        at = begin + size + size % 2
    return data


def _is_chunk(data: bytes, at: int) -> bool:
    """Whether what stands there are chunks up to the end of the file, behind samples of which there are none."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if not all(0x20 <= letter < 0x7F for letter in kind):
            return False
        at += 8 + size + size % 2
    return at in (len(data), len(data) + 1)
