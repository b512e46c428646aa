"""Steps in which prompts are fed, as CUDA graphs: for so many tokens of so many sequences, padded.

Starting every kernel of such a step takes the host tens of milliseconds, as long as a GPU works on a few thousand
tokens. So a number of tokens that comes a second time is recorded, up to where the work is longer than its start.
Padding is a sequence of no length, behind the others, whose tokens are stored nowhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isobit.kernels.sequences import MANY, Sequences
from isobit.models.batch import Batch
from isobit.models.staging import send
from isobit.targets.recorded import FEW, TOKENS


class Bucket(NamedTuple):
    """What a graph is for.

    Attributes:
        tokens: that it computes.
        sequences: at most.
        least: new tokens of each of them, the padding too: what attends for sequences of fewer is not started.
    """

    tokens: int
    sequences: int
    least: int = 1


def bucket_of(counts: Sequence[int], most: int) -> Bucket | None:
    """The graph for a step of sequences with so many new tokens; None for one that is not recorded.

    Args:
        most: sequences that may take part in a step.
    """
    total = sum(counts)
    if total > TOKENS[-1] or len(counts) > most:
        return None
    tokens = TOKENS[bisect_left(TOKENS, total)]
    if len(counts) > FEW:
        return Bucket(tokens, most)
    return Bucket(tokens, FEW, MANY if min(*counts, tokens - total or MANY) >= MANY else 1)


def buckets(most: int) -> list[Bucket]:
    """All that may come where so many sequences take part in a step, the largest first."""
    kinds = [(most, 1)] if most > FEW else []
    return [Bucket(tokens, *kind) for tokens in reversed(TOKENS) for kind in (*kinds, (FEW, 1), (FEW, MANY))]


class Pieces:
    """Memory on the device that recorded steps of prompts read.

    Args:
        sequences: that take part in a step at most.
        columns: blocks of a sequence at most.
        block: tokens of a block.
        device: where the model is.
    """

    def __init__(self, sequences: int, columns: int, block: int, device: torch.device) -> None:
        self.sequences = max(sequences, FEW)
        self._block, self._device = block, device
        self._wide = torch.zeros(3 * TOKENS[-1] + self.sequences, dtype=torch.int64, device=device)
        self._lengths = -(-(self.sequences + 2) // 4) * 4  # where they begin, behind the starts: at 16 bytes
        self._narrow = torch.zeros(self._lengths + self.sequences + 1, dtype=torch.int32, device=device)
        self._table = torch.zeros(self.sequences + 1, columns, dtype=torch.int32, device=device)
        self._seen: Counter[Bucket] = Counter()

    def comes_again(self, bucket: Bucket) -> bool:
        """Whether such a step has come before this one."""
        self._seen[bucket] += 1
        return self._seen[bucket] > 1

    def write(self, batch: Batch, tokens: int, known: Sequence[tuple[int, int]], chosen: Tensor) -> None:
        """A step's numbers, to be called before it runs.

        Args:
            batch: on the CPU.
            tokens: of the bucket.
            known: places in it of tokens that only the device knows, and where in ``chosen`` they are.
            chosen: tokens on the device.
        """
        assert batch.tokens is not None
        count, longest, held = len(batch.tokens), TOKENS[-1], batch.sequences
        wide = np.zeros(len(self._wide), np.int64)
        wide[:count] = batch.tokens.numpy()
        wide[longest : longest + count] = batch.positions.numpy()
        wide[2 * longest : 3 * longest] = -1
        wide[2 * longest : 2 * longest + count] = held.slots.numpy()
        ends = held.starts.numpy()[1:]
        wide[3 * longest : 3 * longest + len(ends)] = ends - 1
        narrow = np.zeros(len(self._narrow), np.int32)
        narrow[: self.sequences + 2] = tokens
        narrow[: len(ends) + 1] = held.starts.numpy()
        narrow[self._lengths : self._lengths + len(ends)] = held.lengths.numpy()
        places = np.array([at for at, _ in known], np.int64), np.array([row for _, row in known], np.int64)
        sent = send(self._device, wide, narrow, held.table.numpy(), *places)
        self._wide.copy_(sent[0])
        self._narrow.copy_(sent[1])
        self._table[: len(ends), : held.table.shape[1]].copy_(sent[2])
        if known:
            self._wide.index_copy_(0, sent[3], chosen.index_select(0, sent[4]))

    def clear(self, tokens: int) -> None:
        """Padding alone: a step of so many tokens stores nothing."""
        self._wide.zero_()
        self._wide[2 * TOKENS[-1] : 3 * TOKENS[-1]] = -1
        self._narrow.zero_()
        self._narrow[1 : self.sequences + 2] = tokens

    def batch(self, bucket: Bucket, span: int) -> Batch:
        """The batch that a recorded step runs; what it reads is what was written last."""
        (tokens, sequences, least), longest = bucket, TOKENS[-1]
        ids, positions, slots = (self._wide[at * longest : at * longest + tokens] for at in range(3))
        starts, lengths = self._narrow[: sequences + 2], self._narrow[self._lengths :][: sequences + 1]
        laid = Sequences(starts, lengths, self._table[: sequences + 1], slots, self._block, tokens, span, least)
        return Batch(ids, None, positions, laid, (), self._wide[3 * longest :][:sequences])
