"""What runs the engine's steps on a GPU: recorded where each sequence has one new token, and ahead of the host.

Nothing here waits for the device but :meth:`Launched.choices`. What a step chooses stays where the next one reads it,
and goes to the host in one copy; which of it belongs to whom is known to the host alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobit.engine import device_sampler
from isobit.engine.course import Onward
from isobit.engine.gallery import Gallery
from isobit.engine.graphs import Graphs, Inputs, Places, columns_of
from isobit.engine.pieces import Bucket, Pieces, bucket_of, buckets
from isobit.engine.request import ONE_UNKNOWN, UNKNOWN, Schedule, made
from isobit.engine.runner import ModelRunner
from isobit.engine.sampler import Choice, Chooser
from isobit.engine.turns import Page, Turn, Turns
from isobit.errors import IsobitError
from isobit.models.batch import Batch, lay_out
from isobit.models.cache.paged import PagedCache
from isobit.models.decoder import Decoder
from isobit.models.staging import send
from isobit.targets.recorded import FEW, MOST_ROWS, rows_of


class GpuRunner(ModelRunner):
    """Runs the steps of one model on a GPU.

    Args:
        model: one whose row of layer ops is recordable.
        sequences: that take part in a step at most.
        gallery: what tokens of prompts stand for; None where all are text.
    """

    def __init__(self, model: Decoder, sequences: int = 1, gallery: Gallery | None = None) -> None:
        super().__init__(model, sequences, gallery=gallery)
        self._inputs: Inputs | None = None
        self._graphs: Graphs | None = None
        self._pieces: Pieces | None = None
        self._turns: Turns | None = None
        self._places = Places()
        self._steady: tuple[list[int], list[int]] | None = None  # ids and rows of the last step, if all of them chose
        self._recorded_before = 0  # graphs of caches that have moved
        self._row_of: dict[int, int] = {}  # id of a request -> where the last step left what it chose for it
        self._last: Onward | None = None  # the last step, if it is of a course whose numbers are kept
        self._wanted: Wanted | None = None  # what the last step's choosers did

    @property
    def recorded(self) -> int:
        """Graphs recorded so far, those of caches that have moved among them."""
        return self._recorded_before + (0 if self._graphs is None else self._graphs.count)

    def run(self, schedule: Schedule) -> Tensor:
        """Logits ``[len(schedule.rows), vocab]``; they hold until the next call."""
        logits, rows = self._logits(schedule)
        if rows == [*range(len(rows))]:
            return logits[: len(rows)]
        (places,) = send(logits.device, np.array(rows, np.int64))
        return logits.index_select(0, places)

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Launched:
        """Starts a step and waits for nothing; see :class:`isobit.engine.flight.Ahead`."""
        inputs = self._memory()
        if self._turns is None:
            self._turns = Turns(inputs.rows, inputs.device)
        turn = self._turns.open()
        logits, rows = self._logits(schedule, turn.page)
        wanted = self._wanted
        if wanted is None or wanted.choosers is not choosers or wanted.rows != rows:
            wanted = self._wanted = Wanted(choosers, rows, logits)
        if wanted.quiet:
            turn.close(inputs.result)
            return Launched(turn, rows, wanted.at)
        if isinstance(schedule, Onward):
            unread = [1] * len(rows)
        else:
            unread = [int(part.tokens[-1] == UNKNOWN) for part in schedule.parts if part.chooses]
        wanted.choose(logits, unread, inputs.chosen)
        logprobs = wanted.logprobs(logits, inputs.chosen)
        turn.close(inputs.result)
        return Launched(turn, rows, wanted.at, wanted.asked, logprobs)

    @torch.inference_mode()
    def record(self, sequences: Iterable[int] = ()) -> None:
        """Records the steps of these numbers of sequences, or of all that may come: what else happens when needed."""
        wanted = sequences or range(1, min(self._sequences, MOST_ROWS) + 1)
        graphs = self._recorded(self._held())
        if not sequences:  # the largest first: the others find their memory there
            pieces = self._prompts()
            for bucket in buckets(pieces.sequences):
                pieces.comes_again(bucket)
                pieces.clear(bucket.tokens)
                graphs.run_pieces(pieces, bucket, record=True)
        graphs.record({rows_of(count) for count in wanted})

    def _logits(self, schedule: Schedule, page: Page | None = None) -> tuple[Tensor, list[int]]:
        """Logits, the largest of which have been chosen, and which of their rows belongs to each chooser."""
        cache, last, self._last = self._held(), self._last, None
        if isinstance(schedule, Onward) and page is not None and self._follows(last, schedule):
            return self._went_on(schedule, page, cache)
        parts, steady = schedule.parts, None
        ahead = [part.tokens for part in parts] == [ONE_UNKNOWN] * len(parts)  # each goes on with what it chose last
        if len(parts) <= MOST_ROWS and (
            ahead or all([len(part.tokens) == 1 and not part.targets and not part.looks for part in parts])
        ):
            self._states = None
            graphs, inputs, bucket = self._recorded(cache), self._memory(), rows_of(len(parts))
            ids = [part.id for part in parts]
            rows = self._places.assign(ids, bucket)
            longest = 1 + max([part.first for part in parts])
            if ahead and (ids, rows) == self._steady:  # as in the step before
                inputs.write(parts, rows, rows, page)
                if isinstance(schedule, Onward) and page is not None:
                    inputs.keep(rows, page)
                    self._last = schedule
                return graphs.run(bucket, longest), rows
            sources = [self._row_of[part.id] if part.tokens[0] == UNKNOWN else -1 for part in parts]
            inputs.write(parts, rows, sources, page)
            logits = graphs.run(bucket, longest)
            steady = (ids, rows) if all([part.chooses for part in parts]) else None
            rows = [row for row, part in zip(rows, parts, strict=True) if part.chooses]
        elif (piece := self._piece(schedule)) is not None:
            self._states = None
            logits = self._run_piece(schedule, piece, cache)
            rows = [row for row, part in enumerate(parts) if part.chooses]
        else:
            logits, rows = super().run(schedule), [*range(len(schedule.choosers))]
            self._memory().take_highest(logits)
        self._row_of, self._steady = dict(zip(schedule.choosers, rows, strict=True)), steady
        return logits, rows

    @staticmethod
    def _follows(last: Onward | None, schedule: Onward) -> bool:
        return last is not None and last.course is schedule.course and last.step + 1 == schedule.step

    def _went_on(self, schedule: Onward, page: Page, cache: PagedCache) -> tuple[Tensor, list[int]]:
        """The same of the step that follows the last one of its course."""
        assert self._steady is not None
        course, rows = schedule.course, self._steady[1]
        self._memory().go_on([(rows[at], schedule.listed[at]) for at in course.turning(schedule.step)], page)
        logits = self._recorded(cache).run(rows_of(len(rows)), course.longest + schedule.step)
        self._last = schedule
        return logits, rows

    def _piece(self, schedule: Schedule) -> Bucket | None:
        """The graph for a step in which prompts are fed; None for one that is not recorded."""
        bucket = bucket_of([len(part.tokens) for part in schedule.parts], self._prompts().sequences)
        if bucket is None or any(part.targets or part.looks for part in schedule.parts):
            return None
        return bucket

    def _run_piece(self, schedule: Schedule, bucket: Bucket, cache: PagedCache) -> Tensor:
        pieces, parts = self._prompts(), schedule.parts
        batch = lay_out(
            [part.tokens for part in parts],
            [part.first for part in parts],
            [part.blocks for part in parts],
            self.block,
            positions=self._told(parts),
        )
        pieces.write(batch, bucket.tokens, self._unknown(schedule), self._memory().chosen)
        again = pieces.comes_again(bucket)  # once is not worth it; padded it is all the same, so that its bits are
        return self._recorded(cache).run_pieces(pieces, bucket, record=again)

    def _batch(self, schedule: Schedule, cache: PagedCache) -> Batch:
        """The batch of a step, with the tokens that only the device knows."""
        batch = super()._batch(schedule, cache)
        unknown = self._unknown(schedule)
        if unknown:
            places, sources = send(self.model.place.tensors, *np.array(unknown, np.int64).T)
            assert batch.tokens is not None
            batch.tokens.index_copy_(0, places, self._memory().chosen.index_select(0, sources))
        return batch

    def _unknown(self, schedule: Schedule) -> list[tuple[int, int]]:
        """Places in a step's batch of tokens that only the device knows, and their rows of what was chosen last."""
        ends = itertools.accumulate(len(part.tokens) for part in schedule.parts)
        return [(end - 1, self._row_of[part.id]) for end, part in zip(ends, schedule.parts, strict=True)
                if part.tokens[-1] == UNKNOWN]  # fmt: skip

    def _prompts(self) -> Pieces:
        """What steps of prompts read."""
        if self._pieces is None:
            columns = columns_of(self.model.config.max_context, self.block)
            most = min(self._memory().rows, MOST_ROWS)
            self._pieces = Pieces(most, columns, self.block, self.model.place.tensors)
        return self._pieces

    def _memory(self) -> Inputs:
        """What steps read and leave: for as long as there is a runner."""
        if self._inputs is None:
            columns = columns_of(self.model.config.max_context, self.block)
            rows = max(self._sequences, FEW, rows_of(min(self._sequences, MOST_ROWS)))
            self._inputs = Inputs(rows, columns, self.block, self.model.place.tensors)
        return self._inputs

    def _recorded(self, cache: PagedCache) -> Graphs:
        """The graphs for a cache as it lies now."""
        if self._graphs is None or self._graphs.moves != cache.moves:
            self._recorded_before = self.recorded
            if self._graphs is not None and self.model.place.tensors.type == "cuda":
                torch.cuda.synchronize(self.model.place.tensors)  # what is recorded may still run
            most = min(self.model.config.max_context, cache.blocks * cache.block)
            self._graphs = Graphs(self.model, cache, self._memory(), most)
        return self._graphs


