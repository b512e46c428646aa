"""Answers under way: who waits for which, and the steps that make them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable

from isobit.engine.answer import Answer, Piece
from isobit.engine.asked import Output, Outputs
from isobit.engine.driver import Driver
from isobit.engine.engine import Engine
from isobit.engine.interrupts import uninterrupted
from isobit.engine.office import Office
from isobit.errors import IsobitError


class Desk:
    """Takes answers that are to be made, and gives their pieces to whoever waits for them.

    Any number of threads may ask; whoever waits for an answer takes the steps, which serve all of them.

    Args:
        new_engine: makes what computes them; once more where a step failed so that nothing of it can be trusted.

    Attributes:
        engine: it.
        on_fault, on_recovery: called when a step for asynchronous streams has failed, and when others can go on.
        broken: why there is no engine any more; None while there is.
    """

    def __init__(self, new_engine: Callable[[], Engine]) -> None:
        self._new_engine = new_engine
        self.engine = new_engine()
        self._answers: dict[int, Answer] = {}
        self._unread: deque[tuple[int, Piece]] = deque()  # of answers that came by add
        self._ids = itertools.count(1)
        self._lock = threading.RLock()  # one step at a time
        self._door = threading.Lock()  # nobody comes in while the engine is replaced
        self._driver = Driver(self._step, lambda: self._busy, self._fault)  # of asynchronous streams
        self._post: Office | None = None
        self.broken: Exception | None = None
        self.on_fault: Callable[[Exception], object] = lambda error: None
        self.on_recovery: Callable[[], object] = lambda: None

    def _begin(
        self, answer: Answer, deliver: Callable[[tuple[int, Piece]], object], place: int, priority: int,
        id: int | None = None,
    ) -> int:  # fmt: skip
        """An answer is to be made; its pieces are delivered with ``place``. Returns its id."""
        id = next(self._ids) if id is None else id
        answer.deliver, answer.place, answer.priority = deliver, place, priority
        with self._door:
            if self.broken is not None:
                raise self.broken
            self._answers[id] = answer
            try:
                self._enter(id, answer)
            except BaseException:
                self._answers.pop(id, None)
                raise
        return id

    def _enter(self, id: int, answer: Answer) -> None:
        self.engine.add(
            id, answer.prompt, answer.params, answer.most, stops=answer.stops, priority=answer.priority,
            scored=answer.scored, constraint=answer.constraint, media=answer.media,
        )  # fmt: skip

    def _give(self, id: int, piece: Piece) -> None:
        answer = self._answers.get(id)
        if answer is None:
            return
        if piece.completion is not None or piece.error is not None:
            self._answers.pop(id, None)
        self._hand(answer, id, piece)

    def _hand(self, answer: Answer, id: int, piece: Piece) -> None:
        try:
            answer.deliver((answer.place, piece))
        except Exception:
            self._lost(id)

    def _lost(self, id: int) -> None:
        """Nobody is there any more: an event loop that was closed."""
        self._answers.pop(id, None)
        self.engine.abort(id)

    def _fail(self, id: int, error: Exception) -> None:
        """An answer ends with an error."""
        self.engine.abort(id)
        self._give(id, Piece("", error=error))

    def _drop(self, id: int) -> None:
        """Nobody waits for an answer any more; never waits itself."""
        if self._answers.pop(id, None) is not None:
            self.engine.abort(id)

    def _advance(self, enough: Callable[[], bool]) -> None:
        """Steps, one's own or others', until there is enough."""
        while not enough():
            with self._lock:
                if enough():
                    return
                if not self._busy:
                    raise RuntimeError("an answer is waited for that nobody is making")
                self._step()

    # Steps

    def _step(self) -> None:
        """Take one step, and hand to everybody what is theirs."""
        with self._lock:
            self.engine.advance()
            with uninterrupted():
                self._hand_out()

    def _hand_out(self) -> None:
        """What steps have made goes to whom it is for."""
        made = self.engine.made
        while made:
            output = made.popleft()
            if isinstance(output, Outputs):
                self._handle_all(output)
            else:
                self._handle(output)

    def _handle(self, output: Output) -> None:
        answer = self._answers.get(output.id)
        if answer is None:  # dropped while the step was under way
            return
        try:
            piece = answer.push(output)
        except Exception as error:  # of this answer; the others have their tokens all the same
            self._fail(output.id, error)
            return
        if piece.completion is None and piece.error is None:
            self._hand(answer, output.id, piece)
            return
        if piece.completion is not None and output.reason is None:
            self.engine.abort(output.id)  # at a stop string, of which the engine knows nothing
        self._give(output.id, piece)

    def _handle_all(self, outputs: Outputs) -> None:
        """A token for each of many: what of :meth:`_handle` is to be done for it."""
        answer_of, seconds = self._answers.get, outputs.seconds
        for id, token in zip(outputs.ids, outputs.tokens, strict=True):
            answer = answer_of(id)
            if answer is None:
                continue
            try:
                piece = answer.go_on(token, seconds)
            except Exception as error:
                self._fail(id, error)
                continue
            if piece is None:
                continue
            if piece.completion is not None:
                self.engine.abort(id)  # at a stop string
                self._give(id, piece)
                continue
            try:
                answer.deliver((answer.place, piece))
            except Exception:
                self._lost(id)

    @property
    def _busy(self) -> bool:
        """Whether a step has something to do."""
        return self.broken is None and (self.engine.unfinished or bool(self.engine.made))

    def _office(self) -> Office:
        """What brings pieces to the event loop that runs here."""
        loop = asyncio.get_running_loop()
        if self._post is None or self._post.loop is not loop:
            self._post = Office(loop)
        return self._post

    def _fault(self, error: Exception) -> None:
        """A step of the driver has failed: whoever took part in it gets to know, and the others go on.

        What isobit itself raises leaves the engine as it was. Behind anything else nothing of it can be trusted: there
        is a new one, and what waited waits there. Where no new one can be made nothing goes on.
        """
        with self._lock:
            self.on_fault(error)
            self._hand_out()
            running = set(self.engine.scheduler.running)
            touched = [id for id, answer in [*self._answers.items()] if id in running or answer.begun]
            for id in touched or [*self._answers]:
                self._fail(id, error)
            if not isinstance(error, IsobitError):
                self._replace()
            self.on_recovery()

    def _replace(self) -> None:
        """A new engine, with all answers that are left."""
        with self._door:
            self.engine.close()
            try:
                self.engine = self._new_engine()
            except Exception as error:
                self.broken = error
                for id in [*self._answers]:
                    self._give(id, Piece("", error=error))
                return
            for id, answer in self._answers.items():
                self._enter(id, answer)
