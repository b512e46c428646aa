"""Rounding a weight matrix to a grid: the scales, searched or not, and the codes under the scales as stored.

The scale is rounded to its stored dtype first and the codes are computed with that stored scale, by the law of
``formats``: correctly rounded float32 quotient, nearest, ties to even, saturating. A scale rounded afterwards would be
an error of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats import codec, pack
from isobit.formats.fitting import check_shape
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import WeightSpec
from isobit.formats.spec import Element
from isobit.formats.table import element
from isobit.quantizer import few_bit_scales
from isobit.quantizer.few_bit_scales import Search as Search

_CHUNK = 1 << 20  # weights worked on at once: each float32 temporary is 4 MiB, more only if one row or block is longer

# Factors of the absmax scale that the mse search tries, and the relative steps around the best of them. On normal,
# Laplace, Student-t and uniform weights in groups of 32 to 128 the result was within 0.5 % of the best of 1200 factors.
_FACTORS = tuple(1 - i / 24 for i in range(-4, 17) if i)
_REFINEMENTS = (1 / 48, 1 / 96, 1 / 192)


def default_search(spec: WeightSpec) -> Search:
    """The search used when none is asked for: absmax for 8-bit elements, mse below."""
    return "absmax" if element(spec.element).bits == 8 else "mse"


def stored_scale_dtype(source_dtype: torch.dtype, spec: WeightSpec) -> torch.dtype:
    """The dtype in which the scales of ``spec`` are stored for weights that came as ``source_dtype``.

    Float16 sources keep float16, all others get bfloat16, whatever shares a scale: transformers (5.23) casts every
    scale to the model's dtype when it loads, so that a float32 scale of a tensor or block would be another scale there.
    The codes are chosen under the stored scale, so its rounding costs no accuracy.
    """
    return torch.float16 if source_dtype == torch.float16 else torch.bfloat16


def quantize_weight(w: Tensor, spec: WeightSpec, *, search: Search, scale_dtype: torch.dtype) -> QTensor:
    """Quantizes a weight matrix.

    Args:
        w: ``[N, K]``, any float dtype up to float32; it is not changed.
        spec: element format and what shares a scale.
        search: ``absmax``: the smallest scale under which nothing saturates, before the scale is rounded to
            ``scale_dtype``; ``mse``: the scale among 27 around it that gives the smallest sum of squared
            errors as stored, never a larger one than absmax.
        scale_dtype: dtype in which scales are stored, see ``stored_scale_dtype``; unused where the spec says it.

    Returns:
        codes, scales and zero points. Where all weights of a scale are zero the scale is 1.

    Raises:
        FormatError: NaN or infinite weights, a scale beyond ``scale_dtype``, or not a float matrix.
        SchemeError: the shape does not fit the spec.
    """
    if w.dim() != 2 or w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise FormatError(f"weights are a float32, bfloat16 or float16 matrix, not {w.dtype} {list(w.shape)}")
    n, k = w.shape
    check_shape(spec, n, k, "weight")
    row = element(spec.element)
    if spec.scale is not None:
        return few_bit_scales.quantized(w, spec, search)
    whole = _scales_of_tensor(w, row, search, scale_dtype) if spec.granularity == "tensor" else None

    packed = row.bits < 8
    width = pack.words_per_row(k, row) if packed else k
    codes = torch.empty((n, width), dtype=torch.int32 if packed else pack.code_dtype(row), device=w.device)
    scales: list[_Scales] = []
    for rows in _row_chunks(n, k, spec):
        groups = _to_groups(w[rows].float(), spec)
        found = whole or _search_scales(_Part(groups), row, search, scale_dtype)
        part = _from_groups(_codes(groups, found, row), spec, rows.stop - rows.start, k)
        codes[rows] = pack.pack(part, row) if packed else part
        scales.append(found)
    shape = spec.scale_shape(n, k)
    scale = scales[0].scale if whole else torch.cat([one.scale for one in scales])
    zero = None if scales[0].zero is None else torch.cat([one.zero for one in scales if one.zero is not None])
    return QTensor(
        spec,
        (n, k),
        codes,
        scale.to(scale_dtype).reshape(shape),  # exact: it was rounded when it was chosen
        None if zero is None else zero.to(pack.code_dtype(row)).reshape(shape),
    )


# ---------------------------------------------------------------------- weights that share a scale, as rows


def _row_chunks(n: int, k: int, spec: WeightSpec) -> Iterator[slice]:
    """Slices of rows of about ``_CHUNK`` weights, cut between blocks."""
    height = 1 if spec.block is None else spec.block[0]
    step = max(1, _CHUNK // (k * height)) * height
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _to_groups(w: Tensor, spec: WeightSpec) -> Tensor:
    """``[n, K]`` as ``[scales, weights that share one]``; a block cut off by the last row is filled with zeros."""
    if spec.granularity == "tensor":
        return w.reshape(1, -1)
    if spec.block is None:
        return w.reshape(-1, spec.group or w.shape[1])
    height, width = spec.block
    padded = torch.nn.functional.pad(w, (0, 0, 0, -w.shape[0] % height))
    blocks = padded.view(-1, height, w.shape[1] // width, width)
    return blocks.transpose(1, 2).reshape(-1, height * width)


def _from_groups(codes: Tensor, spec: WeightSpec, n: int, k: int) -> Tensor:
    """Inverse of ``_to_groups`` for codes."""
    if spec.block is None:
        return codes.reshape(n, k)
    height, width = spec.block
    blocks = codes.view(-1, k // width, height, width)
    return blocks.transpose(1, 2).reshape(-1, k)[:n]


@dataclass(frozen=True)
class _Scales:
    """Scales ``[G, 1]``, already rounded to their stored dtype but held in float32, and zero points or None."""

    scale: Tensor
    zero: Tensor | None


class _Part:
    """Weights ``[G, size]`` that share G scales: their range, and the squared error under given scales."""

    def __init__(self, groups: Tensor) -> None:
        self.groups = groups
        self.scratch = torch.empty_like(groups)

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest weight per scale, ``[G, 1]``."""
        return self.groups.amin(dim=1, keepdim=True), self.groups.amax(dim=1, keepdim=True)

    def squared_error(self, scales: _Scales, row: Element) -> Tensor:
        """Sum of squared errors per scale, ``[G, 1]``."""
        values = _round_to_grid(self.groups, scales, row, out=self.scratch)
        values *= scales.scale
        values -= self.groups
        return values.square_().sum(dim=1, keepdim=True)


