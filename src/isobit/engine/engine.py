"""Requests in, tokens out: the scheduler decides what is fed, a runner computes, the sampler chooses.

On a runner that can (:class:`~isobit.engine.flight.Ahead`) the next step is started before the tokens of the last one
are read, so that the device never waits for what is done with them.

Requests may come and go from any thread; steps are taken by one at a time.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence

import torch

from isobit import arguments
from isobit.engine import scoring
from isobit.engine.asked import Asked, Output, Outputs, Voices
from isobit.engine.blocks import BlockPool, blocks_for
from isobit.engine.constraint import Constraint
from isobit.engine.course import Onward
from isobit.engine.flight import Ahead, Flight, Known, Runner, Scores, Stopwatch
from isobit.engine.gallery import Gallery, sights_of
from isobit.engine.growth import make_room
from isobit.engine.interrupts import uninterrupted
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.request import UNKNOWN, FinishReason, Request, Schedule
from isobit.engine.request import made as new
from isobit.engine.sampler import Choice, Chooser, sample
from isobit.engine.scheduler import Scheduler
from isobit.errors import IsobitError
from isobit.models.media import MediaPrompt
from isobit.shortage import shortages

MOST_PRIORITY = 1_000_000  # and as much below zero
SEQUENCES = 64  # that take part in a step at most, where nobody says


class Engine:
    """One model's requests.

    Args:
        runner: computes.
        tokens: the most that one step feeds.
        sequences: the most that take part in a step.
        cache_tokens: tokens that the key-value cache holds; None for as many as the requests at hand need.
        prefix_cache: whether what was computed for one request is read by others that begin with the same tokens.
        window: latest tokens that a token attends to, in all layers of the model; None where one attends to all.
        gallery: what tokens of prompts stand for, which the runner knows, too; None where all are text.
        wide: tokens of a step where so many are due, if that is more.

    Attributes:
        made: what steps have made and nobody has taken yet, the oldest first.
        waited: seconds in which nothing was done but to wait for a device's tokens, on a runner that works ahead.

    Raises:
        CapacityError: there is no memory for the cache.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        tokens: int,
        sequences: int = SEQUENCES,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        window: int | None = None,
        gallery: Gallery | None = None,
        wide: int = 0,
    ) -> None:
        self._runner = runner
        self._ahead = runner if isinstance(runner, Ahead) else None  # asked once: it takes as long as scheduling
        self._gallery = Gallery() if gallery is None else gallery
        self._grows = cache_tokens is None
        blocks = 1 if cache_tokens is None else max(1, cache_tokens // runner.block)
        self.pool = BlockPool(0, runner.block, keeps=prefix_cache)
        if not self._grows:
            self.pool.grow(runner.reserve(blocks, blocks))
        ahead = int(self._ahead is not None)
        self.scheduler = Scheduler(
            self.pool, tokens=max(tokens, sequences), sequences=sequences, ahead=ahead, window=window, wide=wide
        )
        self._asked: dict[int, Asked] = {}
        self._inbox: deque[Asked | int] = deque()  # what came since the last step: requests, and ids to end
        self.made: deque[Output | Outputs] = deque()
        self._voices: Voices | None = None  # of the course that steps are of
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._flights: deque[Flight] = deque()  # the steps under way, the oldest first
        self._lost = False  # whether a step that was not started to its end may have written over what the last chose
        self._watch = Stopwatch()
        self.waited = 0.0

    @property
    def longest(self) -> int | None:
        """The most tokens of prompt and answer together that the cache ever holds; None for one that grows."""
        return None if self._grows else self.pool.count * self.pool.size

    @property
    def unfinished(self) -> bool:
        """Whether there is something to do."""
        return bool(self._inbox) or bool(self.scheduler.unfinished) or bool(self._flights)

    @torch.inference_mode()
    def prepare(self, longest: int) -> None:
        """What the first steps would do when they come, on a runner that works ahead.

        A cache that grows gets room for as many requests of ``longest`` tokens as take part in a step, up to half of
        the memory that is free: so it stays where it is, and what is recorded for it holds.

        Raises:
            CapacityError: memory does not suffice.
        """
        if self._ahead is None:
            return
        with self._lock, shortages():
            if self._grows:
                wanted = self.scheduler.sequences * (blocks_for(longest, self.pool.size) + 1)
                self.pool.grow(max(self.pool.count, self._runner.reserve(1, wanted)))
            self._ahead.record()

    @property
    def recorded(self) -> int:
        """How many steps took far longer than others because they were recorded; 0 where none ever is."""
        return 0 if self._ahead is None else self._ahead.recorded

    def next_id(self) -> int:
        """An id that no request has had."""
        return next(self._ids)

    def add(
        self,
        id: int,
        prompt: Sequence[int],
        params: SamplingParams,
        most: int,
        *,
        stops: frozenset[int] = frozenset(),
        priority: int = 0,
        scored: int | None = None,
        constraint: Constraint | None = None,
        media: MediaPrompt | None = None,
    ) -> None:
        """A request arrives; it takes part from the next step on, which says so if it cannot be served.

        Args:
            id: from :meth:`next_id`.
            prompt: token ids, one or more, all of the model's vocabulary.
            params: how tokens are chosen; ``stop`` and ``max_tokens`` are the caller's affair.
            most: tokens of the answer at most; none if its prompt is scored.
            stops: token ids that end it.
            priority: a smaller number goes first.
            scored: place of the first token of the prompt that is scored, 1 or more; None for none.
            constraint: what the answer may be made of, for this request alone; None for anything.
            media: the prompt with what its tokens stand for; None where all are text.

        Raises:
            UsageError: the priority is no whole number, or beyond a million.
        """
        arguments.whole("priority", priority, -MOST_PRIORITY, MOST_PRIORITY)
        sights = None if media is None else sights_of(media)
        request = Request(id, tuple(prompt), most, priority, scored=scored, sights=sights)
        chooser, top = Chooser(params, prompt, constraint), params.prompt_logprobs or 0
        self._inbox.append(Asked(request, chooser, stops, top=top, media=media))

    def abort(self, id: int) -> None:
        """A request ends, whatever it is doing. Nothing more comes of it behind the step under way."""
        self._inbox.append(id)

    def close(self) -> None:
        """Lets go of the runner, and so of its cache; there are no further steps."""
        with self._lock:
            del self._runner, self._ahead

    def step(self) -> list[Output]:
        """Take a step (:meth:`advance`); returns what is in :attr:`made` and leaves nothing there."""
        self.advance()
        made = [self.made.popleft() for _ in range(len(self.made))]
        return [output for one in made for output in (one.each() if isinstance(one, Outputs) else [one])]

    @torch.inference_mode()
    def advance(self) -> None:
        """Feed what is due; the tokens that come of it, and what could not be served, are then in :attr:`made`.

        On a runner that works ahead these are the tokens of the step before, and the next one is on its way.
        Whatever interrupts it, a step has been taken for all requests or for none.

        Raises:
            CapacityError: memory or threads do not suffice. The requests are as they were before the step.
        """
        flights = self._flights
        with self._lock, shortages():
            self._watch.enter()
            try:
                while flights and (self._lost or len(flights) > self.scheduler.ahead or not flights[-1].ahead):
                    self._land()
                started = self._start()
                if flights and (not started or len(flights) > self.scheduler.ahead):
                    self._land()
                if not self.scheduler.unfinished:
                    self._cancel()  # rows that nobody reads
            finally:
                self._watch.leave()

    def _start(self) -> bool:
        """Another step is under way; False if there is nothing to feed."""
        schedule = None
        try:
            with uninterrupted():
                self._take_in()
                schedule = self.scheduler.schedule()
            while schedule is not None and (failed := self._gallery.ready(schedule)):
                with uninterrupted():
                    self.scheduler.cancel(schedule)
                    for id, error in failed.items():
                        self._end(id)
                        self.made.append(Output(id, Choice(-1, error=error)))
                    schedule = self.scheduler.schedule()
            if schedule is None:
                return False
            self._flights.append(self._started(schedule))
            return True
        except BaseException:
            if schedule is not None and not (self._flights and self._flights[-1].schedule is schedule):
                self.scheduler.cancel(schedule)
                self._lost = True
            raise

    def _started(self, schedule: Schedule) -> Flight:
        """A step that a device works on now, or that is computed already."""
        runner, ahead, asked = self._runner, self._ahead, self._asked
        if isinstance(schedule, Onward) and ahead is not None:  # all of them were chosen for ahead in the step before
            voices, begin = self._voices_of(schedule), time.perf_counter()
            return Flight(schedule, ahead.start(schedule, voices.choosers), ahead=True, started=begin)
        parts = schedule.parts
        choosers = [asked[part.id].chooser for part in parts if part.chooses]
        scored = any([part.targets for part in parts])
        if ahead is not None and not scored and all([one.ahead for one in choosers]):
            begin = time.perf_counter()
            return Flight(schedule, ahead.start(schedule, choosers), ahead=True, started=begin)
        begin = time.perf_counter()
        logits = runner.run(schedule)
        unread = [int(part.tokens[-1] == UNKNOWN) for part in parts if part.chooses]
        choices = sample(choosers, logits, unread) if choosers else []
        scores = self._scored(schedule) if scored else {}
        return Flight(schedule, Known(choices, time.perf_counter() - begin), scores, started=begin)

    def _voices_of(self, schedule: Onward) -> Voices:
        """What is the same in each step of its course."""
        if self._voices is None or self._voices.course is not schedule.course:
            self._voices = Voices(schedule.course, [self._asked[id] for id in schedule.course.ids])
        return self._voices

    def _scored(self, schedule: Schedule) -> dict[int, list[TokenLogprob] | IsobitError]:
        """Scores of the prompts' tokens that this step gives, by request; or why there are none."""
        tops = {part.id: self._asked[part.id].top for part in schedule.parts}
        return scoring.by_request(schedule, self._runner.scored(schedule), tops)

    def _land(self) -> None:
        """The tokens of the oldest step under way are counted."""
        flight = self._flights[0]
        voices = self._goes_on(flight)
        began = time.perf_counter()
        try:
            flight.pending.wait()
            self.waited += time.perf_counter() - began
            tokens = None if voices is None else flight.pending.tokens()
            if voices is not None and tokens is not None and voices.stop(tokens):
                tokens = None
            choices = flight.pending.choices() if tokens is None else []
        except Exception:
            self._cancel()
            raise
        with uninterrupted():
            self._flights.popleft()
            self._lost = False
            seconds = self._watch.done(flight)
            if voices is None or tokens is None:
                self._settle(flight.schedule, choices, flight.scores, seconds)
            else:
                self.scheduler.commit(flight.schedule, tokens)
                self.made.append(voices.outputs(tokens, seconds))

    def _goes_on(self, flight: Flight) -> Voices | None:
        """Those whose step it is, if none of them has ended since or does with it, but by the token chosen."""
        schedule, voices = flight.schedule, self._voices
        if voices is None or not isinstance(schedule, Onward) or schedule.course is not voices.course:
            return None
        return voices if voices.course.active and not schedule.last else None

    def _cancel(self) -> None:
        """Nothing is under way any more."""
        while self._flights:
            self.scheduler.cancel(self._flights.pop().schedule)
        self._lost = False

    def _settle(self, schedule: Schedule, choices: list[Choice], scores: Scores, seconds: float) -> None:
        """Counts a step that was computed."""
        asked, state = self._asked, self.scheduler.state
        chosen = iter(choices)
        made: list[tuple[Asked, Choice | None]] = []
        ended: dict[int, FinishReason | None] = {}
        for part in schedule.parts:
            choice = next(chosen) if part.chooses else None
            one = asked.get(part.id)
            if one is None:  # ended while the step was under way
                continue
            one.seconds += seconds
            if one.cached is None:
                one.cached = state(part.id).reused or 0
            if scores:
                choice = one.scored(scores.get(part.id, ()), choice)
            if choice is not None and one.ends(choice):
                self.scheduler.end(part.id)
                ended[part.id] = None if choice.error is not None else "stop"
            made.append((one, choice))
        ended |= dict.fromkeys(self.scheduler.commit(schedule, [choice.token for choice in choices]), "length")
        give = self.made.append
        for one, choice in made:
            id = one.request.id
            if id in ended:
                give(new(Output, (id, choice, ended[id], one.seconds, one.cached or 0, tuple(one.scores))))
                del asked[id]
                self._gallery.leave(id)
            elif choice is not None:
                scored = tuple(one.scores) if one.scores else ()
                give(new(Output, (id, choice, None, one.seconds, one.cached or 0, scored)))
                one.seconds = 0.0
                if one.scores:
                    one.scores = []

    def _end(self, id: int) -> None:
        """A request ends, whatever it is doing."""
        self.scheduler.end(id)
        self._asked.pop(id, None)
        self._gallery.leave(id)

    def _take_in(self) -> None:
        """What came since the last step: requests and aborts, in their order."""
        arrived: dict[int, Asked] = {}
        while self._inbox:
            came = self._inbox.popleft()
            if isinstance(came, Asked):
                arrived[came.request.id] = came
            elif arrived.pop(came, None) is None:
                self._end(came)
        refused: dict[int, IsobitError] = {}
        if arrived and self._grows:
            new, others = [one.request for one in arrived.values()], [one.request for one in self._asked.values()]
            refused = make_room(self.pool, self._runner.reserve, new, others, self.scheduler.sequences)
        for id, one in arrived.items():
            try:
                if id in refused:
                    raise refused[id]
                self.scheduler.add(one.request)
            except IsobitError as error:
                self.made.append(Output(id, Choice(-1, error=error)))
            else:
                self._asked[id] = one
                if one.media is not None and one.request.sights is not None:
                    self._gallery.enter(id, one.media, one.request.sights)