class Wanted:
    """What choosers want of the logits of a step: the same in each step of a course.

    Args:
        choosers: they.
        rows: of the logits, one for each.
        logits: of the first step.

    Attributes:
        at: the rows, as an array of all rows is asked for them.
    """

    def __init__(self, choosers: Sequence[Chooser], rows: list[int], logits: Tensor) -> None:
        self.choosers, self.rows = choosers, rows
        self.at: Any = slice(len(rows)) if rows == [*range(len(rows))] else np.array(rows, np.int64)
        self.quiet = all([chooser.quiet for chooser in choosers])
        if self.quiet:
            return
        self.asked = [at for at, chooser in enumerate(choosers) if chooser.params.logprobs is not None]
        self._counts = [choosers[at].params.logprobs or 0 for at in self.asked]
        self._changed = [at for at, chooser in enumerate(choosers) if not chooser.plain]
        if self._changed:
            changed = [rows[at] for at in self._changed]
            settings = logits.device, logits.shape[1], changed, [choosers[at] for at in self._changed]
            self._settings = device_sampler.Settings(*settings)
            (self._places,) = send(logits.device, np.array(changed, np.int64))

    def choose(self, logits: Tensor, unread: Sequence[int], chosen: Tensor) -> None:
        """Writes the tokens of those rows that are not their largest logit's into ``chosen``."""
        if self._changed:
            tokens = self._settings.choose(logits, [unread[at] for at in self._changed])
            chosen.index_copy_(0, self._places, tokens)

    def logprobs(self, logits: Tensor, chosen: Tensor) -> device_sampler.Logprobs | None:
        """Those that were asked for."""
        if not self.asked:
            return None
        return device_sampler.logprobs(logits, [self.rows[at] for at in self.asked], chosen, self._counts)


