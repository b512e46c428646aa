"""The blocks of GGUF taken apart: codes and scales where one of isobit's formats holds them, numbers in float32 else.

Both are the numbers that ``gguf.quants.dequantize`` gives, bit for bit: products and differences are made in float32
and in its order. Blocks come as bytes ``[n, bytes]``, n of them; what comes out has their weights in order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isobit.checkpoint.gguf.tables import by_tables
from isobit.checkpoint.gguf.types import BY_NAME
from isobit.formats import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.table import element

Codes = tuple[Tensor, Tensor]  # int8 [n, weights], and scales [n, groups] in float16 or float32

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_AT_ONCE = 1 << 22  # weights; bounds the temporaries


def codes(name: str, data: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows of a type that one of isobit's formats holds.

    Args:
        name: the type.
        data: uint8 ``[N, bytes of a row]``.
        k: weights of a row.

    Returns:
        codes as :class:`~isobit.formats.qtensor.QTensor` has them, and scales ``[N, K / group]``.
    """
    row = BY_NAME[name]
    assert row.held is not None
    form, parts = element(row.held.element), []
    for some in _parts(data, k):
        found, scale = _CODES[name](some.reshape(-1, row.nbytes))
        found = found.reshape(len(some), k)
        parts.append((found if form.bits == 8 else pack.pack(found, form), scale.reshape(len(some), -1)))
    return torch.cat([one for one, _ in parts]), torch.cat([scale for _, scale in parts])


def numbers(name: str, data: Tensor, k: int) -> Tensor:
    """Rows of a type that has to be widened: float32 ``[N, K]``; arguments as for :func:`codes`."""
    row = BY_NAME[name]
    if row.tables:
        return by_tables(name, data, k)
    found = torch.empty((len(data), k), dtype=torch.float32)
    begin = 0
    for some in _parts(data, k):
        found[begin : begin + len(some)] = _NUMBERS[name](some.reshape(-1, row.nbytes)).reshape(len(some), k)
        begin += len(some)
    return found


def widened(name: str, data: Tensor, k: int) -> Tensor:
    """Rows of any type that is quantized: float32 ``[N, K]``; arguments as for :func:`codes`."""
    held = BY_NAME[name].held
    return numbers(name, data, k) if held is None else QTensor(held, (len(data), k), *codes(name, data, k)).dequantize()


