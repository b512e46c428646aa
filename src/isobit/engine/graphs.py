"""Steps of one token for each of some sequences, as CUDA graphs.

A graph has fixed shapes and addresses. Numbers of a step are written into memory that it reads, in one copy that nobody
waits for; which token was chosen last it reads where the step before left it. How long sequences are is read on the
device; a bound of it, the *span*, sizes the grids of attention: sequences of few tokens need fewer launches. There is a
graph for each number of rows (:func:`rows_of`) and each span, recorded when it is first needed, or all of them before.

On a CPU nothing is recorded: the same step is computed anew, which tests use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isobit.engine.blocks import blocks_for
from isobit.engine.pieces import Bucket, Pieces
from isobit.engine.request import Part
from isobit.engine.turns import CHOSEN, GIVEN, Page
from isobit.kernels.sequences import Sequences
from isobit.models.batch import Batch
from isobit.models.cache.paged import PagedCache
from isobit.models.decoder import Decoder
from isobit.models.staging import send
from isobit.targets.recorded import MOST_ROWS, spans


class Places:
    """Which row each sequence has: the same one as long as it takes part in every step."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._rows: list[int] = []

    def assign(self, ids: list[int], rows: int) -> list[int]:
        """A row below ``rows`` for each id, of which there are no more."""
        if ids != self._ids or max(self._rows, default=0) >= rows:
            before = dict(zip(self._ids, self._rows, strict=True))
            kept = [before.get(id, rows) for id in ids]
            taken = {row for row in kept if row < rows}
            free = (row for row in range(rows) if row not in taken)
            self._ids, self._rows = ids, [row if row < rows else next(free) for row in kept]
        return self._rows


