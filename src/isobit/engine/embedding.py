"""Texts as vectors: what a model's last norm makes of its tokens, as a mean or of the last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isobit.models.batch import Batch

POOLS = ("mean", "last")


@torch.inference_mode()
def embedding(model: Any, ids: Sequence[int], pool: str, *, normalized: bool = True) -> Tensor:
    """One text.

    Args:
        model: a :class:`isobit.models.decoder.Decoder`.
        ids: token ids, one or more, all of the model's vocabulary.
        pool: "mean" of all tokens, or that of the "last".
        normalized: to length 1.

    Returns:
        float32 ``[hidden]``, on the CPU.
    """
    states = model.hidden_states(Batch.of([list(ids)], device=model.place.tensors))
    rows = states if pool == "mean" else states[-1:]
    found: Tensor = model.norm(rows.float()).mean(0)
    if normalized:
        found = found / found.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return found.cpu()
