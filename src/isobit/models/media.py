"""Pictures, clips and sounds: as people give them, as encoders read them, and where they stand in a prompt.

Raw media (:class:`Picture`, :class:`Clip`, :class:`Sound`, which :mod:`isobit.media` decodes) are bounded already. A
family's tower (:class:`Tower`, a file in ``models/encoders/``) makes pieces of them, and a prompt in which every token
that stands for a part of a piece is there; its encoder turns a piece into embeddings, which take the place of those
tokens' own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from isobit.errors import UsageError
from isobit.media.values import PLURALS, Clip, Kind, Medium, Picture, Sound

__all__ = [
    "Clip",
    "Hearing",
    "Kind",
    "Medium",
    "MediaPrompt",
    "Picture",
    "Piece",
    "Placed",
    "Sound",
    "Tower",
    "require_taken",
]


@dataclass(frozen=True, eq=False)
class Piece:
    """A medium as an encoder reads it.

    Attributes:
        kind: what it is.
        inputs: what the encoder reads, by the names of the family's own model.
        tokens: how many tokens of a prompt it stands for: rows of its embeddings.
        key: names the inputs; the prefix cache tells pieces apart by it.
    """

    kind: Kind
    inputs: Mapping[str, Tensor]
    tokens: int
    key: bytes

    @classmethod
    def of(cls, kind: Kind, inputs: Mapping[str, Tensor], tokens: int) -> Piece:
        """A piece whose key is made of its inputs."""
        return cls(kind, inputs, tokens, _key(kind, inputs))


@dataclass(frozen=True, eq=False)
class Placed:
    """A piece in a prompt.

    Attributes:
        piece: it.
        places: of the tokens that stand for its parts, ascending, ``piece.tokens`` of them. They need not be in a row:
            the frames of a video have marks between them.
    """

    piece: Piece
    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class MediaPrompt:
    """A prompt with pieces in it.

    Attributes:
        ids: token ids; one for each part of a piece.
        placed: the pieces, in the order of their first places.
        positions: int64 ``[T, axes]``, what rotary embeddings are told of each token; None where that is its place.
        following: what they are told of the first token of the answer on every axis; each one behind it is told one
            more.
    """

    ids: tuple[int, ...]
    placed: tuple[Placed, ...] = ()
    positions: Tensor | None = None
    following: int | None = None

    @property
    def shift(self) -> int:
        """What is added to the place of a token of the answer to get its position."""
        return 0 if self.following is None else self.following - len(self.ids)


@dataclass(frozen=True)
class Hearing:
    """What a tower that hears is asked for when a sound is to be written down; its ``hearing``, where it can.

    Attributes:
        instruction: of the request, behind the sound.
        longest: seconds of one sound.
        rate: samples a second that it hears.
        tokens: of a second of sound.
    """

    instruction: str
    longest: float
    rate: int
    tokens: float


class Tower(Protocol):
    """What a family has beside its decoder: it prepares media for prompts and encodes them.

    Attributes:
        kinds: what it takes.
        placeholders: ids of the tokens that stand for media in a rendered template, and of those around them. Where
            people write them they are text, also if the tokenizer does not call them special.
    """

    kinds: frozenset[Kind]
    placeholders: frozenset[int]

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        """Messages as the family's chat template wants them.

        Texts in them are not quite what people wrote: what looks like a token that steers is hidden. So nothing may
        depend on them; a text that is added here is the template's own.

        Args:
            messages: whose content may be a list of parts; ``{"type": "image"}``, ``{"type": "video"}`` and
                ``{"type": "audio"}`` stand for the media, in their order.
            media: as many as there are such parts.

        Raises:
            UsageError: there are more or fewer media than parts, or a kind that the family does not take.
        """

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        """The prompt of a rendered template's token ids, in which one token (or what the template writes) stands for
        each medium.

        Raises:
            UsageError: the ids have more or fewer such places than there are media, or a medium cannot be prepared (an
                image too small or too long, a sound too long).
        """

    def encode(self, piece: Piece) -> Tensor:
        """Embeddings ``[piece.tokens, hidden]`` on the decoder's device, in its dtype."""


def require_taken(takes: Iterable[Kind], given: Iterable[Kind]) -> None:
    """Raises a UsageError if a model that takes some kinds is given others."""
    taken = sorted(takes)
    strange = next((kind for kind in given if kind not in taken), None)
    if strange is not None:
        told = " and ".join(PLURALS[kind] for kind in taken)
        raise UsageError(f"this model takes {told}, and no {PLURALS[strange]}: leave them out")


def _key(kind: Kind, inputs: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over names, dtypes, shapes and bytes."""
    made = hashlib.sha256(kind.encode())
    for name in sorted(inputs):
        value = inputs[name].detach().cpu().contiguous()
        made.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        made.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return made.digest()
