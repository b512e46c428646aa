"""A tower without a network: what it encodes is made of the pixels alone, and its positions are those of GLM-V."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobit.engine.conversation import parts_of
from isobit.errors import IsobitError, UsageError
from isobit.models.media import MediaPrompt, Medium, Picture, Piece, Placed

AXES = 3


def picture(height: int, width: int, seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels)


class FakeTower:
    """Takes pictures; a pixel is a token.

    Args:
        hidden: width of its embeddings.
        token: id that stands for a picture.
        axes: positions of a token; 1 for none but its place.

    Attributes:
        encoded: heights of the pictures that were encoded, in order.
        broken: heights of those that cannot be.
    """

    kinds = frozenset({"image"})

    def __init__(self, hidden: int, token: int, axes: int = AXES) -> None:
        self.hidden, self.token, self.axes = hidden, token, axes
        self.placeholders = frozenset({token})
        self.encoded: list[int] = []
        self.broken: dict[int, Exception] = {}

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        if parts_of(messages) != [one.kind for one in media]:
            raise UsageError(f"{len(parts_of(messages))} parts and {len(media)} media")
        return messages

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        if list(ids).count(self.token) != len(media):
            raise UsageError(
                f"the prompt has {list(ids).count(self.token)} places for images, and there are {len(media)}"
            )
        waiting, made, placed = iter(media), list[int](), list[Placed]()
        positions, following = list[list[int]](), 0
        for id in ids:
            if id != self.token:
                made.append(id)
                positions.append([following] * AXES)
                following += 1
                continue
            one = next(waiting)
            assert isinstance(one, Picture)
            height, width = one.pixels.shape[:2]
            piece = Piece.of("image", {"pixels": torch.from_numpy(one.pixels)}, height * width)
            placed.append(Placed(piece, tuple(range(len(made), len(made) + height * width))))
            made += [id] * (height * width)
            positions += [
                [following, following + row, following + column] for row in range(height) for column in range(width)
            ]
            following += max(height, width)
        if self.axes == 1 or not placed:
            return MediaPrompt(tuple(made), tuple(placed))
        return MediaPrompt(tuple(made), tuple(placed), torch.tensor(positions), following)

    def encode(self, piece: Piece) -> Tensor:
        pixels = piece.inputs["pixels"]
        self.encoded.append(len(pixels))
        if len(pixels) in self.broken:
            raise self.broken[len(pixels)]
        numbers = torch.randn(3, self.hidden, generator=torch.Generator().manual_seed(3))
        return (pixels.reshape(-1, 3).float() / 255 - 0.5) @ numbers


class Unreadable(IsobitError):
    """Of a picture."""