class _WholeTensor:
    """A matrix that has one scale, read in chunks of rows so that no float32 copy of all of it exists."""

    def __init__(self, w: Tensor) -> None:
        self.w = w
        self.chunks = list(_row_chunks(w.shape[0], w.shape[1], WeightSpec("int8", "channel")))

    def _parts(self) -> Iterator[_Part]:
        return (_Part(self.w[rows].float().reshape(1, -1)) for rows in self.chunks)

    def low_high(self) -> tuple[Tensor, Tensor]:
        ranges = [part.low_high() for part in self._parts()]
        lows, highs = torch.cat([low for low, _ in ranges]), torch.cat([high for _, high in ranges])
        return lows.amin(dim=0, keepdim=True), highs.amax(dim=0, keepdim=True)

    def squared_error(self, scales: _Scales, row: Element) -> Tensor:
        return torch.stack([part.squared_error(scales, row).double() for part in self._parts()]).sum(dim=0)


def _scales_of_tensor(w: Tensor, row: Element, search: Search, scale_dtype: torch.dtype) -> _Scales:
    return _search_scales(_WholeTensor(w), row, search, scale_dtype)


# ---------------------------------------------------------------------- rounding under given scales


def _round_to_grid(groups: Tensor, scales: _Scales, row: Element, out: Tensor) -> Tensor:
    """``groups / scale`` rounded to code values less the zero point, in float32."""
    torch.div(groups, scales.scale, out=out)
    if row.kind == "float":
        return out.copy_(codec.round_to(out, row))
    out.round_()
    if scales.zero is None:
        return out.clamp_(row.min, row.max)
    return torch.clamp(out, row.min - scales.zero, row.max - scales.zero, out=out)


