"""What runs the engine's steps on a model: as they are, or, one token for each sequence on a GPU, as CUDA graphs.

A graph has fixed shapes and addresses, and belongs to the runner: ids, positions, lengths, slots and blocks are written
into memory that it reads, and how many tokens there are is read on the device. What depends on the length is a bound of
it (the *span*, a power of two), which sizes the grids of attention; there is a graph for each number of rows (a power
of two, too) and each span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isobit.engine.request import Part, Schedule
from isobit.kernels.sequences import Sequences
from isobit.models.batch import Batch, lay_out
from isobit.models.cache.paged import BLOCK, PagedCache
from isobit.models.decoder import Decoder
from isobit.targets.detect import memory

# Rows of logits that are scored at once: this many at most, and as many as float64 numbers of so many bytes hold.
_SCORED_ROWS = 256
_SCORED_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
SHORTEST = 256  # tokens of the first span; each further one is twice as long: a graph for each takes time to record


def rows_of(sequences: int) -> int:
    """The rows of a graph for so many sequences: a power of two."""
    return 1 << (sequences - 1).bit_length()


def span_of(tokens: int) -> int:
    """The bound of so many tokens that sizes a graph's grids."""
    span = SHORTEST
    while span < tokens:
        span *= 2
    return span


def _wanted(part: Part) -> range:
    """Those of its new tokens whose logits choose the next."""
    return range(len(part.tokens) - part.chooses, len(part.tokens))


