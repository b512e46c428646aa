"""Parts of messages, in the words of every interface: texts, and media as they came, which are decoded later."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isobit.errors import UsageError
from isobit.media import Clip, Kind, Limits, Medium, Picture, clip, picture, sound
from isobit.server import remote
from isobit.server.errors import wrong

TEXTS = ("text", "input_text", "output_text", "refusal")
MOST_FRAMES = 4096  # that are listed one by one
AT_ONCE = 4  # so many media of the largest kind may one request have, decoded
_UNSERVED = {
    "file": "files are not read: send what is in them as text or as an image",
    "input_file": "files are not read: send what is in them as text or as an image",
    "document": "documents are not read: send what is in them as text or as an image",
}


class Part(dict[str, Any]):
    """A part of a message that came by another interface, where it stood elsewhere.

    Attributes:
        where: it stood, as the client wrote it.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.where = where


class Address(str):
    """Where a file is elsewhere; any other text is the base64 of a file."""


@dataclass(frozen=True)
class Given:
    """A medium as it came.

    Attributes:
        kind: what it is to be.
        where: it stands in the request.
        data: base64 of its file, or of each of its frames; a video's may have commas between frames. Or addresses.
        rate: frames a second, of frames.
    """

    kind: Kind
    where: str
    data: tuple[str, ...]
    rate: float | None = None

    def parts(self, most: int) -> list[str]:
        """Its files, one more than ``most`` at most."""
        split = self.kind == "video"
        return [
            part
            for text in self.data
            for part in (text.split(",", most) if split and not isinstance(text, Address) else [text])
        ]


def read(part: object, where: str) -> str | Given:
    """A part: its text, or its medium.

    Raises:
        Refusal: it is neither, or cannot be read.
    """
    where = getattr(part, "where", where)
    if not isinstance(part, Mapping):  # routes of other interfaces hand lists on as they come
        raise wrong(f"{where} must be an object", where)
    kind = part.get("type", "text")
    if kind in TEXTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise wrong(f"{where}.text must be a text", where)
        return text
    reader = _MEDIA.get(kind) if isinstance(kind, str) else None
    if reader is None:
        served = ", ".join(["text", *_MEDIA])
        reason = _UNSERVED.get(str(kind), f"parts may be {served}")
        raise wrong(f"{where} is of type {str(kind)[:40]!r}; {reason}", where)
    return reader(part, where)


def _image(part: Mapping[str, Any], where: str) -> Given:
    """OpenAI's: an object with an address in chats, the address itself in responses."""
    if part.get("file_id") is not None:
        raise wrong(f"{where}.file_id: nothing is stored here; send a data: URL as image_url", where)
    found = part.get("image_url")
    return Given("image", where, (_encoded(_inner(found, "url"), f"{where}.image_url", where),))


def _audio(part: Mapping[str, Any], where: str) -> Given:
    found = part.get("input_audio")
    if not isinstance(found, Mapping) or not isinstance(found.get("data"), str):
        raise wrong(f'{where} needs "input_audio": {{"data": base64, "format": ...}}', where)
    data = found["data"]
    return Given("audio", where, (_encoded(data, f"{where}.input_audio", where) if data[:5] == "data:" else data,))


def _audio_url(part: Mapping[str, Any], where: str) -> Given:
    return Given("audio", where, (_encoded(_inner(part.get("audio_url"), "url"), f"{where}.audio_url", where),))


def _video(part: Mapping[str, Any], where: str) -> Given:
    """An address; or a list of them, a frame each, with ``fps`` beside it. ``video/jpeg`` has them all in one."""
    found = part.get("video_url")
    address = _inner(found, "url")
    rate = found.get("fps") if isinstance(found, Mapping) else None
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise wrong(f"{where}.video_url.fps must be a number", where)
    name = f"{where}.video_url"
    addresses = address if isinstance(address, list) else [address]
    if not 1 <= len(addresses) <= MOST_FRAMES:
        raise wrong(f"{name} has {len(addresses)} frames; 1 to {MOST_FRAMES} are read", where)
    return Given("video", where, tuple(_encoded(one, name, where) for one in addresses), rate)


_MEDIA: dict[str, Callable[[Mapping[str, Any], str], Given]] = {
    "image_url": _image,
    "input_image": _image,
    "input_audio": _audio,
    "audio_url": _audio_url,
    "video_url": _video,
}


def _inner(found: object, name: str) -> object:
    return found.get(name) if isinstance(found, Mapping) else found


def _encoded(address: object, name: str, where: str) -> str:
    """The base64 of a data: URL, or an address."""
    if not isinstance(address, str):
        raise wrong(f"{name} must be a data: URL", where)
    scheme = address[:8].partition(":")[0].lower()
    if scheme in ("http", "https"):
        return Address(address)
    head, comma, data = address.partition(",")
    if scheme != "data" or not comma or not head.lower().endswith(";base64"):
        raise wrong(f"{name} must be a data: URL in base64, as data:image/png;base64,...", where)
    return data


def decoded(given: Sequence[Given], limits: Limits) -> list[Medium]:
    """All of them, fetched where they are elsewhere, one after the other; takes as long as that takes.

    Raises:
        Refusal: one cannot be decoded or is beyond the limits, or all together are.
        CapacityError: memory does not suffice.
    """
    found: list[Medium] = []
    until = time.monotonic() + remote.SECONDS
    pixels, samples = 0, 0
    for one in given:
        try:
            medium = _decoded(one, limits, until)
        except UsageError as error:
            raise wrong(str(error), one.where) from error
        found.append(medium)
        if isinstance(medium, Picture | Clip):
            pixels += (medium.pixels if isinstance(medium, Picture) else medium.frames).size // 3
        else:
            samples += len(medium.samples)
        if pixels > AT_ONCE * limits.pixels or samples > AT_ONCE * limits.samples:
            most = f"{AT_ONCE * limits.pixels:,} pixels and {AT_ONCE * limits.samples:,} samples"
            raise wrong(f"{one.where}: the media of one request may have {most} in all", one.where)
    return found


def _decoded(given: Given, limits: Limits, until: float) -> Medium:
    texts = given.parts(limits.frames)
    if len(texts) > limits.frames:
        raise UsageError(f"{given.where} has more than {limits.frames} frames, which is the limit")
    files = [_bytes(text, given.where, limits, until) for text in texts]
    if given.kind == "image":
        return picture(files[0], limits, name=given.where)
    if given.kind == "audio":
        return sound(files[0], limits, name=given.where)
    if len(files) == 1 and given.rate is None:
        return clip(files[0], limits, name=given.where)
    return clip(files, limits, rate=1.0 if given.rate is None else given.rate, name=given.where)


def _bytes(text: str, where: str, limits: Limits, until: float) -> bytes:
    if isinstance(text, Address):
        return remote.fetch(text, limits.bytes, where, until)
    if len(text) > limits.bytes * 2 or len(text) // 4 * 3 > limits.bytes + 3:
        raise UsageError(f"{where} has about {len(text) // 4 * 3:,} bytes; the limit is {limits.bytes:,}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"{where} is not in base64") from None
