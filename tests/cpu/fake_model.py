"""A model with the interface of Decoder whose next token is a function of the tokens so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor


class FakeCache:
    """Remembers the tokens of one sequence."""

    def __init__(self, max_len: int) -> None:
        self.ids: list[int] = []
        self.max_len, self.sequences = max_len, (object(),)

    def batch(self, new: Sequence[Sequence[int]], members: Sequence[object], *, wanted: str) -> list[int]:
        assert len(new) == 1 and tuple(members) == self.sequences and wanted == "last"
        return list(new[0])


class FakeModel:
    """Logits from ``rule(tokens so far) -> logits [V]``; checks that the cache is used as it must be."""

    def __init__(self, vocab: int, rule: Callable[[list[int]], Tensor], context: int = 128) -> None:
        self.place = SimpleNamespace(target=None, tensors=torch.device("cpu"))
        self.config = SimpleNamespace(vocab_size=vocab, max_context=context)
        self.notes = ()
        self._rule = rule
        self.calls: list[int] = []

    def new_cache(self, sequences: int, max_len: int) -> FakeCache:
        assert sequences == 1
        return FakeCache(max_len)

    def linears(self) -> Iterator[tuple[str, object]]:
        return iter(())

    def forward(self, new: list[int], cache: FakeCache) -> Tensor:
        cache.ids += new
        assert len(cache.ids) <= cache.max_len
        self.calls.append(len(new))
        return self._rule(cache.ids).reshape(1, -1)


def writes(tokens: list[int], vocab: int, prompt_length: int) -> Callable[[list[int]], Tensor]:
    """A rule that makes the model say ``tokens`` after its prompt, one by one, under greedy decoding."""

    def rule(ids: list[int]) -> Tensor:
        logits = torch.zeros(vocab)
        logits[tokens[(len(ids) - prompt_length) % len(tokens)]] = 10.0
        return logits

    return rule
