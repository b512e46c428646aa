"""The pipeline: the caller's thread reads, a pool computes, one more thread writes, in the order of the source.

Each computing thread runs torch on itself alone: the pieces are independent, and what a thread computes then does not
depend on how many there are. The source bytes that are on their way are bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from isobit.checkpoint.checksums import checksum
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.writer import OutputFolder
from isobit.quantizer.jobs import PIECE_BYTES, Job, Piece, work
from isobit.quantizer.progress import Progress
from isobit.quantizer.report import record

# A computing thread has one piece in hand and one waiting, the writer has one, and one is being read.
_PIECES_PER_WORKER, _MORE_PIECES = 2, 2


def stream(ck: Checkpoint, jobs: list[Job], output: OutputFolder, workers: int, progress: Progress) -> tuple[int, int]:
    """Does all jobs; on return everything is written, though not yet committed.

    Args:
        ck: the source.
        jobs: what to do, in order.
        output: where to.
        workers: computing threads.
        progress: told about every finished piece.

    Returns:
        bytes of tensors read, and written.

    Raises:
        the first error in the order of the pieces; nothing is written after it.
    """
    pipeline = _Pipeline(output, progress, (_PIECES_PER_WORKER * workers + _MORE_PIECES) * PIECE_BYTES)
    read = 0
    with _torch_threads(1), ThreadPoolExecutor(workers) as computing, ThreadPoolExecutor(1) as writing:
        try:
            for job in jobs:
                for rows in job.pieces:
                    size = _piece_bytes(job, rows)
                    pipeline.enter(size)
                    data = _read(ck, job, rows)
                    read += size
                    computed = computing.submit(work, job, rows, data)
                    del data  # the piece belongs to its computing thread now
                    writing.submit(pipeline.write, job, rows, size, computed)
        except BaseException as error:
            pipeline.stop(error)
            computing.shutdown(cancel_futures=True)
            writing.shutdown(cancel_futures=True)
            raise
    pipeline.raise_error()
    return read, pipeline.written


class _Pipeline:
    """What the reading and the writing thread share."""

    def __init__(self, output: OutputFolder, progress: Progress, limit: int) -> None:
        self.written = 0
        self._output, self._progress, self._limit = output, progress, limit
        self._changed = threading.Condition()
        self._in_flight = 0
        self._error: BaseException | None = None
        # Of jobs with pieces to come: (signal, noise, checksums of the source's pieces).
        self._sums: dict[str, tuple[float, float, list[int]]] = {}

    def enter(self, size: int) -> None:
        """Waits until ``size`` more source bytes may be on their way; one piece always may."""
        with self._changed:
            while self._error is None and self._in_flight and self._in_flight + size > self._limit:
                self._changed.wait()
            self._in_flight += size
        self.raise_error()

    def write(self, job: Job, rows: tuple[int, int], size: int, computed: Future[Piece]) -> None:
        """In the writing thread: waits for a piece and writes it, unless something failed before."""
        try:
            if self._error is None:
                self._write(job, rows, computed.result())
                self._progress.advance(size)
        except BaseException as error:  # reaches the caller through raise_error
            self.stop(error)
        finally:
            with self._changed:
                self._in_flight -= size
                self._changed.notify()

    def stop(self, error: BaseException) -> None:
        """Nothing more is written; the first error is the one that counts."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify()

    def raise_error(self) -> None:
        """Raises what stopped the pipeline, if anything did."""
        if self._error is not None:
            raise self._error

    def _write(self, job: Job, rows: tuple[int, int], piece: Piece) -> None:
        for name, offset, tensor in piece.parts:
            self.written += self._output.write(name, tensor, offset)
        signal, noise, source = self._sums.pop(job.name, (0.0, 0.0, []))
        signal, noise, source = signal + piece.signal, noise + piece.noise, [*source, piece.source]
        if rows == job.pieces[-1]:
            self._output.complete(job.name, record(job, signal, noise), source)
        else:
            self._sums[job.name] = (signal, noise, source)


def source_sums(ck: Checkpoint, jobs: list[Job], workers: int) -> dict[str, list[int]]:
    """Job name -> checksum of each of its pieces, read anew: what :func:`stream` tells the output about its sources."""
    pieces = [(job, rows) for job in jobs for rows in job.pieces]
    found: dict[str, list[int]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for (job, _), known in zip(pieces, pool.map(lambda piece: checksum(_read(ck, *piece)), pieces), strict=True):
            found.setdefault(job.name, []).append(known)
    return found


def _read(ck: Checkpoint, job: Job, rows: tuple[int, int]) -> Tensor:
    return ck.read(job.name) if len(job.pieces) == 1 else ck.read(job.name, slice(*rows))


def _piece_bytes(job: Job, rows: tuple[int, int]) -> int:
    if len(job.pieces) == 1:
        return job.source.nbytes
    return job.source.nbytes // job.source.shape[0] * (rows[1] - rows[0])


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