def _parts(data: Tensor, k: int) -> tuple[Tensor, ...]:
    return torch.split(data, max(1, _AT_ONCE // k))


# ---------------------------------------------------------------------- pieces of blocks


def _half(data: Tensor) -> Tensor:
    """Numbers of 16 bits ``[n, 2 * count]``: float16 ``[n, count]``."""
    return data.contiguous().view(torch.float16)


def _nibbles(data: Tensor, run: int) -> Tensor:
    """Two codes a byte, in runs of bytes whose low halves come first: ``[n, 2 * bytes]``."""
    runs = data.reshape(len(data), -1, 1, run)
    return torch.cat([runs & 15, runs >> 4], 2).reshape(len(data), -1)


def _bits(data: Tensor, run: int, width: int) -> Tensor:
    """Codes of ``width`` bits in runs of bytes, the lowest bits of all of them first: ``[n, 8 / width * bytes]``."""
    runs = data.reshape(len(data), -1, 1, run)
    return torch.cat([(runs >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)], 2).reshape(len(data), -1)


def _fifth(data: Tensor) -> Tensor:
    """A bit for each of 32 weights in four bytes: 0 or 16."""
    bits = torch.stack([(data >> shift) & 1 for shift in range(8)], -1)
    return bits.reshape(len(data), -1) << 4


def _signed(data: Tensor, less: int) -> Tensor:
    return data.to(torch.int8) - less


def _lookup(table: tuple[int, ...], index: Tensor) -> Tensor:
    return torch.tensor(table, dtype=torch.int8)[index.long()]


# ---------------------------------------------------------------------- codes and scales


def _q4_0(blocks: Tensor) -> Codes:
    return _signed(_nibbles(blocks[:, 2:], 16), 8), _half(blocks[:, :2])


def _q5_0(blocks: Tensor) -> Codes:
    return _signed(_nibbles(blocks[:, 6:], 16) | _fifth(blocks[:, 2:6]), 16), _half(blocks[:, :2])


def _q8_0(blocks: Tensor) -> Codes:
    return blocks[:, 2:].contiguous().view(torch.int8), _half(blocks[:, :2])


def _q3_k(blocks: Tensor) -> Codes:
    mask, low, packed, d = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108], _half(blocks[:, 108:])
    scale = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], 1)
    high = torch.cat([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
    scale = _signed(scale | (high << 4), 32)
    above = torch.cat([(mask >> shift) & 1 for shift in range(8)], 1)  # a bit that is set takes nothing off
    return _signed(_bits(low, 32, 2), 0) - ((above ^ 1) << 2).to(torch.int8), d.float() * scale.float()


def _q6_k(blocks: Tensor) -> Codes:
    low, high = _nibbles(blocks[:, :128], 64), _bits(blocks[:, 128:192], 32, 2)
    scale, d = blocks[:, 192:208].contiguous().view(torch.int8), _half(blocks[:, 208:])
    return _signed(low | (high << 4), 32), d.float() * scale.float()


def _iq4_nl(blocks: Tensor) -> Codes:
    return _lookup(_IQ4, _nibbles(blocks[:, 2:], 16)), _half(blocks[:, :2])


def _iq4_xs(blocks: Tensor) -> Codes:
    d, packed, low = _half(blocks[:, :2]), blocks[:, 2:4], blocks[:, 4:8]
    high = torch.stack([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], -1).reshape(len(blocks), 8)
    scale = torch.stack([low & 15, low >> 4], -1).reshape(len(blocks), 8) | (high << 4)
    return _lookup(_IQ4, _nibbles(blocks[:, 8:], 16)), d.float() * _signed(scale, 32).float()


def _mxfp4(blocks: Tensor) -> Codes:
    power = blocks[:, :1].int()  # half of 2 ** (power - 127), for codes that count halves
    bits = torch.where(power < 2, 0x00200000 << power, (power - 1) << 23)
    return _lookup(_E2M1_TWICE, _nibbles(blocks[:, 1:], 16)), bits.view(torch.float32)


def _tq1_0(blocks: Tensor) -> Codes:
    """Five digits to the base of three in a byte, as a fraction of 256: multiplied by a power, the first comes up."""
    threes = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8)

    def digits(data: Tensor, count: int) -> Tensor:
        return (data[:, None, :] * threes[:count, None]).reshape(len(data), -1)

    found = torch.cat([digits(blocks[:, :32], 5), digits(blocks[:, 32:48], 5), digits(blocks[:, 48:52], 4)], 1)
    return _signed((found.short() * 3) >> 8, 1), _half(blocks[:, 52:])


def _tq2_0(blocks: Tensor) -> Codes:
    return _signed(_bits(blocks[:, :64], 32, 2), 1), _half(blocks[:, 64:])


# ---------------------------------------------------------------------- numbers


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]).float() * _nibbles(blocks[:, 4:], 16).float() + _half(blocks[:, 2:4]).float()


def _q5_1(blocks: Tensor) -> Tensor:
    found = _nibbles(blocks[:, 8:], 16) | _fifth(blocks[:, 4:8])
    return _half(blocks[:, :2]).float() * found.float() + _half(blocks[:, 2:4]).float()


def _affine(found: Tensor, scale: Tensor, least: Tensor) -> Tensor:
    """``found * scale - least``, a scale and a number to take off for each group."""
    groups = found.float().reshape(*scale.shape, -1)
    return (scale[..., None] * groups - least[..., None]).reshape(len(found), -1)


def _q2_k(blocks: Tensor) -> Tensor:
    packed, d = blocks[:, :16], _half(blocks[:, 80:84]).float()
    return _affine(_bits(blocks[:, 16:80], 32, 2), d[:, :1] * (packed & 15).float(), d[:, 1:] * (packed >> 4).float())


def _scales_of_six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight numbers to take off, in twelve bytes."""
    one, two, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = torch.cat([one & 63, (both & 15) | ((one >> 2) & 48)], 1)
    least = torch.cat([two & 63, (both >> 4) | ((two >> 2) & 48)], 1)
    return scale.float(), least.float()


def _q4_k(blocks: Tensor) -> Tensor:
    d, (scale, least) = _half(blocks[:, :4]).float(), _scales_of_six_bits(blocks[:, 4:16])
    return _affine(_nibbles(blocks[:, 16:], 32), d[:, :1] * scale, d[:, 1:] * least)


def _q5_k(blocks: Tensor) -> Tensor:
    d, (scale, least) = _half(blocks[:, :4]).float(), _scales_of_six_bits(blocks[:, 4:16])
    found = _nibbles(blocks[:, 48:], 32) | (_bits(blocks[:, 16:48], 32, 1) << 4)
    return _affine(found, d[:, :1] * scale, d[:, 1:] * least)


_CODES: dict[str, Callable[[Tensor], Codes]] = {
    "Q4_0": _q4_0, "Q5_0": _q5_0, "Q8_0": _q8_0, "Q3_K": _q3_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
}  # fmt: skip
_NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_1": _q4_1, "Q5_1": _q5_1, "Q2_K": _q2_k, "Q4_K": _q4_k, "Q5_K": _q5_k,
}  # fmt: skip
