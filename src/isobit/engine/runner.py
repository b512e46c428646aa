"""What runs a model's batches: as they are, or, one token at a time on a GPU, as recorded CUDA graphs.

A graph has fixed shapes and addresses, and belongs to the runner, not to an answer: ids, positions, lengths and slots
are written into memory that it reads, and how many tokens there are is read on the device. What depends on the length
is a bound of it (the *span*, a power of two), which sizes the grids of attention; there is a graph for each span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isobit.kernels.sequences import Sequences
from isobit.models.batch import Batch
from isobit.models.cache.contiguous import ContiguousCache
from isobit.models.cache.paged import PagedCache
from isobit.models.cache.protocol import CachedSequence
from isobit.models.decoder import Decoder

SHORTEST = 256  # tokens of the first span; each further one is twice as long: a graph for each takes time to record


def span_of(tokens: int) -> int:
    """The bound of so many tokens that sizes a graph's grids."""
    span = SHORTEST
    while span < tokens:
        span *= 2
    return span


class Seat:
    """One answer's place in a cache: the tokens it has there, and room for those to come."""

    def __init__(self, cache: ContiguousCache | PagedCache, sequence: CachedSequence) -> None:
        self.cache, self.sequence = cache, sequence

    def close(self) -> None:
        """Gives the place back; the seat is of no use then."""
        if isinstance(self.cache, PagedCache):
            self.cache.give_back(self.sequence)


class Runner:
    """Runs batches of one model.

    On a CPU each answer has a cache of its own, whose memory is only taken as it is written. On a GPU all share a paged
    one, which stays where it is so that recorded graphs stay valid.
    """

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self._cache: PagedCache | None = None
        self._graphs: Graphs | None = None

    def open(self, room: int) -> Seat:
        """A place for an answer of up to ``room`` tokens, its prompt included.

        Raises:
            CapacityError: there is not so much memory.
        """
        if self.model.place.tensors.type == "cpu":
            cache = self.model.new_cache(1, room)
            return Seat(cache, cache.sequences[0])
        if self._cache is None:
            self._cache = self.model.paged_cache(max(room, SHORTEST))
        return Seat(self._cache, self._cache.take(room))

    def feed(self, seat: Seat, tokens: Sequence[int]) -> Tensor:
        """Logits ``[vocab]`` behind more tokens of an answer; they hold until the next call."""
        if len(tokens) == 1 and isinstance(seat.cache, PagedCache) and self.model.layer_ops.recordable:
            return self._recorded(seat.cache).run(tokens[0], seat.sequence)
        batch = seat.cache.batch([tokens], [seat.sequence], wanted="last")
        return self.model.forward(batch, seat.cache)[0]

    def _recorded(self, cache: PagedCache) -> Graphs:
        """The graphs for a cache as it lies now."""
        if self._graphs is None or self._graphs.moves != cache.moves:
            self._graphs = Graphs(self.model, cache)
        return self._graphs


@dataclass(frozen=True)
class _Recorded:
    """A graph, its result, and what it reads and does not own."""

    graph: Any
    logits: Tensor
    kept: object


class Graphs:
    """Steps of one token, recorded for one model and one cache.

    Attributes:
        moves: of the cache when they were recorded: they hold for its memory as it lay then.
    """

    def __init__(self, model: Decoder, cache: PagedCache) -> None:
        self.model, self.cache, self.moves = model, cache, cache.moves
        device = model.place.tensors
        self._inputs = Inputs(1, cache, device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None  # one pool of memory for all graphs: one of them runs at a time
        self._recorded: dict[int, _Recorded] = {}

    def run(self, token: int, sequence: CachedSequence) -> Tensor:
        """Logits ``[vocab]`` behind one more token of a sequence; they hold until the next call.

        Raises:
            CapacityError: it has no room for one.
        """
        sequence.require(1)
        self._inputs.write([token], [sequence])
        span = span_of(sequence.length + 1)
        if span in self._recorded:
            self._recorded[span].graph.replay()
            logits = self._recorded[span].logits
        else:
            logits = self._record(span)
        sequence.length += 1
        return logits[0]

    def _record(self, span: int) -> Tensor:
        """Records the step of a span; returns the logits of a first one, which has run as usual.

        That first one is on the stream of the recording, so that workspaces which are made once per stream are there.
        """
        batch = self._inputs.batch(span)
        kept = self.model.angle_tables(span)
        self.model.reserve(1, 1, self.cache.blocks * self.cache.block)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            first = self.model.forward(batch, self.cache)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            logits = self.model.forward(batch, self.cache)
        self._pool = graph.pool() if self._pool is None else self._pool
        self._recorded[span] = _Recorded(graph, logits, (batch, kept))
        torch.cuda.current_stream().wait_stream(self._stream)
        return first


class Inputs:
    """Memory on the device that a recorded step of ``rows`` sequences reads, one new token of each.

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
        self._held: tuple[tuple[int, ...], ...] = ()  # what is in the table

    def write(self, tokens: Sequence[int], sequences: Sequence[CachedSequence]) -> None:
        """One more token of each sequence: to be called before a replay."""
        positions = [one.length for one in sequences]
        slots = [one.slot(at, self._block) for one, at in zip(sequences, positions, strict=True)]
        wide, lengths = self._parts(self._host)
        wide.copy_(torch.tensor([list(tokens), positions, slots]))
        lengths.copy_(torch.tensor([at + 1 for at in positions], dtype=torch.int32))
        self._device.copy_(self._host)
        held = tuple(one.blocks for one in sequences)
        if held != self._held:
            for row, blocks in enumerate(held):
                self._table[row, : len(blocks)].copy_(torch.tensor(blocks, dtype=torch.int32))
            self._held = held

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
