"""What runs the engine's steps on a model, over a cache in blocks. On GPUs: :mod:`isobit.engine.gpu_runner`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from isobit.engine.gallery import Gallery
from isobit.engine.request import Part, Schedule
from isobit.formats.caches import BLOCK
from isobit.models.batch import Batch, lay_out
from isobit.models.cache.paged import PagedCache
from isobit.models.decoder import Decoder
from isobit.targets.detect import memory

# Rows of logits that are scored at once: this many at most, and as many as float64 numbers of so many bytes hold.
_SCORED_ROWS = 256
_SCORED_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}


def _wanted(part: Part) -> range:
    """Those of its new tokens whose logits choose the next."""
    return range(len(part.tokens) - part.chooses, len(part.tokens))


class ModelRunner:
    """Runs the steps of one model over a cache in blocks.

    Args:
        model: it.
        sequences: that take part in a step at most.
        longest: tokens that a sequence may have; None for as many as the model reads.
        gallery: what tokens of prompts stand for; None where all are text.

    Attributes:
        block: tokens of a block.
    """

    block = BLOCK

    def __init__(
        self, model: Decoder, sequences: int = 1, longest: int | None = None, gallery: Gallery | None = None
    ) -> None:
        self.model, self._sequences, self._longest = model, sequences, longest
        self.gallery = Gallery() if gallery is None else gallery
        self._cache: PagedCache | None = None
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
            cache.longest = self._longest
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
        cache = self._held()
        self._states = None
        scores = any(part.targets for part in schedule.parts)
        batch = self._batch(schedule, cache)
        if schedule.choosers and not scores:
            return self.model.forward(batch, cache)
        states = self.model.hidden_states(batch, cache)
        self._states = states if scores else None
        if schedule.choosers:
            return self.model.logits(states, batch.outputs)
        return torch.empty(0, self.model.config.vocab_size, device=self.model.place.tensors)

    def _held(self) -> PagedCache:
        assert self._cache is not None, "reserve comes first"
        return self._cache

    def _batch(self, schedule: Schedule, cache: PagedCache) -> Batch:
        """The batch of a step."""
        parts = schedule.parts
        return lay_out(
            [part.tokens for part in parts],
            [part.first for part in parts],
            [part.blocks for part in parts],
            cache.block,
            wanted="last" if all(part.chooses for part in parts) else [_wanted(part) for part in parts],
            device=self.model.place.tensors,
            positions=self._told(parts),
            overlays=[self.gallery.overlay(part) for part in parts] if any(part.looks for part in parts) else None,
        )

    def _told(self, parts: Sequence[Part]) -> list[Tensor | None] | None:
        """What rotary embeddings are told of the parts' tokens; None where that is their places."""
        if not any(part.looks or part.shift for part in parts):
            return None
        return [self.gallery.positions(part) for part in parts]

    def scored(self, schedule: Schedule) -> Iterator[Tensor]:
        """Logits of ``schedule.scored`` behind the last :meth:`run`, in their order: ``[r, vocab]``, few at once."""
        rows, states, device = schedule.scored, self._states, self.model.place.tensors
        at_once = max(1, min(_SCORED_ROWS, _SCORED_BYTES[device.type] // (8 * self.model.config.vocab_size)))
        for begin in range(0, len(rows), at_once):
            assert states is not None, "run comes first"
            yield self.model.logits(states, torch.tensor(rows[begin : begin + at_once], device=device))
        self._states = None