class ModelRunner:
    """Runs the steps of one model over a cache in blocks.

    Args:
        model: it.
        sequences: that take part in a step at most.

    Attributes:
        block: tokens of a block.
    """

    block = BLOCK

    def __init__(self, model: Decoder, sequences: int = 1) -> None:
        self.model, self._sequences = model, sequences
        self._cache: PagedCache | None = None
        self._graphs: Graphs | None = None
        self._states: Tensor | None = None  # of the last step, while some of them are to be scored

    def reserve(self, least: int, wanted: int) -> int:
        """Room for ``wanted`` blocks if half of the free memory holds them, and for ``least``; returns how many it has.

        A cache that has to grow doubles where it can, for growing copies what it holds.

        Raises:
            CapacityError: there is no memory for ``least``.
        """
        cache = self._cache
        if cache is None:
            cache = self._cache = self.model.paged_cache(max(least, self._affordable(wanted)))
        elif cache.blocks < wanted:
            cache.grow(max(least, cache.blocks, self._affordable(max(wanted, 2 * cache.blocks))))
        return cache.blocks

    def _affordable(self, blocks: int) -> int:
        """So many blocks, or as many as half of the free memory holds."""
        device = self.model.place.tensors
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory()[1]
        return min(blocks, free // 2 // self.model.cache_bytes(BLOCK))

    def run(self, schedule: Schedule) -> Tensor:
        """Logits ``[len(schedule.rows), vocab]``; they hold until the next call."""
        cache, parts = self._cache, schedule.parts
        assert cache is not None, "reserve comes first"
        self._states = None
        scores = any(part.targets for part in parts)
        if self._recordable and not scores and all(len(part.tokens) == 1 for part in parts):
            return self._recorded(cache).run(parts)
        batch = lay_out(
            [part.tokens for part in parts],
            [part.first for part in parts],
            [part.blocks for part in parts],
            cache.block,
            wanted="last" if all(part.chooses for part in parts) else [_wanted(part) for part in parts],
            device=self.model.place.tensors,
        )
        if schedule.choosers and not scores:
            return self.model.forward(batch, cache)
        states = self.model.hidden_states(batch, cache)
        self._states = states if scores else None
        if schedule.choosers:
            return self.model.logits(states, batch.outputs)
        return torch.empty(0, self.model.config.vocab_size)

    def scored(self, schedule: Schedule) -> Iterator[Tensor]:
        """Logits of ``schedule.scored`` behind the last :meth:`run`, in their order: ``[r, vocab]``, few at once."""
        rows, states, device = schedule.scored, self._states, self.model.place.tensors
        at_once = max(1, min(_SCORED_ROWS, _SCORED_BYTES[device.type] // (8 * self.model.config.vocab_size)))
        for begin in range(0, len(rows), at_once):
            assert states is not None, "run comes first"
            yield self.model.logits(states, torch.tensor(rows[begin : begin + at_once], device=device))
        self._states = None

    @property
    def _recordable(self) -> bool:
        return self.model.place.tensors.type == "cuda" and self.model.layer_ops.recordable

    def _recorded(self, cache: PagedCache) -> Graphs:
        """The graphs for a cache as it lies now."""
        if self._graphs is None or self._graphs.moves != cache.moves:
            self._graphs = Graphs(self.model, cache, self._sequences)
        return self._graphs


@dataclass(frozen=True)
class _Recorded:
    """A graph, its result, and what it reads and does not own."""

    graph: Any
    logits: Tensor
    kept: object


class Graphs:
    """Steps of one token for each of some sequences, recorded for one model and one cache.

    Args:
        model, cache: them.
        sequences: that come at once at most.

    Attributes:
        moves: of the cache when they were recorded: they hold for its memory as it lay then.
    """

    def __init__(self, model: Decoder, cache: PagedCache, sequences: int) -> None:
        self.model, self.cache, self.moves = model, cache, cache.moves
        model.reserve(rows_of(sequences), 1, cache.blocks * cache.block)
        self._inputs: dict[int, Inputs] = {}  # by number of rows
        self._stream = torch.cuda.Stream(model.place.tensors)  # type: ignore[no-untyped-call]
        self._pool: Any = None  # one pool of memory for all graphs: one of them runs at a time
        self._recorded: dict[tuple[int, int], _Recorded] = {}  # by number of rows, and span

    def run(self, parts: Sequence[Part]) -> Tensor:
        """Logits ``[len(parts), vocab]`` behind one more token of each sequence; they hold until the next call."""
        rows, span = rows_of(len(parts)), span_of(max(part.first for part in parts) + 1)
        if rows not in self._inputs:
            self._inputs[rows] = Inputs(rows, self.cache, self.model.place.tensors)
        self._inputs[rows].write(parts)
        if (rows, span) in self._recorded:
            self._recorded[rows, span].graph.replay()
            logits = self._recorded[rows, span].logits
        else:
            logits = self._record(rows, span)
        return logits[: len(parts)]

    def _record(self, rows: int, span: int) -> Tensor:
        """Records the step of so many rows and a span; returns the logits of a first one, which has run as usual.

        That first one is on the stream of the recording, so that workspaces which are made once per stream are there.
        """
        batch = self._inputs[rows].batch(span)
        kept = self.model.angle_tables(span)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            first = self.model.forward(batch, self.cache)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logits = self.model.forward(batch, self.cache)
        self._pool = graph.pool() if self._pool is None else self._pool
        self._recorded[rows, span] = _Recorded(graph, logits, (batch, kept))
        torch.cuda.current_stream().wait_stream(self._stream)
        return first


class Inputs:
    """Memory on the device that a recorded step of up to ``rows`` sequences reads, one new token of each.

    Rows that nobody needs are padding: a sequence of no tokens, whose new token is stored nowhere.

    Args:
        rows: sequences.
        cache: whose blocks they lie in.
        device: where the model is.
    """

    def __init__(self, rows: int, cache: PagedCache, device: torch.device) -> None:
        self._rows, self._block = rows, cache.block
        self._host = torch.zeros(rows * _ROW_BYTES, dtype=torch.uint8)  # one copy for all numbers of a step
        self._device = self._host.to(device)
        self._table = torch.zeros(rows, cache.blocks, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._held: list[tuple[int, ...]] = [()] * rows  # what is in the table

    def write(self, parts: Sequence[Part]) -> None:
        """One more token of each sequence: to be called before a replay."""
        padding, size = [0] * (self._rows - len(parts)), self._block
        slots = [part.blocks[part.first // size] * size + part.first % size for part in parts]
        wide, lengths = self._parts(self._host)
        wide[0] = torch.tensor([*(part.tokens[0] for part in parts), *padding])
        wide[1] = torch.tensor([*(part.first for part in parts), *padding])
        wide[2] = torch.tensor([*slots, *(-1 for _ in padding)])
        lengths.copy_(torch.tensor([*(part.first + 1 for part in parts), *padding], dtype=torch.int32))
        self._device.copy_(self._host)
        for row, part in enumerate(parts):
            if part.blocks != self._held[row]:
                self._table[row, : len(part.blocks)].copy_(torch.tensor(part.blocks, dtype=torch.int32))
                self._held[row] = part.blocks

    def batch(self, span: int) -> Batch:
        """The batch that a recorded step runs; what it reads is what was written last."""
        (tokens, positions, slots), lengths = self._parts(self._device)
        sequences = Sequences(self._starts, lengths, self._table, slots, self._block, 1, span)
        return Batch(tokens, None, positions, sequences, ())

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(ids, positions and slots, int64 ``[3, rows]``; lengths, int32 ``[rows]``)."""
        wide, narrow = torch.split(numbers, [self._rows * 24, self._rows * 4])
        return wide.view(torch.int64).view(3, self._rows), narrow.view(torch.int32)


_ROW_BYTES = 3 * 8 + 4
