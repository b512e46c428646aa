"""Types of GGUF whose codes are looked up in large tables (IQ1, IQ2, IQ3), by the package ``gguf``, which has these."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from isobit.checkpoint.gguf.types import INSTALL
from isobit.errors import FormatError

_AT_ONCE = 1 << 20  # weights; numpy's temporaries are many times as large


def by_tables(name: str, data: Tensor, k: int) -> Tensor:
    """Rows of such a type: float32 ``[N, K]``.

    Args:
        name: the type.
        data: uint8 ``[N, bytes of a row]``.
        k: weights of a row.

    Raises:
        FormatError: the package is missing, or too old for this type.
    """
    try:
        quants = import_module("gguf.quants")
        kind = import_module("gguf.constants").GGMLQuantizationType[name]
        parts = torch.split(data.contiguous(), max(1, _AT_ONCE // k))
        found = torch.empty((len(data), k), dtype=torch.float32)
        begin = 0
        for part in parts:
            found[begin : begin + len(part)] = torch.from_numpy(quants.dequantize(part.numpy(), kind)).view(-1, k)
            begin += len(part)
    except (ImportError, KeyError, AttributeError, NotImplementedError):
        why = f"is {name}, which takes tables of the package gguf, which is missing or too old: {INSTALL}"
        raise FormatError(why) from None
    return found
