"""Linears on a GPU: binds a weight once, then picks the variant for the number of tokens at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels import layouts, selection
from isobit.kernels.lane_tiles import LANE_WORDS
from isobit.kernels.triton import library
from isobit.kernels.triton.operands import Operands
from isobit.kernels.triton.run import Run
from isobit.kernels.variants import Variant
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
    """
    spec = weight.spec if isinstance(weight, QTensor) else None
    reason = selection.unsupported(spec, activations)
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
        self._arrange_for_16_bits()

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
        rows, _ = selection.choose(self.spec, self.activations, "float16", 1, self.target)
        row = next((row for row in rows if self._misfit(row) is None), None)
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
        rows, reasons = selection.choose(self.spec, self.activations, name, tokens, self.target)
        refusals = list(reasons)
        for row in rows:
            refusal = self._misfit(row)
            if refusal is None:
                return row
            refusals.append(f"{row.name}: {refusal}")
        what = f"a linear with {self.spec or 'plain'} weights and {self.activations or 'plain'} activations"
        raise Unsupported(f"{what} in {name} on {self.target.name}", refusals)

    def _misfit(self, row: Variant) -> str | None:
        """Why the shape or the groups of this weight do not fit a variant."""
        if row.library:
            return library.misfit(row.entry, self.n, self.k, self.device, self.bias)
        if row.reads_units and not self.unit(row):
            return f"groups of {self.group} do not make up its units of K = {self.k}"
        if row.widen == "fold-int4" and self.folding() is None:
            return "codes times scales are not all float16 numbers"
        if row.name == "vector-int8-dp4a" and self.k % 4:
            return f"K = {self.k} is not a multiple of 4"
        if ":linear_lanes" in row.entry:
            return self._misfit_of_lanes(row)
        return None

    def _misfit_of_lanes(self, row: Variant) -> str | None:
        """Lanes read 16 bytes of a row each, and a scale is that of two of a lane's four sums."""
        step = 16 * row.per_word
        if self.k % step:
            return f"K = {self.k} is not a multiple of {step}"
        held = self.plain if self.operands is None else self.operands.codes
        assert held is not None
        if held.storage_offset() * held.element_size() % 16:
            return "the weights do not begin at a multiple of 16 bytes"
        if row.reads_units:
            width = row.per_word * LANE_WORDS
            if self.group % ((self.unit(row) or 1) // 2) or width % self.group:
                return f"groups of {self.group} are not parts of its steps of {width}, or of half a unit"
        return None

    def folding(self) -> Tensor | None:
        """Powers of two per row under which codes times scales are float16 numbers; None if there are none."""
        if self._folding is None:
            assert self.operands is not None
            self._folding = (layouts.folding_scales(self.operands.per_row(self.operands.scale)),)
        return self._folding[0]

    @property
    def group(self) -> int:
        """Weights along K that share a scale; K itself for channels and tensors."""
        return (self.spec.group if self.spec is not None else None) or self.k

    def unit(self, row: Variant) -> int | None:
        """Codes of one step of a kernel of nibbles; None where none fits, and for all other kernels."""
        if not row.reads_units:
            return None
        largest = row.unit(self.target)
        assert self.spec is not None
        for unit in (256, 128, 64):
            whole = (
                self.k % unit == 0 and self.group % (unit // 4) == 0 and (self.spec.symmetric or self.group % unit == 0)
            )
            if unit <= largest and whole:
                return unit
        return None
