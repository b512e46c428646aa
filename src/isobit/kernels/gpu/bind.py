"""Linears on a GPU: binds a weight once, then picks the row for the number of tokens at hand."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels.checked import check_linear
from isobit.kernels.gpu import alike_tiles, card, selection
from isobit.kernels.gpu.configure import Call, workspace_needs
from isobit.kernels.gpu.fits import Matrix, narrow_block
from isobit.kernels.gpu.held import Held
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Preparing
from isobit.kernels.gpu.run import Float32Product, LibraryProduct, Run
from isobit.kernels.gpu.tiles import FEW
from isobit.kernels.gpu.variant import FLOATS, HALVES, Variant
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.rounded import Rounded
from isobit.targets.spec import Target

_DTYPES = tuple(getattr(torch, name) for name in FLOATS)


def bind(
    weight: QTensor | Tensor,
    activations: ActSpec | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    *,
    keep_values: bool = False,
    target: Target | None = None,
    machine: Machine | None = None,
    workspace: Workspace | None = None,
    out_dtype: torch.dtype | None = None,
    alike: bool = False,
) -> BoundLinear:
    """A function ``[..., K] -> [..., N]`` for one weight on a GPU.

    Args:
        weight: ``[N, K]``, on the device.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` for static activations.
        bias: ``[N]``.
        keep_values: no effect: codes are decoded in registers.
        target: whose lowering runs, of this card's generation or an older one; None for this card's own.
        machine: the machine instead, where it is known already.
        workspace: shared with the other linears of a model; one of its own if None.
        out_dtype: dtype of the result; None for that of the input.
        alike: a token gives the same bits beside any number of others: one row, whose sums have one order, runs all.

    Raises:
        Unsupported: no kernel takes these formats on the target; has every reason.
        FormatError: shapes, dtypes or devices do not fit together.
    """
    spec = weight.spec if isinstance(weight, QTensor) else None
    check_linear(
        weight, activations, input_scale, bias, as_stored=activations is not None and activations.scale is not None
    )
    reason = selection.unsupported(spec, activations) or narrow_block(spec, int(weight.shape[1]))
    if reason:
        raise Unsupported(f"a linear with {spec or 'plain'} weights and {activations or 'plain'} activations", [reason])
    machine = machine or card.machine(target)
    held = Held(weight, activations, input_scale, bias, imagined=machine.recorder is not None)
    return BoundLinear(held, machine, workspace or Workspace(held.device), out_dtype, alike=alike)


class BoundLinear:
    """One weight in the order that the kernels that run it read; it owns the weight, and holds it once.

    Attributes:
        held: the weight.
        machine: what it runs on.
        workspace: memory that it writes to between its launches.
    """

    def __init__(
        self,
        held: Held,
        machine: Machine,
        workspace: Workspace,
        out_dtype: torch.dtype | None,
        *,
        alike: bool = False,
    ) -> None:
        self.held, self.machine, self.workspace, self.out_dtype = held, machine, workspace, out_dtype
        self.alike = alike and not _exact(held.matrix(), held.activations, machine.target)
        self._runs: dict[tuple[int, torch.dtype], Float32Product | LibraryProduct | Run] = {}
        self._classes: dict[int, int] = {}  # of numbers of tokens: every call asks, and finding one goes over all rows
        self._arrange_for_16_bits()
        workspace.reserve(*_needs(held.matrix(), held.activations, machine, self.alike))

    @property
    def weight(self) -> QTensor | Tensor:
        """The weight as it was given; made anew where the kernels hold it in another order."""
        return self.held.weight

    def _arrange_for_16_bits(self) -> None:
        """Puts packed codes in the order for 16-bit activations now, so that memory is what it will be."""
        operands = self.held.operands
        if operands is None or operands.element.bits == 8:
            return
        row, _ = self._pick("float16", FEW if self.alike else 1)
        if row is not None:
            operands.arrange(self.held.unit(row, self.machine.target))

    def rounding(self, tokens: int, dtype: torch.dtype) -> Preparing | None:
        """What prepares so many tokens for it; None where its kernel takes them as they are."""
        return self._run(tokens, dtype).rounding

    def __call__(self, x: Tensor | Rounded, residual: Tensor | None = None) -> Tensor:
        """``[..., K]``, or what :meth:`rounding` made of it, to ``[..., N]``.

        Args:
            x: it.
            residual: ``[..., N]`` in the dtype of the result, which is added to it; the bits are those of adding it
                to what a call without it gives.
        """
        given, run = self._given(x)
        y = torch.empty((*x.shape[:-1], self.held.n), dtype=self.out_dtype or x.dtype, device=self.held.device)
        if residual is not None and (residual.shape != y.shape or residual.dtype != y.dtype):
            raise FormatError(f"a residual of {residual.dtype} {list(residual.shape)} for {y.dtype} {list(y.shape)}")
        if run is None:
            return y
        rows = y.view(-1, self.held.n)
        if residual is None:
            run(given, rows)
        elif isinstance(run, Run) and run.finishes("add"):
            run(given, rows, "add", residual.contiguous().view(rows.shape))
        else:
            run(given, rows)
            torch.add(residual, y, out=y)
        return y

    def finishes(self, tokens: int, dtype: torch.dtype, after: str) -> bool:
        """Whether the kernel for so many tokens does something with its results (``configure.Call``) by itself."""
        return self._run(tokens, dtype).finishes(after)

    def gated(self, x: Tensor | Rounded, activation: str) -> Tensor | None:
        """``activation(gate) * value`` of a weight whose rows are gates and values by turns: ``[..., N / 2]``.

        The bits are those of gating what a call gives. None where the kernel for so many tokens does not do that.
        """
        given, run = self._given(x)
        if run is None or not isinstance(run, Run) or not run.finishes(activation):
            return None
        y = torch.empty((*x.shape[:-1], self.held.n // 2), dtype=self.out_dtype or x.dtype, device=self.held.device)
        run(given, y.view(-1, self.held.n // 2), activation)
        return y

    def _given(self, x: Tensor | Rounded) -> tuple[Tensor | Rounded, Float32Product | LibraryProduct | Run | None]:
        """Activations as rows, and what runs so many; None where there are none."""
        k = self.held.k
        if isinstance(x, Rounded):
            run = self._run(x.tokens, x.dtype) if x.tokens else None
            if run is not None:
                x.require(None if run.rounding is None else run.rounding.key)
            return x, run
        if x.dtype not in _DTYPES or x.shape[-1] != k:
            raise FormatError(
                f"a linear of {k} inputs takes float activations [..., {k}], not {x.dtype} {list(x.shape)}"
            )
        tokens = x.numel() // k
        return x.reshape(tokens, k).contiguous(), self._run(tokens, x.dtype) if tokens else None

    def on(self, machine: Machine) -> BoundLinear:
        """The same weight for another machine of the same target: what runs is decided anew at the next call."""
        assert machine.target == self.machine.target, "another target may want the weight in another order"
        self.machine = machine
        self._runs.clear()
        self._classes.clear()
        return self

    def _run(self, tokens: int, dtype: torch.dtype) -> Float32Product | LibraryProduct | Run:
        if tokens not in self._classes:
            target = self.machine.target
            size = alike_tiles.size_class(tokens, target) if self.alike else selection.size_class(tokens)
            self._classes[tokens] = size
        key = (self._classes[tokens], dtype)
        if key not in self._runs:
            row, operands = self.variant(tokens, dtype), self.held.operands
            if operands is not None and operands.arrange(self.held.unit(row, self.machine.target)):
                self._runs.clear()  # they hold the other order, of which one is kept at a time
            call = Call(self.held.matrix(), _name(dtype), key[0], self._result(), alike=self.alike)
            self._runs[key] = self._made(row, call)
        return self._runs[key]

    def _made(self, row: Variant | None, call: Call) -> Float32Product | LibraryProduct | Run:
        if row is None:
            return Float32Product(self.held)
        if row.library:
            return LibraryProduct(self.held, row, call, self.machine)
        return Run(self.held, row, call, self.machine, self.workspace)

    def _result(self) -> str:
        return "" if self.out_dtype is None else _name(self.out_dtype)

    def variant(self, tokens: int, dtype: torch.dtype) -> Variant | None:
        """The kernel for that many tokens; None for torch's own float32 product.

        Raises:
            Unsupported: there is none.
        """
        spec = self.held.spec
        if spec is None and dtype == torch.float32:
            if self.alike:
                raise Unsupported(
                    f"a batch-invariant linear with plain weights in float32 on {self.machine.target.name}",
                    ["PyTorch runs it, whose sums depend on how many tokens come at once"],
                    "compute in bfloat16 or float16",
                )
            return None
        row, refusals = self._pick(_name(dtype), FEW if self.alike else tokens)
        if row is not None:
            return row
        what = f"a linear with {spec or 'plain'} weights and {self.held.activations or 'plain'} activations"
        reasons = [f"{other.name}: {reason}" for other, reason in refusals]
        raise Unsupported(f"{what} in {_name(dtype)} on {self.machine.target.name}", reasons)

    def _pick(self, dtype: str, tokens: int) -> tuple[Variant | None, tuple[tuple[Variant, str], ...]]:
        formats = self.held.spec, self.held.activations
        row, refusals = selection.pick(*formats, dtype, tokens, self.machine.target, self.held.matrix())
        if row is None or row.widen is None or not row.layout.units:
            return row, refusals
        return selection.pick(*formats, dtype, tokens, self.machine.target, self.held.matrix(folding=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=4096)
def _exact(matrix: Matrix, activations: ActSpec | None, target: Target) -> bool:
    """Whether any number of tokens has the same bits whatever runs it: no kernel for them rounds its sums."""
    asked = ((dtype, tokens) for dtype in FLOATS for tokens in selection.sizes())
    rows = (selection.pick(matrix.spec, activations, dtype, tokens, target, matrix)[0] for dtype, tokens in asked)
    return activations is not None and all(row is not None and alike_tiles.exact(row) for row in rows)


@lru_cache(maxsize=4096)
def _needs(matrix: Matrix, activations: ActSpec | None, machine: Machine, alike: bool = False) -> tuple[int, int]:
    """The most bytes of workspace and counters that a weight's kernels ask for at once, for 16-bit activations."""
    needs = [(0, 0)]
    for dtype in HALVES:
        for tokens in alike_tiles.sizes(machine.target) if alike else selection.classes():
            asked = FEW if alike else tokens
            row, _ = selection.pick(matrix.spec, activations, dtype, asked, machine.target, matrix)
            if row is not None:
                needs.append(workspace_needs(row, Call(matrix, dtype, tokens, alike=alike), machine))
    return max(nbytes for nbytes, _ in needs), max(counters for _, counters in needs)
