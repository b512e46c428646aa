"""A quantized weight on a GPU, held once: in the order that the kernels at hand read, and in no other beside it."""

from __future__ import annotations

from torch import Tensor

from isobit.formats.qtensor import QTensor
from isobit.kernels.gpu import layouts


class Operands:
    """Owns the codes, scales and zero points of one weight.

    The caller lets go of the QTensor that this was made of: then nothing is there twice. :meth:`stored` makes it anew.

    Attributes:
        codes: as stored, or words of interleaved nibbles.
        scale: as stored, or ``[groups, N]``.
        zero: likewise, or None.
        over: as stored: what stands above scales that are codes; or None.
        unit: codes of a unit of interleaved nibbles; None for the order in which checkpoints store them.
        row_scale: float32: ``[N]`` of 8-bit formats with scales of tensors or channels; scales of blocks; else None.
    """

    def __init__(self, weight: QTensor) -> None:
        self.spec, self.shape, self.element = weight.spec, weight.shape, weight.element
        self.codes, self.scale, self.zero = weight.codes.contiguous(), weight.scale, weight.zero
        self.over = weight.over
        self.unit: int | None = None
        self.row_scale: Tensor | None = None
        if weight.spec.granularity == "block":
            self.row_scale = weight.scale.float()
        elif weight.spec.granularity in ("tensor", "channel") and self.element.bits == 8:
            self.row_scale = layouts.row_scales(weight)

    @property
    def groups(self) -> int:
        """Scales of a row, one for all of it included."""
        return self.shape[1] // (self.spec.group or self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything held."""
        held = (self.codes, self.scale, self.zero, self.row_scale, self.over)
        return sum(part.numel() * part.element_size() for part in held if part is not None)

    def arrange(self, unit: int | None) -> bool:
        """Puts 4-bit codes into units of ``unit``, or (None) back as they were stored; whether anything changed."""
        if unit == self.unit:
            return False
        weight = self.stored()
        self.codes, self.scale, self.zero, self.unit = weight.codes, weight.scale, weight.zero, None
        if unit is not None:
            shape = (self.shape[0], self.groups)
            self.codes = layouts.interleave_nibbles(weight, unit)
            self.scale = layouts.by_group(weight.scale.expand(shape))
            self.zero = None if weight.zero is None else layouts.by_group(weight.zero.expand(shape))
            self.unit = unit
        return True

    def per_row(self, of_groups: Tensor) -> Tensor:
        """Scales or zero points held here as ``[N, groups]``."""
        return of_groups.t() if self.unit is not None else of_groups.expand(self.shape[0], self.groups)

    def stored(self) -> QTensor:
        """The weight as it was given; new tensors where another order is held."""
        if self.unit is None:
            return QTensor(self.spec, self.shape, self.codes, self.scale, self.zero, self.over)
        codes = layouts.deinterleave_nibbles(self.codes, self.element, self.unit)
        scale, zero = (None if part is None else self._as_stored(part) for part in (self.scale, self.zero))
        assert scale is not None
        return QTensor(self.spec, self.shape, codes, scale, zero)

    def _as_stored(self, of_groups: Tensor) -> Tensor:
        shape = self.spec.scale_shape(*self.shape)
        rows = of_groups.t()
        return rows[: shape[0], :].reshape(shape).contiguous() if self.spec.granularity != "tensor" else rows[0, :1]
