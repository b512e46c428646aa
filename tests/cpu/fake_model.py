"""A model with the interface of Decoder whose next token is a function of the tokens so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from isobit.models.batch import Batch
from isobit.models.cache.paged import BLOCK


class FakeCache:
    """Remembers which token lies in which slot."""

    def __init__(self, blocks: int) -> None:
        self.blocks, self.block, self.held = 0, BLOCK, dict[int, int]()
        self.grow(blocks)

    def grow(self, blocks: int) -> None:
        self.blocks = max(blocks, self.blocks)


class FakeModel:
    """Logits from ``rule(tokens so far) -> logits [V]``, read from a cache as attention reads it.

    Attributes:
        calls: tokens of each call.
    """

    def __init__(self, vocab: int, rule: Callable[[list[int]], Tensor], context: int = 128) -> None:
        self.place = SimpleNamespace(target=None, tensors=torch.device("cpu"))
        self.config = SimpleNamespace(vocab_size=vocab, max_context=context, hidden_size=8)
        self.notes = ()
        self.kernels_lack = None
        self._rule = rule
        self.calls: list[int] = []

    def paged_cache(self, blocks: int) -> FakeCache:
        return FakeCache(blocks)

    def cache_bytes(self, tokens: int) -> int:
        return tokens

    def linears(self) -> Iterator[tuple[str, object]]:
        return iter(())

    def hidden_states(self, batch: Batch, cache: FakeCache) -> list[list[int]]:
        """For each new token all tokens that it attends to."""
        assert batch.tokens is not None
        self.calls.append(len(batch.tokens))
        slots = batch.sequences.slots.tolist()
        cache.held |= dict(zip(slots, batch.tokens.tolist(), strict=True))
        assert max(slots) < cache.blocks * BLOCK
        found = []
        for span in batch.spans:
            read = [cache.held[span.blocks[at // BLOCK] * BLOCK + at % BLOCK] for at in range(span.length)]
            found += [read[: end + 1] for end in range(span.past, span.length)]
        return found

    def forward(self, batch: Batch, cache: FakeCache) -> Tensor:
        return self.logits(self.hidden_states(batch, cache), batch.outputs)

    def logits(self, states: list[list[int]], rows: Tensor | None = None) -> Tensor:
        wanted = range(len(states)) if rows is None else rows.tolist()
        return torch.stack([self._rule(states[row]) for row in wanted])


class TableModel(FakeModel):
    """The next token depends on the last one alone: logits are rows of a table ``[V, V]``."""

    def __init__(self, table: Tensor, context: int = 1024) -> None:
        self.table = table
        super().__init__(len(table), lambda ids: self.table[ids[-1]], context)


def writes(tokens: list[int], vocab: int, prompt_length: int) -> Callable[[list[int]], Tensor]:
    """A rule that makes the model say ``tokens`` after its prompt, one by one, under greedy decoding."""

    def rule(ids: list[int]) -> Tensor:
        logits = torch.zeros(vocab)
        logits[tokens[(len(ids) - prompt_length) % len(tokens)]] = 10.0
        return logits

    return rule