class Launched:
    """A step that the device works on; see :class:`isobit.engine.flight.Pending`.

    Args:
        turn: closed: what comes back of it.
        rows: of it, one for each chooser.
        at: the same, as :attr:`Wanted.at`.
        asked: choosers whose log-probabilities are wanted.
        logprobs: these.
    """

    def __init__(
        self, turn: Turn, rows: list[int], at: Any, asked: Sequence[int] = (),
        logprobs: device_sampler.Logprobs | None = None,
    ) -> None:  # fmt: skip
        self._turn, self._rows, self._at, self._asked, self._logprobs = turn, rows, at, asked, logprobs
        self._waited = False

    def wait(self) -> None:
        """Until the device has chosen."""
        if not self._waited:  # asking the driver again takes as long as reading what came
            self._turn.wait()
            self._waited = True

    def tokens(self) -> list[int] | None:
        """Their tokens; None where one has none or more than that. Waits for the device."""
        self.wait()
        if self._logprobs is not None:
            return None
        if not np.isfinite(self._turn.highest[self._at]).all():
            return None
        found: list[int] = self._turn.tokens[self._at].tolist()
        return found

    def choices(self) -> list[Choice]:
        """A choice for each chooser; waits for the device."""
        self.wait()
        rows, tokens, finite = self._rows, self._turn.tokens.tolist(), np.isfinite(self._turn.highest)
        found = [made(Choice, (tokens[row], None, None)) for row in rows]
        if not finite.all() and not finite[rows].all():  # padding may be anything
            found = [one if finite[row] else _unusable() for one, row in zip(found, rows, strict=True)]
        if self._logprobs is not None:
            scores = self._logprobs.read([tokens[rows[at]] for at in self._asked])
            for at, score in zip(self._asked, scores, strict=True):
                if found[at].error is None:
                    found[at] = Choice(found[at].token, score)
        return found

    def seconds(self) -> float:
        """That the step took on the device."""
        return self._turn.seconds()


def _unusable() -> Choice:
    message = (
        "the model's logits cannot be used: some are NaN or infinite. An activation or a weight overflowed: try "
        "--dtype float32 (dtype='float32'), and check the checkpoint with `isobit eval`"
    )
    return Choice(-1, error=IsobitError(message))


def runner_for(model: Any, sequences: int, gallery: Gallery | None = None) -> ModelRunner:
    """What runs a model's steps where it is; ``gallery`` is what tokens of prompts stand for."""
    if model.place.tensors.type == "cuda" and model.layer_ops.recordable:
        return GpuRunner(model, sequences, gallery)
    return ModelRunner(model, sequences, gallery=gallery)
