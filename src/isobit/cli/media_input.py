"""Pictures, videos and sounds that a person names: options in the order they are given, and files, read and decoded."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.parser import path
from isobit.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from isobit.media import Kind, Limits, Medium

# option, what it names, formats
OPTIONS: tuple[tuple[Kind, str], ...] = (
    ("image", "PNG, JPEG, WebP, GIF, BMP"),
    ("audio", "WAV, FLAC, OGG, MP3"),
    ("video", "animated GIF, WebP, PNG; MP4, WebM, Matroska with isobit[video]"),
)
KINDS: tuple[Kind, ...] = ("image", "audio", "video")
_SENT = {"image_url": "image", "input_audio": "audio", "video_url": "video"}
_CALLED = {"image": "the image", "audio": "the sound", "video": "the video"}


@dataclass(frozen=True)
class File:
    """A file of a medium.

    Attributes:
        kind: what it is to be.
        path: of it.
        data: its bytes.
    """

    kind: Kind
    path: Path
    data: bytes

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{_CALLED[self.kind]} {self.path}"

    def decoded(self) -> Medium:
        """What is in it.

        Raises:
            UsageError: it cannot be decoded; the message names the file.
            CapacityError: memory does not suffice.
        """
        from isobit import media

        read: Any = {"image": media.picture, "audio": media.sound, "video": media.clip}[self.kind]
        medium: Medium = read(self.data, limits(), name=self.name)
        return medium

    def part(self) -> dict[str, Any]:
        """The part of a message that stands for it where it is computed here."""
        return {"type": self.kind}

    def sent(self) -> dict[str, Any]:
        """The part of a message that carries it to a server."""
        data = base64.b64encode(self.data).decode("ascii")
        if self.kind == "audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": self.path.suffix[1:].lower()}}
        name = f"{self.kind}_url"
        return {"type": name, name: {"url": f"data:{self.kind}/{self.path.suffix[1:].lower() or 'any'};base64,{data}"}}


class _Append(argparse.Action):
    """Adds ``(kind, path)`` to ``args.media``: order matters, over all of the options."""

    def __call__(self, parser: Any, args: argparse.Namespace, value: Any, option: Any = None) -> None:
        args.media = [*args.media, (self.const, value)]


def add_media_options(parser: argparse.ArgumentParser, of: str) -> None:
    """--image, --audio and --video; ``of`` says where the files go."""
    group = parser.add_argument_group(
        "pictures, sounds and videos", f"Files for models that see or hear; they stand before {of}, in this order."
    )
    parser.set_defaults(media=[])
    for kind, formats in OPTIONS:
        group.add_argument(
            f"--{kind}",
            type=path,
            action=_Append,
            const=kind,
            dest="media",
            metavar="FILE",
            help=f"{formats}; repeatable",
        )


def limits() -> Limits:
    """Of files that people name themselves: what a machine bears, not what a server gives to anybody."""
    from isobit.media.limits import MOST_PIXELS, Limits

    return Limits(bytes=1 << 30, pixels=MOST_PIXELS, frames=4096, seconds=6 * 3600.0)


def read(kind: Kind, path: Path) -> File:
    """A file's bytes.

    Raises:
        UsageError: it is no file, or too large, or cannot be read.
    """
    from isobit.checkpoint.files import read_file

    try:
        return File(kind, path, read_file(path, limits().bytes))
    except CheckpointError as error:
        raise UsageError(f"{_CALLED[kind]} {error}") from None


def read_all(args: argparse.Namespace) -> list[File]:
    """The files that options name; raises a UsageError as :func:`read`."""
    return [read(kind, path) for kind, path in args.media]


def require_taken(model: str, revision: str | None, files: Sequence[File]) -> None:
    """A model must take what it is given; asked of its ``config.json``, before weights are read or fetched.

    Raises:
        UsageError: it does not, or what that needs is not installed.
        SourceError: there is no such model.
    """
    if not files:
        return
    from isobit import api
    from isobit.checkpoint.text.tokens import optional_json
    from isobit.models import media
    from isobit.models.encoders.table import why_none
    from isobit.models.towers import tower_of

    config = optional_json(api.find(model, revision=revision, weights=False) / "config.json")
    why, row = why_none(config), tower_of(config)
    if why is not None:
        raise UsageError(why)
    if row is not None:
        media.require_taken(row.kinds, [file.kind for file in files])


def content(text: str, files: Sequence[File], *, sent: bool = False) -> str | list[dict[str, Any]]:
    """The content of a message with these before its text; ``sent`` to a server."""
    if not files:
        return text
    parts = [one.sent() if sent else one.part() for one in files]
    return [*parts, {"type": "text", "text": text}] if text else parts


def shown(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without the bytes that they carry to a server."""
    return [message | {"content": _shown(message["content"])} for message in messages]


def _shown(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else {"type": _SENT.get(part["type"], part["type"])} for part in content]
