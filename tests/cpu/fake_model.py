"""A model with the interface of Decoder whose next token is a function of the tokens so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor


class FakeModel:
    """Logits from ``rule(tokens so far) -> logits [V]``; checks that the cache is used as it must be."""

    def __init__(self, vocab: int, rule: Callable[[list[int]], Tensor], context: int = 128) -> None:
        self.place = SimpleNamespace(target=None, tensors=torch.device("cpu"))
        self.config = SimpleNamespace(vocab_size=vocab, max_context=context)
        self.notes = ()
        self._rule = rule
        self.calls: list[int] = []

    def new_cache(self, batch: int, max_len: int) -> SimpleNamespace:
        assert batch == 1
        return SimpleNamespace(ids=[], max_len=max_len)

    def linears(self) -> Iterator[tuple[str, object]]:
        return iter(())

    def forward(self, ids: Tensor, cache: SimpleNamespace | None = None, *, last_only: bool = False) -> Tensor:
        assert cache is not None and last_only and ids.dtype == torch.int64 and ids.shape[0] == 1
        cache.ids += ids[0].tolist()
        assert len(cache.ids) <= cache.max_len
        self.calls.append(ids.shape[1])
        return self._rule(cache.ids).reshape(1, 1, -1)


def writes(tokens: list[int], vocab: int, prompt_length: int) -> Callable[[list[int]], Tensor]:
    """A rule that makes the model say ``tokens`` after its prompt, one by one, under greedy decoding."""

    def rule(ids: list[int]) -> Tensor:
        logits = torch.zeros(vocab)
        logits[tokens[(len(ids) - prompt_length) % len(tokens)]] = 10.0
        return logits

    return rule
