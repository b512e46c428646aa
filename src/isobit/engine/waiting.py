"""Ways to wait for answers: all of them whole, piece by piece, or on an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

from isobit.engine.answer import Answer, Completion, Piece
from isobit.engine.desk import Desk


class Waiting(Desk):
    """Hands out the pieces of answers that have not begun (:func:`isobit.engine.prepare.prepared`)."""

    def _completed(self, answers: list[Answer], priority: int) -> list[Completion]:
        """All of them, in their order."""
        ended: dict[int, Piece] = {}
        ids: list[int] = []

        def keep(came: tuple[int, Piece]) -> None:
            place, piece = came
            if piece.completion is not None or piece.error is not None:
                ended[place] = piece

        for answer in answers:
            answer.whole = True
        try:
            ids += [self._begin(answer, keep, place, priority) for place, answer in enumerate(answers)]
            while len(ended) < len(answers):
                self._advance(lambda: len(ended) == len(answers) or any(piece.error for piece in ended.values()))
                failed = next((piece.error for piece in ended.values() if piece.error is not None), None)
                if failed is not None:
                    raise failed
        finally:
            for id in ids:
                self._drop(id)
        return [_completion(ended[place]) for place in range(len(answers))]

    def _alone(self, answer: Answer, priority: int) -> Iterator[Piece]:
        """One answer, piece by piece; whoever asks for a piece takes the steps."""
        with closing(self._pieces([answer], priority)) as pieces:
            for _, piece in pieces:
                yield piece

    def _pieces(self, answers: Sequence[Answer], priority: int) -> Generator[tuple[int, Piece]]:
        """Pieces of all of them as they come, each with the place of its answer."""
        came: deque[tuple[int, Piece]] = deque()
        ids: list[int] = []
        try:
            for place, answer in enumerate(answers):
                ids.append(self._begin(answer, came.append, place, priority))
            left = len(answers)
            while left:
                self._advance(lambda: bool(came))
                place, piece = came.popleft()
                if piece.error is not None:
                    raise piece.error
                left -= piece.completion is not None
                yield place, piece
        finally:
            for id in ids:
                self._drop(id)

    async def _pieces_async(self, answers: Sequence[Answer], priority: int) -> AsyncGenerator[tuple[int, Piece]]:
        """The same on an event loop: a thread takes the steps."""
        came = asyncio.Queue[tuple[int, Piece]]()
        office = self._office()
        ids: list[int] = []
        try:
            for place, answer in enumerate(answers):
                ids.append(self._begin(answer, partial(office.post, came), place, priority))
            self._driver.drive()
            left = len(answers)
            while left:
                first = await came.get()
                for place, piece in (first,) if came.empty() else _joined(first, came):
                    if piece.error is not None:
                        raise piece.error
                    left -= piece.completion is not None
                    yield place, piece
        finally:
            for id in ids:
                self._drop(id)


def _joined(first: tuple[int, Piece], came: asyncio.Queue[tuple[int, Piece]]) -> list[tuple[int, Piece]]:
    """What came while the reader was busy: one piece for each answer, and behind those an error.

    Whoever reads more slowly than tokens come so has fewer pieces to work on, and is never further behind than one of
    each answer.
    """
    place, piece = first
    parts: dict[int, list[Piece]] = {}
    errors: list[tuple[int, Piece]] = []
    while True:
        if piece.error is not None:
            errors.append((place, piece))
        else:
            parts.setdefault(place, []).append(piece)
        if came.empty():
            break
        place, piece = came.get_nowait()
    return [(place, pieces[0] if len(pieces) == 1 else _one(pieces)) for place, pieces in parts.items()] + errors


def _one(pieces: Sequence[Piece]) -> Piece:
    """Pieces of an answer that follow each other, as one."""
    return Piece(
        "".join([piece.text for piece in pieces]),
        tuple([token for piece in pieces for token in piece.token_ids]),
        pieces[-1].completion,
        logprobs=tuple([entry for piece in pieces for entry in piece.logprobs]),
    )


def _completion(piece: Piece) -> Completion:
    assert piece.completion is not None
    return piece.completion
