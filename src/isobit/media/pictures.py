"""Files of images to pixels. Nothing is decoded before the header has said how much there will be.

Pixels are those that transformers hands to its processors: upright (EXIF), RGB, with transparency left out. One thing
differs: gray images of 16 bits are scaled to 8; converting them clips them, and nearly all of them becomes white.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isobit.errors import IsobitError, UsageError
from isobit.media.limits import LIMITS, Limits, require_size
from isobit.media.values import Clip, Picture
from isobit.shortage import explain, shortages

if TYPE_CHECKING:
    from PIL import Image

# What is decoded, by the names of Pillow: what clients send, and few decoders. JPEG includes the files of telephones
# that hold a second picture (MPO), whose first is meant.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
NAMES = "PNG, JPEG, WebP, GIF, BMP"
_FIRST_ALONE = ("JPEG", "MPO")
_SCAN = b"\xff\xda"  # begins one, and cannot be within one
SCANS = 100  # of one JPEG: progressive ones have about ten, and thousands of empty ones would take minutes
_DEEP = ("I;16", "I;16B", "I;16L", "I")  # gray in 16 bits
_ORIENTATION = 0x0112
_STILL = 10.0  # frames a second where a file says nothing, as browsers show it


def picture(data: bytes, limits: Limits = LIMITS, *, name: str = "the picture") -> Picture:
    """The picture of a file.

    Args:
        data: the whole file, in one of :data:`FORMATS`.
        limits: what it may cost.
        name: what errors call it.

    Raises:
        UsageError: it is no such file, is cut off or damaged, is animated, or is too large.
        CapacityError: memory does not suffice.
    """
    require_size(data, limits, name)
    with _opened(data, name) as image:
        _require_pixels(image, 1, limits, name)
        if image.format in _FIRST_ALONE and (scans := data.count(_SCAN)) > SCANS:
            raise UsageError(f"{name} is a JPEG of {scans} scans, each over the whole picture; {SCANS} are read")
        if getattr(image, "is_animated", False) and image.format not in _FIRST_ALONE:
            raise UsageError(f"{name} is animated: give it as a video, or save one of its frames as an image")
        return Picture(_upright(_pixels(image), _orientation(image)))


def animation(data: bytes, limits: Limits = LIMITS, *, name: str = "the video") -> Clip:
    """The frames of an animated GIF, WebP or PNG; of any other image the only one there is.

    Its rate is the mean one: frames of unequal length count as equally long.

    Args:
        data, limits, name: as :func:`picture` takes them.

    Raises:
        UsageError, CapacityError: as :func:`picture` raises them; there are too many frames, or they last too long.
    """
    require_size(data, limits, name)
    frames: list[NDArray[np.uint8]] = []
    milliseconds = 0.0
    with _opened(data, name) as image:
        turned = _orientation(image)
        for number in range(limits.frames + 1):
            if not _sought(image, number):
                break
            if number == limits.frames:
                raise UsageError(f"{name} has more than {limits.frames} frames, which is the limit")
            _require_pixels(image, number + 1, limits, name)
            frames.append(_upright(_pixels(image), turned))
            milliseconds += _duration(image)
    if milliseconds > limits.seconds * 1000:
        raise UsageError(f"{name} lasts {milliseconds / 1000:g} seconds; the limit is {limits.seconds:g}")
    with shortages():
        return Clip(np.stack(frames), len(frames) * 1000 / milliseconds if milliseconds else _STILL)


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The image, its header read. Whatever its library raises while it is open becomes an error of ours.

    What that says is not told: it may hold addresses of memory.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UsageError(f"{name} cannot be read without Pillow: pip install 'isobit[media]'") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except IsobitError:
        raise
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is no image that can be read: {NAMES} are") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{name} has far too many pixels") from error
    except Exception as error:
        if explain(error) is not None:
            with shortages():
                raise
        raise UsageError(f"{name} is damaged or cut off: it cannot be decoded as an image") from error


def _require_pixels(image: Image.Image, frames: int, limits: Limits, name: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UsageError(f"{name} has no pixels: its size is {width} x {height}")
    if width * height * frames > limits.pixels:
        many = f"{frames} frames of " if frames > 1 else ""
        raise UsageError(f"{name} has {many}{width} x {height} pixels; the limit is {limits.pixels:,} in all")


def _sought(image: Image.Image, number: int) -> bool:
    """Whether there is such a frame; if so it is the current one."""
    try:
        image.seek(number)
    except EOFError:
        return False
    return True


def _duration(image: Image.Image) -> float:
    """Milliseconds of the current frame."""
    image.load()
    found = image.info.get("duration", 0)
    return float(found) if isinstance(found, int | float) and 0 < found < 1e9 else 1000 / _STILL


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 ``[height, width, 3]`` of the current frame."""
    image.load()
    if image.mode in _DEEP:
        gray = (np.asarray(image).astype(np.uint32).clip(0, 65535) * 255 + 32767) // 65535
        return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)
    image.info.pop("transparency", None)  # left out anyway; Pillow warns of some
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _upright(pixels: NDArray[np.uint8], turned: int) -> NDArray[np.uint8]:
    """The pixels as the camera was held."""
    return np.ascontiguousarray(_TURNS[turned](pixels)) if turned in _TURNS else pixels


# What undoes each of EXIF's orientations.
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none: read here, for this one number, and never an error."""
    found = image.info.get("exif")
    exif = bytes(found) if isinstance(found, bytes | bytearray) else b""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for number in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, at + 2 + 12 * number)
            if (tag, kind, count) == (_ORIENTATION, 3, 1):
                return int(value)
    except struct.error:
        pass
    return 1
