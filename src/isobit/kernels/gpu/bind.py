"""Linears on a GPU: binds a weight once, then picks the variant for the number of tokens at hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels.checked import check_linear
from isobit.kernels.gpu import fits, layouts, library, selection
from isobit.kernels.gpu.operands import Operands
from isobit.kernels.gpu.packs import record
from isobit.kernels.gpu.rows import Variant
from isobit.kernels.gpu.run import Run
from isobit.targets.spec import Target
from isobit.targets.table import target as lookup

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def bind(
    weight: QTensor | Tensor,
    activations: ActSpec | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    *,
    keep_values: bool = False,
    target: Target | None = None,
    out_dtype: torch.dtype | None = None,
) -> BoundLinear:
    """A function ``[..., K] -> [..., N]`` for one weight on a GPU.

    Args:
        weight: ``[N, K]``, on the device.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` for static activations.
        bias: ``[N]``.
        keep_values: no effect: codes are decoded in registers.
        target: whose lowering runs, of this card's generation or an older one; None for this card's own.
        out_dtype: dtype of the result; None for that of the input.

    Raises:
        Unsupported: no kernel takes these formats on the target; has every reason.
        FormatError: shapes, dtypes or devices do not fit together.
    """
    check_linear(weight, activations, input_scale, bias)
    spec = weight.spec if isinstance(weight, QTensor) else None
    reason = selection.unsupported(spec, activations) or fits.narrow_block(spec, int(weight.shape[1]))
    if reason:
        raise Unsupported(f"a linear with {spec or 'plain'} weights and {activations or 'plain'} activations", [reason])
    return BoundLinear(weight, activations, input_scale, bias, target or here(), out_dtype)


def here() -> Target:
    """The target of the current device.

    Raises:
        Unsupported: it is no target that is known.
    """
    if torch.version.hip is not None:
        return lookup(torch.cuda.get_device_properties().gcnArchName.partition(":")[0])
    major, minor = torch.cuda.get_device_capability()
    return lookup(f"sm_{major}{minor}")


class BoundLinear:
    """One weight in the order that the kernels that run it read; it owns the weight, and holds it once.

    Attributes:
        plain: the weight, if it is not quantized, else None.
        operands: the weight, if it is, else None.
        bias: float32 ``[N]``, or None.
    """

    def __init__(
        self, weight: QTensor | Tensor, activations: ActSpec | None, input_scale: Tensor | None, bias: Tensor | None,
        target: Target, out_dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.activations, self.target, self.out_dtype = activations, target, out_dtype
        self.spec = weight.spec if isinstance(weight, QTensor) else None
        self.n, self.k = int(weight.shape[0]), int(weight.shape[1])
        self.input_scale = None if input_scale is None else input_scale.float().reshape(1)
        self.bias = layouts.poisoned_bias(weight, bias) if isinstance(weight, QTensor) else bias
        self.plain = None if isinstance(weight, QTensor) else weight
        self.operands = Operands(weight) if isinstance(weight, QTensor) else None
        self.device = weight.codes.device if isinstance(weight, QTensor) else weight.device
        self._folding: tuple[Tensor | None] | None = None
        self._runs: dict[tuple[int, torch.dtype], Run] = {}
        self._matrix = fits.Matrix(
            self.n, self.k, self.spec, bias=self.bias is not None, library=library.problems(self.device)
        )  # fmt: skip
        self._arrange_for_16_bits()

    def _aligned(self) -> bool:
        """Whether the weight begins at a multiple of 16 bytes, as in a card's memory, for which a recorder stands."""
        held = self.plain if self.operands is None else self.operands.codes
        assert held is not None
        return record.active() is not None or held.storage_offset() * held.element_size() % 16 == 0

    @property
    def weight(self) -> QTensor | Tensor:
        """The weight as it was given; made anew where the kernels hold it in another order."""
        if self.operands is not None:
            return self.operands.stored()
        assert self.plain is not None
        return self.plain

    def _arrange_for_16_bits(self) -> None:
        """Puts packed codes in the order for 16-bit activations now, so that memory is what it will be."""
        if self.operands is None or self.operands.element.bits == 8:
            return
        row, _ = self._pick("float16", 1)
        if row is not None:
            self.operands.arrange(self.unit(row))

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        if x.dtype not in _DTYPES or x.shape[-1] != self.k:
            raise FormatError(
                f"a linear of {self.k} inputs takes float activations [..., {self.k}], not {x.dtype} {list(x.shape)}"
            )
        tokens = x.numel() // self.k
        y = torch.empty((*x.shape[:-1], self.n), dtype=self.out_dtype or x.dtype, device=x.device)
        if tokens:
            self._run(tokens, x.dtype)(x.reshape(tokens, self.k).contiguous(), y.view(tokens, self.n))
        return y

    def forget(self) -> None:
        """Decides anew, at the next call, which kernels run."""
        self._runs.clear()

    def _run(self, tokens: int, dtype: torch.dtype) -> Run:
        key = (selection.size_class(tokens), dtype)
        if key not in self._runs:
            row = self.variant(tokens, dtype)
            if self.operands is not None and row is not None and self.operands.arrange(self.unit(row)):
                self._runs.clear()  # they hold the other order, of which one is kept at a time
            self._runs[key] = Run(self, row, dtype, key[0])
        return self._runs[key]

    def variant(self, tokens: int, dtype: torch.dtype) -> Variant | None:
        """The kernel for that many tokens; None for torch's own float32 product.

        Raises:
            Unsupported: there is none.
        """
        if self.spec is None and dtype == torch.float32:
            return None
        name = str(dtype).removeprefix("torch.")
        row, refusals = self._pick(name, tokens)
        if row is not None:
            return row
        what = f"a linear with {self.spec or 'plain'} weights and {self.activations or 'plain'} activations"
        raise Unsupported(f"{what} in {name} on {self.target.name}", list(refusals))

    def _pick(self, dtype: str, tokens: int) -> tuple[Variant | None, tuple[str, ...]]:
        matrix = replace(self._matrix, aligned=self._aligned())
        if selection.is_large(tokens) and self.spec is not None and self.spec.element == "int4":
            matrix = replace(matrix, foldable=self.folding() is not None)
        return selection.pick(self.spec, self.activations, dtype, tokens, self.target, matrix)

    def folding(self) -> Tensor | None:
        """Powers of two per row under which codes times scales are float16 numbers; None if there are none."""
        if self._folding is None:
            assert self.operands is not None
            self._folding = (layouts.folding_scales(self.operands.per_row(self.operands.scale)),)
        return self._folding[0]

    @property
    def group(self) -> int:
        """Weights along K that share a scale; K itself for channels and tensors."""
        return self._matrix.group

    def unit(self, row: Variant) -> int | None:
        """Codes of one step of a kernel of nibbles; None where none fits, and for all other kernels."""
        return fits.unit(row, self._matrix, self.target)
