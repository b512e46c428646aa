"""Rows and columns of a quantized weight: where their codes and scales lie, and where a weight cannot be cut. No torch.

A cut never divides what shares a scale along K, nor a 32-bit word of codes, nor a block: the parts then hold the same
numbers as the whole, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.errors import FormatError
from isobit.formats.schemes import WeightSpec
from isobit.formats.spec import Element
from isobit.formats.table import element


@dataclass(frozen=True)
class Cut:
    """Some rows and columns of a weight ``[N, K]``.

    Attributes:
        rows: begin and end.
        columns: begin and end.
        words: columns of the tensor with the codes: ``columns`` for 8-bit formats, else those of the int32 words.
        scales: rows and columns of the scales (and zero points); all of them where there is one of the tensor.
    """

    rows: slice
    columns: slice
    words: slice
    scales: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, as numbers."""
        return size(self.rows), size(self.columns)


def cut(spec: WeightSpec, n: int, k: int, rows: slice | None = None, columns: slice | None = None) -> Cut:
    """Where some rows and columns of a weight ``[n, k]`` lie.

    Raises:
        FormatError: none are left, they are not one after another, or a group, block or word would be cut.
    """
    row = element(spec.element)
    lines, places = span(rows, n, "rows"), span(columns, k, "columns")
    height, width = spec.block or (1, spec.group or 1)
    _require_whole(lines, n, height, "rows", "a block")
    _require_whole(places, k, width, "columns", "a block" if spec.block else "a group")
    words = places if row.bits == 8 else word_span(row, k, places)
    scales = (_of(lines, height), _of(places, width) if spec.group or spec.block else slice(0, 1))
    return Cut(lines, places, words, () if spec.granularity == "tensor" else scales)


def word_span(row: Element, k: int, columns: slice) -> slice:
    """The int32 words, of each row, that hold some columns of ``k`` packed codes.

    Raises:
        FormatError: the columns begin or end inside a word.
    """
    begin, end = columns.start * row.bits, columns.stop * row.bits
    if begin % 32 or (end % 32 and columns.stop != k):
        raise FormatError(f"columns {columns.start} to {columns.stop} cut a 32-bit word of {row.bits}-bit codes")
    return slice(begin // 32, -(-end // 32))


def span(part: slice | None, whole: int, what: str) -> slice:
    """A part of ``whole`` rows or columns as begin and end; all of them for None. Negative numbers count from the end.

    Raises:
        FormatError: none are left, or they are not one after another.
    """
    if part is None:
        return slice(0, whole)
    if part.step not in (None, 1):
        raise FormatError(f"{what} are taken one after another, not in steps of {part.step}")
    begin, end, _ = part.indices(whole)
    if begin >= end:
        raise FormatError(f"{what} {part.start} to {part.stop} of a matrix of {whole} {what} are none")
    return slice(begin, end)


def size(part: slice) -> int:
    """How many rows or columns lie between begin and end."""
    count: int = part.stop - part.start
    return count


def _require_whole(part: slice, whole: int, unit: int, what: str, name: str) -> None:
    if part.start % unit or (part.stop % unit and part.stop != whole):
        raise FormatError(f"{what} {part.start} to {part.stop} cut {name} of {unit} {what}")


def _of(part: slice, unit: int) -> slice:
    return slice(part.start // unit, -(-part.stop // unit))