def _codes(groups: Tensor, scales: _Scales, row: Element) -> Tensor:
    """Codes of ``groups`` under ``scales``."""
    if row.kind == "float":
        return codec.encode(groups / scales.scale, row)
    values = _round_to_grid(groups, scales, row, out=torch.empty_like(groups))
    if scales.zero is not None:
        values += scales.zero
    return values.to(pack.code_dtype(row))


# ---------------------------------------------------------------------- scales


def _search_scales(part: _Part | _WholeTensor, row: Element, search: Search, scale_dtype: torch.dtype) -> _Scales:
    low, high = part.low_high()
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        kinds = "NaN" if bool((low.isnan() | high.isnan()).any()) else "infinite"
        raise FormatError(f"the weights contain {kinds} values; a source checkpoint with such weights is damaged")
    widest = _absmax_scale(low, high, row)
    start = _with_zero(_stored(widest, scale_dtype), low, row)
    return start if search == "absmax" else _smallest_error(part, start, widest, low, row, scale_dtype)


def _absmax_scale(low: Tensor, high: Tensor, row: Element) -> Tensor:
    """The smallest scale under which nothing saturates, float32 ``[G, 1]``; 1 where all weights are zero."""
    top = torch.full((), row.max, device=low.device)  # a tensor: division by it is a true division on every device
    if row.kind == "float":
        scale = torch.maximum(-low, high) / top
    elif row.signed:
        bottom = torch.full((), row.min, device=low.device)
        scale = torch.maximum(high / top, low / bottom)  # both ends are used: int4 has 16 levels, not 15
    else:
        scale = high.clamp(min=0) / top - low.clamp(max=0) / top
    return scale.masked_fill_((low == 0) & (high == 0), 1.0)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale`` rounded to the stored ``dtype`` and back to float32.

    Scales below the smallest normal float32 become that one, so that no result depends on flushing subnormals. Float16
    has so few bits below 2**-14 that rounding down there could saturate a whole group: those are rounded up.
    """
    if dtype == torch.float16:
        step = 2.0**-24
        rounded_up = (scale / step).ceil_().mul_(step)
        scale = torch.where(scale < 2.0**-14, rounded_up, scale)
    stored = scale.clamp(min=2.0**-126).to(dtype).float()
    if bool(stored.isinf().any()):
        raise FormatError(f"a scale of {float(scale.max()):g} is beyond {dtype}; store scales as bfloat16 or float32")
    return stored


def _with_zero(scale: Tensor, low: Tensor, row: Element) -> _Scales:
    """Adds the zero point to a stored scale: the code of 0.0, so that ``low`` just fits."""
    if row.signed:
        return _Scales(scale, None)
    zero = (-low.clamp(max=0) / scale).round_()
    return _Scales(scale, zero.clamp_(row.min, row.max))


def _smallest_error(
    part: _Part | _WholeTensor, start: _Scales, widest: Tensor, low: Tensor, row: Element, scale_dtype: torch.dtype
) -> _Scales:
    """The stored scales with the smallest squared error among factors of ``widest``, then finer around the best."""
    best, best_error, limit = start, part.squared_error(start, row), torch.finfo(scale_dtype).max

    def consider(scale: Tensor, low_end: Tensor) -> None:
        nonlocal best, best_error
        candidate = _with_zero(_stored(scale.clamp(max=limit), scale_dtype), low_end, row)
        error = part.squared_error(candidate, row)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        zero = None
        if best.zero is not None and candidate.zero is not None:
            zero = torch.where(better, candidate.zero, best.zero)
        best = _Scales(torch.where(better, candidate.scale, best.scale), zero)

    for factor in _FACTORS:
        consider(widest * factor, low * factor)
    for step in _REFINEMENTS:
        around = best.scale
        for factor in (1 - step, 1 + step):
            consider(around * factor, low * (around / widest))
    return best
