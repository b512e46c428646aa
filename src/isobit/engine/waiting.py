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

    async def _pieces_async(self, answers: Sequence[Answer], priority: int) -> AsyncGenerator[list[tuple[int, Piece]]]:
        """The same on an event loop, where a thread takes the steps: all that came while the reader was busy at once.

        An error comes by itself, behind what was made before it.
        """
        came = asyncio.Queue[tuple[int, Piece]]()
        office = self._office()
        ids: list[int] = []
        try:
            for place, answer in enumerate(answers):
                ids.append(self._begin(answer, partial(office.post, came), place, priority))
            self._driver.drive()
            left = len(answers)
            while left:
                found = [await came.get()]
                while not came.empty():
                    found.append(came.get_nowait())
                sound = [one for one in found if one[1].error is None]
                left -= sum([piece.completion is not None for _, piece in sound])
                if sound:
                    yield sound
                for _, piece in found:
                    if piece.error is not None:
                        raise piece.error
        finally:
            for id in ids:
                self._drop(id)


def _completion(piece: Piece) -> Completion:
    assert piece.completion is not None
    return piece.completion
