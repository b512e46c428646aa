"""What a weight is turned into once, when it is bound to a GPU kernel: the same codes, in the order the kernel reads.

Nothing here rounds a weight. Scales become float32 where a kernel reads few of them, which is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.formats.pack import code_dtype, pack, unpack, words_per_row
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.formats.spec import Element

_ROWS_AT_ONCE = 1 << 22  # codes unpacked at a time, so that the temporaries stay small


def row_scales(weight: QTensor) -> Tensor:
    """Scales of tensor or channel granularity as float32 ``[N]``."""
    scale = weight.scale.float().reshape(-1)
    return scale.expand(weight.shape[0]).contiguous()


def above(weight: QTensor, activations: ActSpec | None, input_scale: Tensor | None) -> Tensor:
    """What stands above the scales of a weight's groups and of its inputs', as one: float32 ``[N]``, rounded once."""
    found = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.codes.device)
    if weight.over is not None and weight.spec.scale is not None:
        over = weight.over.double().reshape(-1)
        found = found * over if weight.spec.scale.over == "multiplies" else found / over
    if input_scale is not None and activations is not None and activations.scale is not None:
        found = found / input_scale.double()
    return found.float()


def positive(weight: QTensor) -> bool:
    """Whether no scale that is a code of a signed format has its sign bit set."""
    codes = None if weight.spec.scale is None else weight.spec.scale.codes
    return codes is None or not codes.signed or not bool((weight.scale & 0x80).any())


def poisoned_bias(weight: QTensor, bias: Tensor | None) -> Tensor | None:
    """The bias in float32 with NaN in every row of an e4m3fn weight that has a NaN code.

    The integer decoders give 480 for that code. Such a row has NaN outputs for every input, and so has this bias.
    """
    if bias is not None:
        bias = bias.float()
    if weight.spec.element != "e4m3fn":
        return bias
    has_nan = ((weight.codes & 0x7F) == 0x7F).any(dim=1)
    if not bool(has_nan.any()):
        return bias
    base = torch.zeros(weight.shape[0], device=weight.codes.device) if bias is None else bias
    return base.masked_fill(has_nan, float("nan"))


def interleave_nibbles(weight: QTensor, unit: int) -> Tensor:
    """4-bit codes as int16 words ``[N, K / 4]`` in the order of ``linear_matrix_nibbles``.

    Word p of a unit of ``unit`` codes holds its codes p, p + unit / 4, p + unit / 2 and p + 3 unit / 4, the first in
    the lowest bits. Signed codes are stored plus 8.
    """
    n, k = weight.shape
    words = torch.empty((n, k // 4), dtype=torch.int16, device=weight.codes.device)
    step = max(1, _ROWS_AT_ONCE // k)
    for begin in range(0, n, step):
        rows = slice(begin, min(begin + step, n))
        codes = unpack(weight.codes[rows], weight.element, k).to(torch.int32) + weight.element.packing_offset
        quarters = codes.view(codes.shape[0], k // unit, 4, unit // 4)
        joined = quarters[:, :, 0] | quarters[:, :, 1] << 4 | quarters[:, :, 2] << 8 | quarters[:, :, 3] << 12
        words[rows] = joined.reshape(codes.shape[0], k // 4).to(torch.int16)
    return words


def by_group(per_group: Tensor) -> Tensor:
    """Scales or zero points ``[N, K / group]`` as ``[K / group, N]``, so that neighbouring rows lie side by side."""
    return per_group.t().contiguous()


def deinterleave_nibbles(words: Tensor, row: Element, unit: int) -> Tensor:
    """The inverse of :func:`interleave_nibbles`: int32 words as formats/pack.py stores them."""
    n, k = words.shape[0], 4 * words.shape[1]
    packed = torch.empty((n, words_per_row(k, row)), dtype=torch.int32, device=words.device)
    dtype = code_dtype(row)
    step = max(1, _ROWS_AT_ONCE // k)
    for begin in range(0, n, step):
        rows = slice(begin, min(begin + step, n))
        joined = words[rows].to(torch.int32).view(-1, k // unit, 1, unit // 4)
        shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=words.device).view(1, 1, 4, 1)
        codes = ((joined >> shifts) & 15).reshape(joined.shape[0], k) - row.packing_offset
        packed[rows] = pack(codes.to(dtype), row)
    return packed


def folding_scales(scale: Tensor) -> Tensor | None:
    """Powers of two, float32 ``[N]``, under which 4-bit codes times their scales are float16 numbers; None if not all.

    A code -8 to 7 has three significant bits and a bfloat16 scale eight: the product's eleven are what float16 has.
    What remains is the range: the largest product of a row becomes at most 2**15, and none may end below 2**-24.

    Args:
        scale: ``[N, groups]``.
    """
    wide = scale.double()
    largest = wide.abs().amax(dim=1)
    _, exponent = torch.frexp(torch.where(largest > 0, largest, 1.0))
    power = torch.ldexp(torch.ones_like(largest), exponent + 3 - 15)
    for odd in (1, 3, 5, 7):  # times powers of two these are all codes
        product = wide * odd / power[:, None]
        if not bool((product.to(torch.float16).double() == product).all()):
            return None
    return power.float()
