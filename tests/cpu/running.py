"""Models run on token ids ``[B, T]`` of equal length, as tests and transformers have them: a batch of B sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.models.batch import Batch
from isobit.models.cache.contiguous import ContiguousCache
from isobit.models.decoder import Decoder


def run(model: Decoder, ids: Tensor, cache: ContiguousCache | None = None, *, last_only: bool = False) -> Tensor:
    """Logits ``[B, T, vocab]`` (or ``[B, 1, vocab]``) of ids, or of embeddings ``[B, T, hidden]``."""
    wanted, device = "last" if last_only else "all", model.place.tensors
    batch = Batch.of(list(ids), wanted=wanted, device=device) if cache is None else cache.next(list(ids), wanted=wanted)
    with torch.inference_mode():
        logits = model.forward(batch, cache)
    return logits.view(len(ids), -1, logits.shape[-1])


def hidden(model: Decoder, ids: Tensor, cache: ContiguousCache | None = None) -> Tensor:
    """Hidden states ``[B, T, hidden]`` behind the last layer."""
    with torch.inference_mode():
        batch = Batch.of(list(ids), device=model.place.tensors) if cache is None else cache.next(list(ids))
        states = model.hidden_states(batch, cache)
    return states.view(len(ids), -1, states.shape[-1])
