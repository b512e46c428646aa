"""Sub-byte codes in 32-bit words: one dense little-endian bit stream along the last axis.

Code ``i`` of a row occupies bits ``i * bits`` to ``(i + 1) * bits - 1`` of the row's stream, bit 0 being the lowest
bit of the first word; codes cross word borders and the last word is filled with zero bits. Signed integers are stored
offset binary (``code + 2**(bits - 1)``). This is the layout of compressed-tensors' pack-quantized checkpoints.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.spec import Element
from isobit.formats.table import element as lookup

_MOST_CODES_AT_ONCE = 1 << 20  # bounds the temporaries: a few bytes per code


def words_per_row(k: int, element: Element | str) -> int:
    """How many int32 words hold ``k`` codes."""
    return lookup(element).words(k)


def pack(codes: Tensor, element: Element | str) -> Tensor:
    """Packs codes ``[..., K]`` (int8 or uint8) into int32 words ``[..., ceil(K * bits / 32)]``.

    Raises:
        FormatError: the dtype is not the one of this format's codes, or a code is out of range.
    """
    row = lookup(element)
    expected = code_dtype(row)
    if codes.dtype != expected:
        raise FormatError(f"{row.name} codes are {expected}, not {codes.dtype}")
    k = codes.shape[-1]
    flat = codes.reshape(-1, k)
    _check_range(flat, row)
    words = torch.empty((flat.shape[0], words_per_row(k, row)), dtype=torch.int32, device=codes.device)
    for part in _row_parts(flat.shape[0], k):
        words[part] = _pack_rows(flat[part], row)
    return words.reshape(*codes.shape[:-1], -1)


def unpack(words: Tensor, element: Element | str, k: int) -> Tensor:
    """Unpacks int32 words ``[..., ceil(k * bits / 32)]`` into codes ``[..., k]`` of ``code_dtype``.

    Raises:
        FormatError: the dtype is not int32 or the number of words is not the one that ``k`` codes need.
    """
    row = lookup(element)
    expected = words_per_row(k, row)
    if words.dtype != torch.int32 or words.shape[-1] != expected:
        raise FormatError(
            f"{k} packed {row.name} codes are {expected} int32 words, not {words.shape[-1]} of {words.dtype}"
        )
    flat = words.reshape(-1, expected)
    codes = torch.empty((flat.shape[0], k), dtype=code_dtype(row), device=words.device)
    for part in _row_parts(flat.shape[0], k):
        codes[part] = _unpack_rows(flat[part], row, k)
    return codes.reshape(*words.shape[:-1], k)


def code_dtype(row: Element) -> torch.dtype:
    """The dtype that codes of this format have in memory: int8 for signed integers, uint8 for all others."""
    return torch.int8 if row.kind == "int" and row.signed else torch.uint8


def _row_parts(rows: int, k: int) -> list[slice]:
    step = max(1, _MOST_CODES_AT_ONCE // max(k, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _check_range(codes: Tensor, row: Element) -> None:
    if codes.numel() == 0 or row.bits == 8:
        return
    low, high = (int(bound) for bound in torch.aminmax(codes))
    if low < row.codes.start or high >= row.codes.stop:
        raise FormatError(
            f"{row.name} codes lie between {row.codes.start} and {row.codes.stop - 1}, these between {low} and {high}"
        )


def _cycle(bits: int) -> tuple[int, int]:
    """The shortest run of codes that fills whole bytes: (codes, bytes)."""
    codes = 8 // math.gcd(bits, 8)
    return codes, codes * bits // 8


def _pack_rows(codes: Tensor, row: Element) -> Tensor:
    rows, k = codes.shape
    per_cycle, bytes_per_cycle = _cycle(row.bits)
    cycles = -(-words_per_row(k, row) * 4 // bytes_per_cycle)
    fields = torch.zeros((rows, cycles * per_cycle), dtype=torch.uint8, device=codes.device)
    fields[:, :k] = codes.view(torch.uint8)
    if row.packing_offset:
        fields[:, :k] += row.packing_offset  # modulo 256, so that -offset becomes 0
    fields = fields.view(rows, cycles, per_cycle)
    stream = torch.zeros((rows, cycles, bytes_per_cycle), dtype=torch.uint8, device=codes.device)
    for i in range(per_cycle):
        byte, shift = divmod(i * row.bits, 8)
        stream[:, :, byte] |= fields[:, :, i] << shift  # bits beyond the byte drop out
        if shift + row.bits > 8:
            stream[:, :, byte + 1] |= fields[:, :, i] >> (8 - shift)
    return _bytes_to_words(stream.view(rows, -1)[:, : words_per_row(k, row) * 4])


def _unpack_rows(words: Tensor, row: Element, k: int) -> Tensor:
    rows = words.shape[0]
    per_cycle, bytes_per_cycle = _cycle(row.bits)
    cycles = -(-k // per_cycle)
    stream = bytes_of(words)
    missing = cycles * bytes_per_cycle - stream.shape[1]
    if missing > 0:
        stream = torch.nn.functional.pad(stream, (0, missing))
    stream = stream[:, : cycles * bytes_per_cycle].reshape(rows, cycles, bytes_per_cycle)
    fields = torch.empty((rows, cycles, per_cycle), dtype=torch.uint8, device=words.device)
    for i in range(per_cycle):
        byte, shift = divmod(i * row.bits, 8)
        field = stream[:, :, byte] >> shift
        if shift + row.bits > 8:
            field |= stream[:, :, byte + 1] << (8 - shift)
        fields[:, :, i] = field if row.bits == 8 else field & (row.num_codes - 1)
    if row.packing_offset:
        fields -= row.packing_offset  # modulo 256: the two's complement byte of the signed code
    return fields.view(rows, -1)[:, :k].view(code_dtype(row))


def _bytes_to_words(stream: Tensor) -> Tensor:
    """Little-endian bytes ``[rows, 4 * words]`` as int32 ``[rows, words]``, on hosts of either byte order."""
    if sys.byteorder == "big":
        stream = stream.view(stream.shape[0], -1, 4).flip(-1).reshape(stream.shape[0], -1)
    # Flat first: a single row counts as contiguous whatever its stride, and could then not be viewed as words.
    return stream.reshape(-1).view(torch.int32).view(stream.shape[0], stream.shape[1] // 4)


def bytes_of(words: Tensor) -> Tensor:
    """The bytes of int32 words ``[rows, words]``, in the order of the bit stream: uint8 ``[rows, 4 * words]``."""
    # Flat first, as above: a single column counts as contiguous whatever its stride.
    stream = words.reshape(-1).contiguous().view(torch.uint8).view(words.shape[0], -1)
    if sys.byteorder == "big":
        stream = stream.view(stream.shape[0], -1, 4).flip(-1).reshape(stream.shape[0], -1)
    return stream
