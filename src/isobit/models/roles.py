"""What a checkpoint stores as one matrix, and a layer uses as several: rows of it, by their roles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.formats.qtensor import QTensor
from isobit.models.blueprint import Module


def by_role(group: Sequence[Module], reads: Sequence[LinearWeight]) -> dict[str, LinearWeight]:
    """The weights of modules by role; one that holds several is cut into their rows, without a copy.

    Codes and scales stay as they are. Where rows of two share a block, each gets blocks of fewer rows with the scales
    of those that were: the same numbers.

    Args:
        group: modules that read the same input.
        reads: their weights.
    """
    found: dict[str, LinearWeight] = {}
    for module, read in zip(group, reads, strict=True):
        found |= dict(_cut(module, read)) if module.parts else {module.role: read}
    return found


def _cut(module: Module, read: LinearWeight) -> Iterator[tuple[str, LinearWeight]]:
    ends = [sum(rows for _, rows in module.parts[: i + 1]) for i in range(len(module.parts))]
    weight = read.weight
    if isinstance(weight, QTensor) and weight.spec.block is not None:
        weight = weight.in_lower_blocks(math.gcd(weight.spec.block[0], *ends[:-1]))
    for (role, rows), end in zip(module.parts, ends, strict=True):
        where = slice(end - rows, end)
        bias = None if read.bias is None else read.bias[where]
        part = weight[where] if isinstance(weight, Tensor) else weight.rows(where)
        yield role, replace(read, weight=part, bias=bias)
