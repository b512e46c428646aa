"""Media for tests of what is around models: a tower that counts, and files as people send them."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from served import bundled

from isobit.engine.llm import LLM
from isobit.errors import UsageError
from isobit.models.media import Kind, MediaPrompt, Medium, Picture, Piece, Placed, Sound

PLACE = 0  # the token that the template writes for a medium
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% else %}<|endoftext|>{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


class CountingTower:
    """A token for every 100 pixels and every 1,000 samples; it remembers what it was given."""

    def __init__(self, *kinds: Kind) -> None:
        self.placeholders = frozenset({PLACE})
        self.kinds = frozenset[Kind](kinds or ("image", "video", "audio"))
        self.given: list[Medium] = []
        self.messages_given: list[Mapping[str, Any]] = []

    def messages(self, messages: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Sequence[Mapping[str, Any]]:
        self.messages_given = list(messages)
        return messages

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> MediaPrompt:
        self.given += media
        if list(ids).count(PLACE) != len(media):
            raise UsageError(f"{list(ids).count(PLACE)} places for {len(media)} media")
        made: list[int] = []
        placed: list[Placed] = []
        left = list(media)
        for id in ids:
            if id != PLACE:
                made.append(id)
                continue
            piece = self._piece(left.pop(0))
            placed.append(Placed(piece, tuple(range(len(made), len(made) + piece.tokens))))
            made += [PLACE] * piece.tokens
        return MediaPrompt(tuple(made), tuple(placed))

    @staticmethod
    def _piece(medium: Medium) -> Piece:
        if isinstance(medium, Sound):
            values: Any = medium.samples
            count = len(values) // 1000 + 1
        else:
            values = medium.pixels if isinstance(medium, Picture) else medium.frames
            if values.size < 3 * 16:
                raise UsageError("the image is too small")
            count = values.size // 300 + 1
        return Piece.of(medium.kind, {"values": torch.from_numpy(np.ascontiguousarray(values))}, count)

    def encode(self, piece: Piece) -> torch.Tensor:
        return torch.zeros(piece.tokens, int(bundled().model.config.hidden_size))


def seeing(*kinds: Kind) -> LLM:
    """The bundled model with such a tower, whose pieces are embedded as nothing."""
    tokenizer = copy.copy(bundled().tokenizer)
    tokenizer.chat_templates = {"default": TEMPLATE}
    return LLM(bundled().model, tokenizer, tower=CountingTower(*kinds), sequences=8)


def png(width: int = 40, height: int = 30, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    return saved("PNG", Image.new("RGB", (width, height), colour))


def saved(form: str, image: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def gif(count: int = 3) -> bytes:
    frames = [Image.new("RGB", (20, 20), (60 * n, 0, 0)) for n in range(count)]
    return saved("GIF", frames[0], save_all=True, append_images=frames[1:], duration=500)


def wav(seconds: float = 0.5, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(np.arange(int(seconds * rate)) / 5), rate, format="WAV")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64(data)}"


def image(data: bytes | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(png() if data is None else data)}}


def audio(data: bytes | None = None) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": b64(wav() if data is None else data), "format": "wav"}}
