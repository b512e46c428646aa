"""A quantized weight matrix: codes, scales and zero points, checked against each other once, when it is made."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats import codec, pack
from isobit.formats.cuts import cut
from isobit.formats.scales import ScaleSpec
from isobit.formats.schemes import WeightSpec
from isobit.formats.spec import Element
from isobit.formats.table import element

Rows = slice | Tensor | None  # a range of rows, int64 indices of some, or all

_SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class QTensor:
    """A weight matrix ``[N, K]`` in a few-bit format; its values are ``float32(code - zero) * float32(scale)``.

    Where the format of the scales is part of the spec, ``scale`` holds them as that says, and they count as
    :meth:`float_scales` has them.

    Attributes:
        spec: element format and what shares a scale.
        shape: (N, K).
        codes: 8-bit formats: ``[N, K]``, int8 for int8, uint8 bit patterns for floats; narrower ones:
            int32 words ``[N, ceil(K * bits / 32)]`` as ``pack.pack`` makes them.
        scale: float32, bfloat16 or float16, as stored, or uint8 bit patterns of the scales' own format: tensor ``[1]``,
            channel ``[N, 1]``, group ``[N, K / group]``, block ``[ceil(N / rows), ceil(K / columns)]``.
        zero: zero points, unpacked codes with the shape of ``scale``; None for symmetric specs.
        over: the scale above the others, float32 ``[1]``, or ``[N, 1]`` where rows have different ones; None where the
            spec has none.

    Raises:
        FormatError: shapes or dtypes do not fit together; every disagreement is listed.
    """

    spec: WeightSpec
    shape: tuple[int, int]
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    over: Tensor | None = None

    def __post_init__(self) -> None:
        problems = self._disagreements()
        if problems:
            raise FormatError(f"quantized weight {list(self.shape)} of {self.spec}: " + "; ".join(problems))

    def _disagreements(self) -> list[str]:
        n, k = self.shape
        if n < 1 or k < 1:
            return ["it is empty"]
        if self.spec.group is not None and k % self.spec.group:
            return [f"K = {k} is not a multiple of the group size {self.spec.group}"]
        row, scale_shape = self.element, self.spec.scale_shape(n, k)
        packed = row.bits < 8
        codes_shape = (n, pack.words_per_row(k, row) if packed else k)
        codes_dtype = torch.int32 if packed else pack.code_dtype(row)
        found = [
            _mismatch("codes", self.codes, codes_shape, (codes_dtype,)),
            _mismatch("scale", self.scale, scale_shape, _scale_dtypes(self.spec.scale)),
        ]
        stacked = self.spec.scale is not None and self.spec.scale.over is not None
        if stacked != (self.over is not None):
            found.append(f"the scale of the whole weight is {'missing' if stacked else 'surplus'}")
        elif self.over is not None:
            found.append(_mismatch("over", self.over, (1,) if self.over.dim() == 1 else (n, 1), (torch.float32,)))
        if self.spec.symmetric and self.zero is not None:
            found.append("a symmetric format has no zero points")
        if not self.spec.symmetric:
            expected = (pack.code_dtype(row),)
            found.append(
                "the zero points are missing"
                if self.zero is None
                else _mismatch("zero", self.zero, scale_shape, expected)
            )
        return [problem for problem in found if problem]

    @property
    def element(self) -> Element:
        """The element format of the codes."""
        return element(self.spec.element)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points as they are held in memory."""
        parts = (self.codes, self.scale, self.zero, self.over)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight as stored in a checkpoint (zero points packed like codes)."""
        return self.spec.bits_per_weight(*self.shape, scale_bits=8 * self.scale.element_size())

    def unpacked(self, rows: Rows = None) -> Tensor:
        """Codes ``[n, K]`` of the given rows (a range, or indices): int8 for signed integers, else uint8."""
        part = self.codes[_plain(rows)]
        return part if self.element.bits == 8 else pack.unpack(part, self.element, self.shape[1])

    def values(self, rows: Rows = None) -> Tensor:
        """Code values ``[n, K]`` in float32, less the zero point, without the scale."""
        codes = self.unpacked(rows)
        values = codec.decode(codes, self.element)
        if self.zero is not None:
            self._by_scale(values, rows, self.zero, operator.isub, torch.Tensor.float)
        return values

    def dequantize(self, rows: Rows = None) -> Tensor:
        """Weights ``[n, K]`` in float32: ``values * scale``."""
        values = self.values(rows)
        self._by_scale(values, rows, self.scale, operator.imul, lambda scale: self._numbers(scale, rows))
        return values

    def float_scales(self) -> Tensor:
        """The scales as numbers, float32 in the shape of ``scale``: what the values of codes are multiplied by."""
        return self._numbers(self.scale, None)

    def with_float_scales(self) -> QTensor:
        """The same weight with its scales in float32, for kernels that read such; itself where they are floats."""
        if self.spec.scale is None:
            return self
        return replace(self, spec=replace(self.spec, scale=None), scale=self.float_scales(), over=None)

    def _numbers(self, scale: Tensor, rows: Rows) -> Tensor:
        """The scales of some rows as numbers in float32."""
        spec = self.spec.scale
        found = scale.float() if spec is None or spec.codes is None else codec.decode(scale, spec.codes)
        if spec is None or self.over is None:
            return found
        over = self.over if self.over.dim() == 1 else self.over[_plain(rows)]
        return found * over if spec.over == "multiplies" else found / over

    def _by_scale(
        self,
        values: Tensor,
        rows: Rows,
        per_scale: Tensor,
        apply: Callable[[Tensor, Tensor], Tensor],
        number: Callable[[Tensor], Tensor],
    ) -> None:
        """Applies one number per scale to ``values`` ``[n, K]`` of the given rows, in place."""
        n, k = self.shape
        spec = self.spec
        if spec.granularity == "tensor":
            apply(values, number(per_scale))
        elif spec.granularity == "channel":
            apply(values, number(per_scale[_plain(rows)]))
        elif spec.group is not None:
            apply(values.view(values.shape[0], -1, spec.group), number(per_scale[_plain(rows)]).unsqueeze(-1))
        else:
            assert spec.block is not None
            block_of_row = torch.arange(n, device=values.device)[_plain(rows)] // spec.block[0]
            expanded = number(per_scale)[block_of_row].repeat_interleave(spec.block[1], dim=1)
            apply(values, expanded[:, :k])

    def in_lower_blocks(self, height: int) -> QTensor:
        """The same weight in blocks of fewer rows, each with the scale of the one it comes from.

        Raises:
            FormatError: it has no blocks, or ``height`` does not divide theirs.
        """
        block = self.spec.block
        if block is None or height < 1 or block[0] % height:
            raise FormatError(f"blocks of {block} are not cut into such of {height} rows")
        if block[0] == height:
            return self
        count = -(-self.shape[0] // height)
        scale, zero = (
            None if per is None else per.repeat_interleave(block[0] // height, dim=0)[:count].contiguous()
            for per in (self.scale, self.zero)
        )
        assert scale is not None
        return replace(self, spec=replace(self.spec, block=(height, block[1])), scale=scale, zero=zero)

    def rows(self, rows: slice) -> QTensor:
        """The matrix of some rows (a view where torch makes one). Blocks can be cut only between them.

        Raises:
            FormatError: no rows are left, or a block would be cut.
        """
        return self.part(rows, None)

    def columns(self, columns: slice) -> QTensor:
        """The matrix of some columns, copied. Groups, blocks and 32-bit words of codes can be cut only between them.

        Raises:
            FormatError: no columns are left, or a group, block or word would be cut.
        """
        return self.part(None, columns)

    def part(self, rows: slice | None, columns: slice | None) -> QTensor:
        """The matrix of some rows and columns; None for all of them. Raises as :meth:`rows` and :meth:`columns`."""
        where = cut(self.spec, *self.shape, rows, columns)
        scale, zero = (None if per is None else per[where.scales].contiguous() for per in (self.scale, self.zero))
        assert scale is not None
        codes = self.codes[where.rows, where.words].contiguous()
        return replace(self, shape=where.shape, codes=codes, scale=scale, zero=zero, over=self._over_of(where.rows))

    def in_order(self, rows: Tensor) -> QTensor:
        """The matrix of the rows with some indices, int64 ``[n]``, in their order, copied.

        Raises:
            FormatError: rows share scales in blocks.
        """
        if self.spec.block is not None:
            raise FormatError("rows that share scales in blocks cannot be put in another order")
        whole = self.spec.granularity == "tensor"
        scale, zero = (per if per is None or whole else per[rows] for per in (self.scale, self.zero))
        assert scale is not None
        over = self._over_of(rows)
        return replace(
            self, shape=(len(rows), self.shape[1]), codes=self.codes[rows], scale=scale, zero=zero, over=over
        )

    def over_of_rows(self) -> Tensor | None:
        """The scale above others for each row, ``[N, 1]``; None where there is none."""
        return None if self.over is None else self.over.expand(self.shape[0], 1)

    def _over_of(self, rows: slice | Tensor) -> Tensor | None:
        """The scale above those of some rows."""
        return self.over if self.over is None or self.over.dim() == 1 else self.over[rows]

    def split_rows(self, sizes: Sequence[int]) -> tuple[QTensor, ...]:
        """Splits a fused matrix (q/k/v, gate/up) into parts of ``sizes`` rows.

        Raises:
            FormatError: the sizes do not add up to N, or a block would be cut.
        """
        if sum(sizes) != self.shape[0] or min(sizes, default=0) < 1:
            raise FormatError(f"parts of {list(sizes)} rows do not make up {self.shape[0]}")
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(self.rows(slice(end - size, end)) for end, size in zip(ends, sizes, strict=True))


def stacked(parts: Sequence[QTensor]) -> QTensor:
    """One matrix of the rows of several, one below the other: what :meth:`QTensor.split_rows` takes apart.

    One scale of a whole part becomes one of each of its rows: of tensors comes a matrix of channels, and a scale above
    others stands over those of its rows.

    Raises:
        FormatError: they differ in their formats, widths or dtypes of scales, or rows would share a block with others.
    """
    first = parts[0]
    kind = first.spec, first.shape[1], first.scale.dtype
    if any((part.spec, part.shape[1], part.scale.dtype) != kind for part in parts):
        raise FormatError("matrices of different formats, widths or scales are not stacked")
    height = 1 if first.spec.block is None else first.spec.block[0]
    if any(part.shape[0] % height for part in parts[:-1]):
        raise FormatError(f"a matrix whose rows end inside a block of {height} is not stacked on another")
    scales, zeros = [part.scale for part in parts], [part.zero for part in parts if part.zero is not None]
    spec = first.spec
    if spec.granularity == "tensor":
        spec = replace(spec, granularity="channel")
        scales = [part.scale.expand(part.shape[0])[:, None] for part in parts]
        zeros = [part.zero.expand(part.shape[0])[:, None] for part in parts if part.zero is not None]
    shape = (sum(part.shape[0] for part in parts), first.shape[1])
    codes = torch.cat([part.codes for part in parts])
    overs = [over for part in parts if (over := part.over_of_rows()) is not None]
    return QTensor(
        spec, shape, codes, torch.cat(scales), torch.cat(zeros) if zeros else None, torch.cat(overs) if overs else None
    )


def _mismatch(what: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> str:
    if tuple(tensor.shape) == shape and tensor.dtype in dtypes:
        return ""
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    found = str(tensor.dtype).removeprefix("torch.")
    return f"{what} should be {wanted} {list(shape)}, not {found} {list(tensor.shape)}"


def _scale_dtypes(spec: ScaleSpec | None) -> tuple[torch.dtype, ...]:
    if spec is None:
        return _SCALE_DTYPES
    return (torch.uint8 if spec.codes is not None else getattr(torch, spec.element),)


def _plain(rows: Rows) -> slice | Tensor:
    """``rows`` as a contiguous slice, or as indices; None means all."""
    if rows is None:
        return slice(None)
    if isinstance(rows, Tensor):
        return rows
    if rows.step not in (None, 1):
        raise FormatError(f"rows are taken one after another, not in steps of {rows.step}")
    return rows
