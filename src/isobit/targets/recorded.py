"""Which steps GPUs run as recorded graphs, and how many that are: for the engine and for plans alike."""

from __future__ import annotations

from bisect import bisect_left

# Of steps of prompts: tokens that a graph computes, and sequences up to which it starts less of attention.
TOKENS: tuple[int, ...] = (32, 64, 128, *range(256, 2049, 256))
FEW = 8
GRAPH_BYTES = 3 << 20  # of a recorded step, whatever the model: of 72 steps of 256 sequences of a 7B on an H200
MOST_ROWS = 512  # larger steps take the time of their kernels, not of their launches
# Rows of graphs: padding costs the time of its rows, a graph the time to record it, about 0.1 s.
ROWS: tuple[int, ...] = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, MOST_ROWS + 1, 64))
# Below 256 tokens a sequence is one part of attention's work and its parts need no merging. Up to 2048 it has no more
# parts than a graph of few rows has programs for; with many rows programs are never too many.
_SHORT, _MIDDLE, _FEW_ROWS = 256, 2048, 8
_LONG = 4096  # a sequence's tokens, in which all spans are told apart


def rows_of(sequences: int) -> int:
    """The rows of a graph for so many sequences, at most :data:`MOST_ROWS`."""
    return ROWS[bisect_left(ROWS, sequences)]


def spans(rows: int, most: int) -> tuple[int, ...]:
    """The bounds of a sequence's tokens that graphs of so many rows are for; ``most`` is what one may have."""
    shorter = (_SHORT, _MIDDLE) if rows <= _FEW_ROWS else (_SHORT,)
    return (*(span for span in shorter if span < most), most)


def recorded_steps(sequences: int) -> int:
    """How many steps are recorded before the first one, for so many sequences at most: all that may come."""
    most = min(max(sequences, 1), MOST_ROWS)
    decoding = sum(len(spans(rows, _LONG)) for rows in ROWS if rows <= rows_of(most))
    return decoding + len(TOKENS) * (3 if most > FEW else 2)  # with and without attention for few new tokens; for many
