"""Videos to frames: animated images and lists of pictures by themselves, MP4 and the like where PyAV is installed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import IsobitError, UsageError
from isobit.media import pictures
from isobit.media.limits import LIMITS, Limits, require_size
from isobit.media.values import Clip, Picture
from isobit.shortage import explain, shortages

NAMES = "MP4, WebM and Matroska (with isobit[video]), animated GIF, WebP and PNG"
_MARGINS = 1 << 20  # pixels that a decoder sets aside around a frame
RATES = (0.001, 1000.0)


def clip(
    data: bytes | Sequence[Picture | bytes], limits: Limits = LIMITS, *, rate: float = 1.0, name: str = "the video"
) -> Clip:
    """The frames of a video.

    Args:
        data: a whole file, or the frames one by one: pictures, or files of them.
        limits: what it may cost.
        rate: frames a second of those that come one by one.
        name: what errors call it.

    Raises:
        UsageError: it is no file that can be read (PyAV may lack: the message says so), is cut off or damaged, or is
            too large or long; frames differ in size.
        CapacityError: memory does not suffice.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        return _of_pictures(data, limits, rate, name)
    data = bytes(data)
    require_size(data, limits, name)
    return _video(data, limits, name) if is_video(data) else pictures.animation(data, limits, name=name)


def is_video(data: bytes) -> bool:
    """Whether the first bytes are those of MP4 or Matroska."""
    return data[4:8] == b"ftyp" or data[:4] == b"\x1a\x45\xdf\xa3"


def _of_pictures(frames: Sequence[Picture | bytes], limits: Limits, rate: float, name: str) -> Clip:
    if not frames:
        raise UsageError(f"{name} has no frames")
    if not RATES[0] <= rate <= RATES[1]:
        raise UsageError(f"{name} cannot have {rate:g} frames a second: use {RATES[0]:g} to {RATES[1]:g}")
    _require(len(frames), 1, 1, rate, limits, name)
    made: list[NDArray[np.uint8]] = []
    for number, frame in enumerate(frames):
        if not isinstance(frame, Picture):
            frame = pictures.picture(bytes(frame), limits, name=f"frame {number + 1} of {name}")
        made.append(frame.pixels)
        height, width, _ = made[0].shape
        _require(len(frames), width, height, rate, limits, name)
        if made[-1].shape != made[0].shape:
            other = f"{made[-1].shape[1]} x {made[-1].shape[0]}"
            raise UsageError(f"the frames of {name} differ in size ({width} x {height}, {other}): make them alike")
    with shortages():
        return Clip(np.stack(made), float(rate))


def _require(count: int, width: int, height: int, rate: float, limits: Limits, name: str) -> None:
    if count > limits.frames:
        raise UsageError(f"{name} has {count} frames or more; the limit is {limits.frames}: give fewer a second")
    if count * width * height > limits.pixels:
        raise UsageError(
            f"{name} has {count} frames of {width} x {height} pixels; the limit is {limits.pixels:,} in all"
        )
    if count > limits.seconds * rate:
        raise UsageError(f"{name} lasts {count / rate:.1f} seconds; the limit is {limits.seconds:g}")


def _video(data: bytes, limits: Limits, name: str) -> Clip:
    """The frames of the first track of pictures."""
    frames: list[NDArray[np.uint8]] = []
    with _opened(data, name) as file:
        if not file.streams.video:
            raise UsageError(f"{name} holds no video that can be read: {NAMES} are")
        track = file.streams.video[0]
        rate = float(track.average_rate or track.guessed_rate or 0)
        if not RATES[0] <= rate <= RATES[1]:
            raise UsageError(f"{name} does not say how many frames a second it has")
        _require(max(1, int(track.frames)), int(track.width), int(track.height), rate, limits, name)
        most = 2 * limits.pixels + _MARGINS  # a stream may say another size than its file, and is asked again below
        track.codec_context.options = {"max_pixels": str(most)}
        for frame in file.decode(track):
            _require(len(frames) + 1, int(frame.width), int(frame.height), rate, limits, name)
            turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise; telephones write how they were held
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
            if frames[0].shape != frames[-1].shape:
                raise UsageError(f"the frames of {name} differ in size")
    if not frames:
        raise UsageError(f"{name} has no frames")
    with shortages():
        return Clip(np.stack(frames), rate)


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Any]:
    """The file, its header read. Whatever its library raises while it is open becomes an error of ours."""
    try:
        import av
    except ImportError as error:
        raise UsageError(
            f"{name} cannot be read without PyAV: pip install 'isobit[video]', or give an animated image or the frames"
        ) from error
    try:
        # The format is told: some that would be guessed name other files, or addresses.
        with av.open(io.BytesIO(data), mode="r", format="mov" if data[4:8] == b"ftyp" else "matroska") as file:
            yield file
    except IsobitError:
        raise
    except Exception as error:
        if explain(error) is not None:
            with shortages():
                raise
        raise UsageError(f"{name} is damaged or cut off: it cannot be decoded as a video") from error
