"""Gate and up of experts as one weight, whose rows take turns: what a kernel that applies gates reads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from isobit.formats.qtensor import QTensor
from isobit.kernels.grouped import Grouped


def by_turns(gate: Grouped, up: Grouped) -> Grouped | None:
    """Gate and up as one, row by row; None where their scales are not those of rows, or they differ."""
    one, two = gate.weight, up.weight
    same = (gate.spec, gate.activations, gate.rows, gate.stride) == (up.spec, up.activations, up.rows, up.stride)
    if not same or (gate.bias is None) != (up.bias is None) or not _same(gate.input_scale, up.input_scale):
        return None
    if gate.stride != gate.rows or (gate.spec is not None and gate.spec.granularity not in ("channel", "group")):
        return None
    weight: QTensor | Tensor
    if isinstance(one, QTensor) and isinstance(two, QTensor):
        parts = [_mixed(a, b) for a, b in ((one.codes, two.codes), (one.scale, two.scale), (one.zero, two.zero))]
        codes, scale, zero = parts
        assert codes is not None and scale is not None
        over = None if one.over is None or two.over is None else _mixed(one.over_of_rows(), two.over_of_rows())
        weight = QTensor(one.spec, (2 * one.shape[0], one.shape[1]), codes, scale, zero, over)
    else:
        mixed = _mixed(one, two) if isinstance(one, Tensor) and isinstance(two, Tensor) else None
        if mixed is None:
            return None
        weight = mixed
    bias = None if gate.bias is None or up.bias is None else torch.stack((gate.bias, up.bias), dim=2).flatten(1)
    return replace(gate, weight=weight, rows=2 * gate.rows, stride=2 * gate.stride, bias=bias)


def _mixed(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    """The rows of two tensors by turns."""
    if one is None or two is None or one.dtype != two.dtype or one.shape != two.shape:
        return None
    return torch.stack((one, two), dim=1).flatten(0, 1)


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return torch.equal(one, two)
