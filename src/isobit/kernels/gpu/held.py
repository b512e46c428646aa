"""A weight on a GPU as its kernels hold it: what never changes between calls."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels.gpu import fits, layouts, library
from isobit.kernels.gpu.operands import Operands
from isobit.kernels.gpu.variant import Variant
from isobit.targets.spec import Target


def _narrow_scales(weight: QTensor) -> QTensor:
    """With scales in bfloat16 where those of groups are that, as the powers of two of MX are: half the bytes."""
    if weight.spec.granularity != "group" or weight.element.kind != "float" or weight.scale.dtype != torch.float32:
        return weight
    narrow = weight.scale.to(torch.bfloat16)
    return replace(weight, scale=narrow) if torch.equal(narrow.float(), weight.scale) else weight


class Held:
    """One weight, held once, with its bias and with how its inputs are rounded.

    Attributes:
        n, k: outputs and inputs.
        spec: how it is quantized; None when it is not.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` of static activations, else None.
        plain: the weight, if it is not quantized, else None.
        operands: the weight, if it is, else None.
        bias: float32 ``[N]``, or None.
        imagined: whether kernels are recorded for a card that is not here.
    """

    def __init__(
        self, weight: QTensor | Tensor, activations: ActSpec | None, input_scale: Tensor | None, bias: Tensor | None,
        *, imagined: bool = False,
    ) -> None:  # fmt: skip
        weight = _narrow_scales(weight) if isinstance(weight, QTensor) else weight
        self.spec = weight.spec if isinstance(weight, QTensor) else None
        self.n, self.k = int(weight.shape[0]), int(weight.shape[1])
        self.activations = activations
        self.input_scale = None if input_scale is None else input_scale.float().reshape(1)
        bias = None if bias is None else bias.float()
        self.bias = layouts.poisoned_bias(weight, bias) if isinstance(weight, QTensor) else bias
        self.plain = weight if isinstance(weight, Tensor) else None
        self.operands = Operands(weight) if isinstance(weight, QTensor) else None
        self.device = weight.codes.device if isinstance(weight, QTensor) else weight.device
        self.imagined = imagined
        self._folding: tuple[Tensor | None] | None = None
        self._above: Tensor | None = None
        scale = str(weight.scale.dtype).removeprefix("torch.") if isinstance(weight, QTensor) else "float32"
        self._matrix = fits.Matrix(
            self.n, self.k, self.spec, bias=self.bias is not None, library=library.problems(self.device),
            scale=scale, positive=not isinstance(weight, QTensor) or layouts.positive(weight),
        )  # fmt: skip

    @property
    def weight(self) -> QTensor | Tensor:
        """The weight as it was given; made anew where the kernels hold it in another order."""
        if self.operands is not None:
            return self.operands.stored()
        assert self.plain is not None
        return self.plain

    def matrix(self, *, folding: bool = False) -> fits.Matrix:
        """What kernels ask of it; whether its scales fold is found out only if that is asked for: it takes a pass."""
        foldable = self.folding() is not None if folding else True
        return replace(self._matrix, aligned=self._aligned(), foldable=foldable)

    def _aligned(self) -> bool:
        """Whether the weight begins at a multiple of 16 bytes, as in a card's memory, even if that is imagined."""
        held = self.plain if self.operands is None else self.operands.codes
        assert held is not None
        return self.imagined or held.storage_offset() * held.element_size() % 16 == 0

    def folding(self) -> Tensor | None:
        """Powers of two per row under which 4-bit codes times scales are float16 numbers; None if there are none."""
        if self._folding is None:
            assert self.operands is not None
            self._folding = (layouts.folding_scales(self.operands.per_row(self.operands.scale)),)
        return self._folding[0]

    def above(self) -> Tensor:
        """float32 ``[N]``: the numbers above scales that are codes, those of the weight and of its inputs in one."""
        if self._above is None:
            assert self.operands is not None
            self._above = layouts.above(self.operands.stored(), self.activations, self.input_scale)
        return self._above

    def unit(self, row: Variant | None, target: Target) -> int | None:
        """Codes of one step of a kernel of nibbles; None where none fits, and for all other kernels."""
        return None if row is None else fits.unit(row, self._matrix, target)
