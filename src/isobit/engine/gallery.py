"""The pieces of the prompts under way, and what an encoder has made of them.

A piece is encoded when the first of its tokens is to be computed: what is found in the cache is not encoded again. Its
embeddings stay until the last of them was computed, and as long after that as there is room for them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isobit.engine.request import Part, Schedule
from isobit.engine.sights import Glimpse, Sight, Sights
from isobit.errors import IsobitError
from isobit.models.batch import Overlay
from isobit.models.media import MediaPrompt, Piece
from isobit.shortage import shortages

KEPT = 256 << 20  # bytes of embeddings that no prompt needs any more

Encode = Callable[[Piece], Tensor]


def sights_of(prompt: MediaPrompt) -> Sights:
    """A prompt's pieces and positions, as the scheduler knows them."""
    shown = tuple(Sight(one.piece.key, one.places) for one in prompt.placed)
    if prompt.positions is None:
        return Sights(shown, len(prompt.ids), shift=prompt.shift)
    told = array("q", prompt.positions.to("cpu", torch.int64).contiguous().numpy().tobytes())
    return Sights(shown, len(prompt.ids), prompt.positions.shape[1], told, prompt.shift)


@dataclass(eq=False)
class _Visitor:
    """A prompt under way; ``holds`` are the keys of the pieces whose embeddings are kept for it."""

    prompt: MediaPrompt
    sights: Sights
    holds: set[bytes] = field(default_factory=set)


class Gallery:
    """What tokens of prompts stand for.

    Args:
        encode: what makes embeddings ``[piece.tokens, hidden]`` of a piece; None where no prompt has any.
        kept: bytes of embeddings that stay although no prompt needs them any more.

    Attributes:
        encoded: how many pieces have been.
    """

    def __init__(self, encode: Encode | None = None, kept: int = KEPT) -> None:
        self._encode, self._kept = encode, kept
        self._visitors: dict[int, _Visitor] = {}
        self._embeds: dict[bytes, Tensor] = {}  # those used last are the last
        self._holders: Counter[bytes] = Counter()
        self.encoded = 0

    def enter(self, id: int, prompt: MediaPrompt, sights: Sights) -> None:
        """A request's prompt, until it leaves."""
        self._visitors[id] = _Visitor(prompt, sights)

    def leave(self, id: int) -> None:
        """A request has ended, one with pieces or not."""
        visitor = self._visitors.pop(id, None)
        if visitor is not None:
            self._let_go(visitor, visitor.holds)

    def ready(self, schedule: Schedule) -> dict[int, IsobitError]:
        """Encodes what a step needs and nobody has encoded; returns why it cannot be, by request."""
        failed: dict[int, IsobitError] = {}
        if not self._visitors:
            return failed
        for part in schedule.parts:
            visitor = self._visitors.get(part.id)
            if visitor is None:
                continue
            sights, end = visitor.sights.shown, part.first + len(part.tokens)
            keys = {sights[one.number].key for one in visitor.sights.within(part.first, end)} if part.looks else set()
            ahead = {one.key for one in sights if one.places[-1] >= end}
            self._let_go(visitor, visitor.holds - keys - ahead)
            try:
                for one in visitor.prompt.placed:
                    if one.piece.key in keys:
                        self._hold(visitor, one.piece)
            except IsobitError as error:
                failed[part.id] = error
        return failed

    def overlay(self, part: Part) -> Overlay | None:
        """The embeddings that some of a part's new tokens have instead of their own; it is ready."""
        visitor = self._visitors.get(part.id) if part.looks else None
        if visitor is None:
            return None
        found = [*visitor.sights.within(part.first, part.first + len(part.tokens))]
        if not found:
            return None
        rows = torch.tensor([place for one in found for place in one.places])
        return Overlay(rows, torch.cat([self._rows(visitor, one) for one in found]))

    def positions(self, part: Part) -> Tensor | None:
        """What rotary embeddings are told of a part's new tokens; None where that is their places."""
        visitor = self._visitors.get(part.id)
        if visitor is None:
            return None
        told, end = visitor.prompt.positions, part.first + len(part.tokens)
        length = len(visitor.prompt.ids)
        answer = torch.arange(max(part.first, length), max(end, length)) + part.shift
        if part.first >= length:
            return answer if part.shift else None
        if told is None:
            if not part.shift:
                return None
            return torch.cat((torch.arange(part.first, min(length, end)), answer))
        return torch.cat((told[part.first : end], answer[:, None].expand(-1, told.shape[1])))

    def _rows(self, visitor: _Visitor, one: Glimpse) -> Tensor:
        embeds = self._embeds[visitor.sights.shown[one.number].key]
        return embeds[one.first : one.first + len(one.places)]

    def _hold(self, visitor: _Visitor, piece: Piece) -> None:
        """A piece's embeddings are there, until the prompt lets go of them."""
        if piece.key in self._embeds:
            self._embeds[piece.key] = self._embeds.pop(piece.key)
        else:
            self._embeds[piece.key] = self._made(piece)
            self.encoded += 1
        if piece.key not in visitor.holds:
            visitor.holds.add(piece.key)
            self._holders[piece.key] += 1
        self._sweep()

    def _made(self, piece: Piece) -> Tensor:
        """Embeddings of a piece.

        Raises:
            IsobitError: it cannot be encoded; the message says why.
        """
        assert self._encode is not None, "a prompt with pieces, and nothing that encodes them"
        try:
            with shortages():
                embeds = self._encode(piece)
        except IsobitError:
            raise
        except Exception as error:
            raise IsobitError(f"the {piece.kind} cannot be encoded: {type(error).__name__}: {error}") from error
        if embeds.dim() != 2 or len(embeds) != piece.tokens:
            raise IsobitError(
                f"the {piece.kind} stands for {piece.tokens} tokens and was encoded as {list(embeds.shape)}"
            )
        return embeds

    def _let_go(self, visitor: _Visitor, keys: set[bytes]) -> None:
        for key in keys:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
        visitor.holds = visitor.holds - keys
        if keys:
            self._sweep()

    def _sweep(self) -> None:
        """Those that nobody holds make room, the longest unused first."""
        idle = {key: embeds.nbytes for key, embeds in self._embeds.items() if key not in self._holders}
        over = sum(idle.values()) - self._kept
        for key, size in idle.items():
            if over <= 0:
                return
            del self._embeds[key]
            over -= size