class Inputs:
    """Memory on the device that recorded steps of up to ``rows`` sequences read, and leave their choices in.

    Rows that nobody needs are padding: a sequence of no tokens, whose new token is stored nowhere.

    Args:
        rows: sequences at most.
        columns: blocks of a sequence at most.
        block: tokens of a block.
        device: where the model is.

    Attributes:
        chosen: int64 ``[rows]``: the token chosen last for each row.
        highest: float32 ``[rows]``: its logit; not finite where there is none to choose.
        held: int64 ``[2 * rows]``: the tokens that the host gave, and behind them ``chosen``: what ``sources`` name.
        result: ``chosen`` and ``highest``, as bytes.
    """

    def __init__(self, rows: int, columns: int, block: int, device: torch.device) -> None:
        self.rows = rows = -(-rows // 4) * 4  # every part begins at a multiple of 16 bytes
        self.block, self.device = block, device
        memory = torch.zeros(rows * (GIVEN + CHOSEN), dtype=torch.uint8, device=device)
        self._given, self.result = memory[: rows * GIVEN], memory[rows * GIVEN :]
        wide, narrow, tokens = torch.split(self._given, [rows * 32, rows * 8, rows * 8])
        self._cells, self._positions, self._slots, self._sources = wide.view(torch.int64).view(4, rows)
        self._blocks, self._lengths = narrow.view(torch.int32).view(2, rows)
        self.held = memory[rows * 40 : rows * 56].view(torch.int64)
        assert tokens.data_ptr() == self.held.data_ptr()
        self.chosen, self.highest = self.held[rows:], self.result[rows * 8 :].view(torch.float32)
        self._table = torch.zeros(rows, columns, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._listed: list[tuple[int, ...]] = [()] * rows  # what is in the table
        self._kept = Page(rows)  # numbers of the last step of a course
        self._at: Any = slice(0)  # and its rows

    def write(
        self, parts: Sequence[Part], places: Sequence[int], sources: Sequence[int], page: Page | None = None
    ) -> None:
        """One more token of each sequence: to be called before a step.

        Args:
            parts: of one token each.
            places: their rows.
            sources: the row of :attr:`chosen` that has the token of each; -1 where the part has it.
            page: where they are laid out, of as many rows; None for memory of this call's own.
        """
        rows, size, count = self.rows, self.block, len(parts)
        page = Page(rows) if page is None else page
        page.clear()
        begin = places[0] if places else 0
        straight = places == [*range(begin, begin + count)]
        at: Any = slice(begin, begin + count) if straight else np.array(places, np.int64)
        firsts = [part.first for part in parts]
        held = [part.blocks[first // size] * size + first % size for part, first in zip(parts, firsts, strict=True)]
        page.positions[at] = [part.first + part.shift for part in parts]
        page.slots[at] = held
        page.sources[at] = [row if given < 0 else rows + given for row, given in zip(places, sources, strict=True)]
        page.lengths[at] = [first + 1 for first in firsts]
        page.tokens[at] = [part.tokens[0] if part.tokens[0] > 0 else 0 for part in parts]  # padding reads some of them
        self._send(page, *self._changes(parts, places))
        for part, row in zip(parts, places, strict=True):  # an interruption before this sends them again
            self._listed[row] = part.blocks

    def keep(self, places: Sequence[int], page: Page) -> None:
        """What was written last into ``page``, for these rows, is a step of a course: :meth:`go_on` may follow."""
        begin = places[0]
        straight = places == [*range(begin, begin + len(places))]
        self._at = slice(begin, begin + len(places)) if straight else np.array(places, np.int64)
        self._kept.copy(page)
        self._kept.sources[self._at] = [self.rows + row for row in places]

    def go_on(self, turning: Sequence[tuple[int, tuple[int, ...]]], page: Page) -> None:
        """One more token of each sequence of the step before, which is what it chose.

        Args:
            turning: rows of those whose token begins a block, and their blocks.
            page: where the numbers are laid out.
        """
        kept, at = self._kept, self._at
        kept.positions[at] += 1
        kept.slots[at] += 1
        kept.lengths[at] += 1
        cells, numbers, columns = [], [], self._table.shape[1]
        for row, blocks in turning:
            kept.slots[row] = blocks[-1] * self.block
            cells.append(row * columns + len(blocks) - 1)
            numbers.append(blocks[-1])
        page.copy(kept)
        self._send(page, cells, numbers)
        for row, blocks in turning:
            self._listed[row] = blocks

    def _send(self, page: Page, cells: list[int], blocks: list[int]) -> None:
        """One copy for all numbers; cells of the table that have changed are among them, if they are not many."""
        count = len(cells)
        few = count <= self.rows
        if few:
            page.cells[:count], page.blocks[:count] = cells, blocks
        if page.pinned or self.device.type == "cpu":
            self._given.copy_(page.memory, non_blocking=True)
        else:
            (sent,) = send(self.device, page.memory.view(torch.int64).numpy())
            self._given.view(torch.int64).copy_(sent)
        if cells:
            where, what = self._cells[:count], self._blocks[:count]
            if not few:
                where, what = send(self.device, np.array(cells, np.int64), np.array(blocks, np.int32))
            self._table.view(-1).index_copy_(0, where, what)

    def _changes(self, parts: Sequence[Part], places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Cells of the table, and the blocks that they have from now on."""
        columns = self._table.shape[1]
        cells: list[int] = []
        blocks: list[int] = []
        for part, row in zip(parts, places, strict=True):
            before, now = self._listed[row], part.blocks
            if before is now or before == now:
                continue
            begin = len(before) if now[: len(before)] == before else 0
            cells += range(row * columns + begin, row * columns + len(now))
            blocks += now[begin:]
        return cells, blocks

    def batch(self, rows: int, span: int) -> Batch:
        """The batch that a recorded step of so many rows runs; what it reads is what was written last."""
        tokens = self.held.index_select(0, self._sources[:rows])
        lengths, slots = self._lengths[:rows], self._slots[:rows]
        sequences = Sequences(self._starts[: rows + 1], lengths, self._table[:rows], slots, self.block, 1, span)
        return Batch(tokens, None, self._positions[:rows], sequences, ())

    def take_highest(self, logits: Tensor) -> None:
        """Chooses the largest of each row of logits, the first among equals."""
        rows = len(logits)
        torch.argmax(logits, 1, out=self.chosen[:rows])
        torch.gather(logits, 1, self.chosen[:rows, None], out=self.highest[:rows, None])


@dataclass(frozen=True)
class _Recorded:
    """A graph, its result, and what it reads and does not own."""

    graph: Any
    logits: Tensor
    kept: object


class Graphs:
    """Recorded steps of one model and one cache.

    Args:
        model, cache: them.
        inputs: what they read, and where they leave what they choose.
        most: tokens that a sequence may have.

    Attributes:
        moves: of the cache when they were recorded: they hold for its memory as it lay then.
    """

    def __init__(self, model: Decoder, cache: PagedCache, inputs: Inputs, most: int) -> None:
        self.model, self.cache, self.moves, self._inputs = model, cache, cache.moves, inputs
        self._most = -(-most // cache.block) * cache.block
        axes = model.config.axes > 1  # then positions are no places, and may be beyond them
        self._reach = max(self._most, model.config.max_context) if axes else self._most
        self._records = inputs.device.type == "cuda"
        self._pool: Any = None  # one pool of memory for all graphs: one of them runs at a time
        self._recorded: dict[object, _Recorded] = {}  # by number of rows and span; by bucket of pieces
        if self._records:
            model.reserve(min(inputs.rows, MOST_ROWS), 1, self._most)
            self._stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """Steps recorded so far."""
        return len(self._recorded)

    def run(self, rows: int, tokens: int) -> Tensor:
        """Logits ``[rows, vocab]`` of what the inputs hold; they hold until the next call.

        Args:
            rows: of :func:`rows_of`.
            tokens: of the longest sequence.
        """
        span = next(span for span in spans(rows, self._most) if tokens <= span)
        return self._run((rows, span), lambda: self._inputs.batch(rows, span))

    def run_pieces(self, pieces: Pieces, bucket: Bucket, *, record: bool) -> Tensor:
        """Logits ``[sequences, vocab]`` behind each sequence of what ``pieces`` hold, for one of their buckets.

        Args:
            record: whether it is recorded, if it is not yet: the logits are the same.
        """
        key = (pieces, bucket)
        if not record and key not in self._recorded:
            return self._compute(pieces.batch(bucket, self._most))
        return self._run(key, lambda: pieces.batch(bucket, self._most))

    def _run(self, key: object, batch: Callable[[], Batch]) -> Tensor:
        if not self._records:
            return self._compute(batch())
        found = self._recorded.get(key)
        if found is None:
            return self._record(key, batch)
        found.graph.replay()
        return found.logits

    def record(self, rows: Iterable[int]) -> None:
        """Records the steps of so many rows, the largest first, so that the others find their memory there."""
        self._inputs.write([], [], [])  # padding alone: nothing is stored
        for count in sorted(set(rows), reverse=True):
            for span in reversed(spans(count, self._most)):
                if self._records and (count, span) not in self._recorded:
                    self._record((count, span), partial(self._inputs.batch, count, span))

    def _compute(self, batch: Batch) -> Tensor:
        if self._reach > self._most:
            batch = replace(batch, reach=self._reach)
        logits = self.model.forward(batch, self.cache)
        self._inputs.take_highest(logits)
        return logits

    def _record(self, key: object, batch: Callable[[], Batch]) -> Tensor:
        """Records a step; returns the logits of a first one, which has run as usual.

        That first one is on the stream of the recording, so that workspaces which are made once per stream are there.
        """
        kept = self.model.angle_tables(self._reach)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            first = self._compute(batch())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logits = self._compute(batch())
        self._pool = graph.pool() if self._pool is None else self._pool
        self._recorded[key] = _Recorded(graph, _lent(logits), kept)
        torch.cuda.current_stream().wait_stream(self._stream)
        return first


def _lent(tensor: Tensor) -> Tensor:
    """The same memory, which graphs recorded later may use: what is in it holds until one of them runs.

    Each would else keep the logits of all its rows, 30 MB for 256 rows of a small vocabulary.
    """
    data = torch._C._construct_storage_from_data_pointer(
        tensor.data_ptr(), tensor.device, tensor.numel() * tensor.element_size()
    )
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(data, 0, tensor.shape, tensor.stride())


def columns_of(most: int, block: int) -> int:
    """Blocks of a sequence of so many tokens."""
    return max(1, blocks_for(most, block))
