"""Rounding a weight to codes under scales that are few-bit numbers themselves: MX's powers of two, NVFP4's e4m3.

``absmax`` is the rule of compressed-tensors, byte for byte; ``mse`` tries what lies beside it and keeps what gives the
smallest squared error, never a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from isobit.errors import FormatError, SchemeError
from isobit.formats import codec, pack
from isobit.formats.qtensor import QTensor
from isobit.formats.scales import POWERS, UNDER_ONE, ScaleSpec
from isobit.formats.schemes import WeightSpec
from isobit.formats.spec import Element
from isobit.formats.table import element

Search = Literal["absmax", "mse"]
Numbers = Callable[[Tensor], Tensor]  # codes of scales to what they multiply by

_CHUNK = 1 << 20  # weights worked on at once


def quantized(w: Tensor, spec: WeightSpec, search: Search) -> QTensor:
    """``[N, K]`` in groups; see :func:`isobit.quantizer.grid.quantize_weight`.

    Raises:
        FormatError: NaN or infinite weights.
        SchemeError: such scales are read only.
    """
    stored, row, group = spec.scale, element(spec.element), spec.group
    if stored is None or group is None or stored not in (POWERS, UNDER_ONE):
        raise SchemeError(f"scales in {stored} are read, and not chosen: use a scheme of isobit's")
    (n, k), scale_row = w.shape, element(stored.element)
    over = None if stored.over is None else _over(w, row, scale_row)
    codes = torch.empty((n, pack.words_per_row(k, row) if row.bits < 8 else k),
                        dtype=torch.int32 if row.bits < 8 else pack.code_dtype(row))  # fmt: skip
    scales = torch.empty(n, k // group, dtype=torch.uint8)

    def numbers(of: Tensor) -> Tensor:
        found = codec.decode(of, scale_row)
        return found if over is None else found / over

    for rows in _chunks(n, k):
        groups = w[rows].float().reshape(-1, group)
        first = _first(groups, row, stored, over)
        chosen = first if search == "absmax" else _best(groups, first, row, scale_row, numbers)
        part = codec.encode(groups / numbers(chosen), row).reshape(-1, k)
        codes[rows] = pack.pack(part, row) if row.bits < 8 else part
        scales[rows] = chosen.reshape(-1, k // group)
    return QTensor(spec, (n, k), codes, scales, over=over)


def _chunks(n: int, k: int) -> Iterator[slice]:
    step = max(1, _CHUNK // k)
    return (slice(begin, min(begin + step, n)) for begin in range(0, n, step))


def _over(w: Tensor, row: Element, scale_row: Element) -> Tensor:
    """The scale of the whole weight: its largest magnitude becomes the largest scale times the largest code.

    In bfloat16 unless the weights are float32, since transformers casts it to the model's dtype when it loads.
    """
    amax = torch.stack([w[rows].float().abs().amax() for rows in _chunks(*w.shape)]).amax()
    _require_finite(amax)
    top = torch.tensor(scale_row.max * row.max)
    over = (top / amax.clamp(min=torch.finfo(torch.float32).tiny)).reshape(1)
    over = over if w.dtype == torch.float32 else over.bfloat16().float()
    return torch.where(over.isfinite(), over, torch.ones(1))


def _first(groups: Tensor, row: Element, stored: ScaleSpec, over: Tensor | None) -> Tensor:
    """Codes ``[G, 1]`` of the scales by compressed-tensors' rule."""
    amax = groups.abs().amax(dim=1, keepdim=True)
    _require_finite(amax.amax())
    scales = codec.power_scales(amax, row) if over is None else codec.scales_under(amax, row, over)
    return codec.encode(scales, stored.element)


def _best(groups: Tensor, first: Tensor, row: Element, scale_row: Element, numbers: Numbers) -> Tensor:
    """The codes of scales with the smallest squared error among those beside the first: a step of e8m0 is a factor of
    two, eight of e4m3 are, and scales below the first clip what is largest."""
    best, least = first, _error(groups, first, row, numbers)
    for step in (-1, 1) if scale_row.mantissa_bits == 0 else (*range(-4, 0), 1, 2):
        # e8m0 ends below its NaN; of e4m3 zero is no scale, and the code behind the largest is NaN.
        low, high = (27, 254) if scale_row.mantissa_bits == 0 else (1, scale_row.num_codes // 2 - 2)
        other = (first.to(torch.int16) + step).clamp(low, high).to(torch.uint8)
        error = _error(groups, other, row, numbers)
        better = error < least
        best, least = torch.where(better, other, best), torch.where(better, error, least)
    return best


def _error(groups: Tensor, scales: Tensor, row: Element, numbers: Numbers) -> Tensor:
    by = numbers(scales)
    return (codec.round_to(groups / by, row) * by - groups).square_().sum(dim=1, keepdim=True)


def _require_finite(amax: Tensor) -> None:
    if not bool(amax.isfinite()):
        kinds = "NaN" if bool(amax.isnan()) else "infinite"
        raise FormatError(f"the weights contain {kinds} values; a source checkpoint with such weights is damaged")
