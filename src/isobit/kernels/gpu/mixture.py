"""A mixture of experts on a GPU: the linears of all experts in one launch, on the rows that other linears have.

Tokens are grouped by expert on the device (``routing.py``), so that a step is recorded once for whatever is chosen:
grids follow from the numbers of tokens and experts, and programs that have nothing to do end at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.kernels.gpu import selection
from isobit.kernels.gpu.alternating import by_turns
from isobit.kernels.gpu.choosing import Placed
from isobit.kernels.gpu.configure import Call, configure, finishes
from isobit.kernels.gpu.expert_tiles import width_of
from isobit.kernels.gpu.held import Held
from isobit.kernels.gpu.launch import Kernel, interpreting
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.routing import GpuRouter
from isobit.kernels.gpu.run import rounding_of, weight_arguments
from isobit.kernels.gpu.sorted_experts import SortedRun
from isobit.kernels.gpu.sorted_tiles import SHORTEST, WIDTH
from isobit.kernels.gpu.tiles import FEW
from isobit.kernels.gpu.variant import HALVES, Variant, has_bf16
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.grouped import Grouped, Listener, Mixture, Routes
from isobit.kernels.rounded import Rounded
from isobit.targets.prefill import experts_at_once


def bind(
    mixture: Mixture, *, machine: Machine, workspace: Workspace, keep_values: bool = False, alike: bool = False
) -> GpuMixture:
    """The experts of a layer on a GPU.

    Args:
        mixture: they, on the device.
        machine: what runs them.
        workspace: shared with the model's linears.
        keep_values: no effect: codes are decoded in registers.
        alike: a token gives the same bits beside any number of others: everything runs in tiles of one width.

    Raises:
        Unsupported: no kernel takes these formats on the machine; has every reason.
    """
    return GpuMixture(mixture, machine, workspace, alike=alike)


class GpuMixture:
    """See ``bind``; a :class:`isobit.kernels.grouped.BoundMixture`."""

    def __init__(self, mixture: Mixture, machine: Machine, workspace: Workspace, *, alike: bool) -> None:
        self.gating, self.on_input, self.workspace = mixture.gating, mixture.on_input, workspace
        self._use(machine)
        # Gates and what they multiply are the rows of one weight by turns, or of two weights.
        joined = by_turns(mixture.gate, mixture.up)
        parts = (mixture.gate, mixture.up) if joined is None else (joined,)
        self.inner = tuple(_Experts(part, machine, alike) for part in parts)
        self.down = _Experts(mixture.down, machine, alike)

    def _use(self, machine: Machine) -> None:
        self.machine = machine
        self.router, self.layer = GpuRouter(machine, self.workspace), GpuLayer(machine, self.workspace)

    def on(self, machine: Machine) -> GpuMixture:
        """The same for another machine of the same target: what runs is decided anew at the next call."""
        assert machine.target == self.machine.target, "another target may want the weights in another order"
        self._use(machine)
        for part in (*self.inner, self.down):
            part.on(machine)
        return self

    def wants(self, x: Tensor, active: int) -> tuple[int, Rounding | None]:
        """What a router may do on the way for tokens that go to so many experts each: see ``GpuRouter.route``."""
        tokens, part = len(x), self.inner[0]
        if tokens > self._at_once(active):
            return 0, None
        share = 1 if self.on_input else active
        sorted_runs = self._sorted(tokens, tokens * active, share, x.dtype)
        if sorted_runs is not None:
            return WIDTH, None if self.on_input else sorted_runs[0].rounding
        run = part.run_for(tokens, tokens * active, share, x.dtype, self._after())
        return run.width, None if self.on_input else run.rounding

    def __call__(
        self, x: Tensor, routes: Routes, listener: Listener | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """``[T, K]`` to the same; see the protocol.

        Args:
            x, routes, listener: as there; a router's :class:`Placed` spares what it has done.
            residual: ``[T, K]``, to which the result is added.
        """
        active, width = routes.ids.shape[1], self.down.rows
        step = self._at_once(active)
        if len(x) <= step and len(x):
            return self._some(x, routes, listener, residual)
        parts = [
            self._some(
                x[at : at + step], Routes(routes.ids[at : at + step], routes.weights[at : at + step]), listener,
                None if residual is None else residual[at : at + step],
            )
            for at in range(0, len(x), step)
        ]  # fmt: skip
        return torch.cat(parts) if parts else x.new_empty(0, width)

    def _at_once(self, active: int) -> int:
        """Tokens whose results are held at once."""
        return experts_at_once(self.down.rows, active)

    def _after(self) -> str:
        """What the linears in front of down do with their results, where their kernel can."""
        joined = len(self.inner) == 1 and self.gating.limit is None
        return self.gating.activation if joined else ""

    def _some(self, x: Tensor, routes: Routes, listener: Listener | None, residual: Tensor | None) -> Tensor:
        ids, weights = routes.ids, routes.weights
        tokens, active = ids.shape
        share = 1 if self.on_input else active
        given: Tensor | Rounded = self.router.weigh(x, weights.contiguous()) if self.on_input else x.contiguous()
        places = _Places(self.router, ids.reshape(-1).contiguous(), self.down.experts, tokens, share)
        if isinstance(routes, Placed):
            places.made.update(routes.tiles)
            given = given if routes.rounded is None or self.on_input else routes.rounded
        runs = None if listener is not None else self._sorted(tokens, tokens * active, share, x.dtype)
        weighted = None if self.on_input else weights.contiguous()
        if runs is not None:
            results = self._in_order(given, places, *runs)
            return self.router.add(results.view(tokens, active, self.down.rows), weighted, x.dtype, residual)
        down = self.down.run(replace(places, share=1), x.dtype, "", "float32")
        inner = self._inner(given, places, x.dtype, None if listener is not None else down.rounding)
        if listener is not None and isinstance(inner, Tensor):
            listener(inner)
        results = down(self._rounded(inner, down.rounding), replace(places, share=1))
        return self.router.add(results.view(tokens, active, self.down.rows), weighted, x.dtype, residual)

    def _sorted(self, tokens: int, pairs: int, share: int, dtype: torch.dtype) -> tuple[SortedRun, SortedRun] | None:
        """What runs so many tokens sorted by expert, gates with what they multiply and down; None if not both do."""
        if len(self.inner) != 1 or min(part.held.k for part in (*self.inner, self.down)) < SHORTEST:
            return None
        inner = self.inner[0].sorted_run(tokens, pairs, share, dtype, self._after())
        down = self.down.sorted_run(tokens, pairs, 0, dtype, "", "float32")
        return None if inner is None or down is None else (inner, down)

    def _in_order(self, x: Tensor | Rounded, places: _Places, inner: SortedRun, down: SortedRun) -> Tensor:
        """Results of pairs, float32 ``[pairs, N]``, by tokens that are sorted on the way."""
        pairs, made = len(places.ids), places.tiles(WIDTH)
        rows, scales = inner.operand(self._rounded(x, inner.rounding))
        between: Tensor | Rounded = inner(self.router.take(rows, made[0], pairs), scales, made, pairs)
        if not inner.call.after:
            assert isinstance(between, Tensor)
            between = self._gated(between[:, ::2], between[:, 1::2], down.rounding)
        rows, scales = down.operand(self._rounded(between, down.rounding))
        return down(rows, scales, made, pairs)

    def _inner(
        self, x: Tensor | Rounded, places: _Places, dtype: torch.dtype, rounding: Rounding | None
    ) -> Tensor | Rounded:
        """What goes into down, ``[pairs, I]``; rounded if gates are a launch of their own and it is to be."""
        if len(self.inner) == 1:
            (both,) = self.inner
            run = both.run(places, dtype, self._after())
            result = run(self._rounded(x, run.rounding), places)
            if run.call.after:
                return result
            return self._gated(result[:, ::2], result[:, 1::2], rounding)
        gate, up = (part.run(places, dtype, "") for part in self.inner)
        rounded = self._rounded(x, gate.rounding)
        again = rounded if _alike(gate.rounding, up.rounding) else self._rounded(x, up.rounding)
        return self._gated(gate(rounded, places), up(again, places), rounding)

    def _gated(self, gate: Tensor, up: Tensor, rounding: Rounding | None) -> Tensor | Rounded:
        return self.layer.gate(gate, up, self.gating.activation, rounding, limit=self.gating.limit)

    def _rounded(self, x: Tensor | Rounded, rounding: Rounding | None) -> Tensor | Rounded:
        return x if rounding is None or isinstance(x, Rounded) else self.layer.round(x, rounding)


def _alike(one: Rounding | None, other: Rounding | None) -> bool:
    return one is not None and other is not None and one.key == other.key


@dataclass(frozen=True, eq=False)
class _Places:
    """The pairs of some tokens and their experts; put into tiles when a width of those is first asked for.

    Attributes:
        router: what does that.
        ids: int32 ``[pairs]``: the expert of each pair.
        experts, tokens: how many there are.
        share: pairs that have one input.
        made: by the width of tiles, what ``tiles`` gives.
    """

    router: GpuRouter
    ids: Tensor
    experts: int
    tokens: int
    share: int
    made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def tiles(self, width: int) -> tuple[Tensor, Tensor]:
        """``order`` and ``experts`` of ``GpuRouter.place``."""
        if width not in self.made:
            self.made[width] = self.router.place(self.ids, self.experts, width)
        return self.made[width]


class _Experts:
    """The weights of one role, of all experts, held once.

    Attributes:
        experts, rows: how many there are; outputs of one.
        held: the tall weight.
    """

    def __init__(self, part: Grouped, machine: Machine, alike: bool) -> None:
        self.experts, self.rows, self.machine, self.alike = part.experts, part.rows, machine, alike
        if part.input_scale is not None and len(part.input_scale) > 1:
            raise Unsupported("experts on a GPU", ["their static scales of activations differ"])
        if isinstance(part.weight, Tensor) and part.weight.dtype == torch.float32:
            raise Unsupported(
                "experts on a GPU", ["no kernel multiplies plain weights of experts in float32"],
                "compute in bfloat16 or float16",
            )  # fmt: skip
        reason = selection.unsupported(part.spec, part.activations)
        if reason is not None:
            raise Unsupported("experts on a GPU", [reason])
        self.held = _held(part, machine)
        self._runs: dict[tuple[int, int, torch.dtype, str, str], _Run] = {}
        self._sorted: dict[tuple[int, torch.dtype, str, str], SortedRun | None] = {}
        usual = [dtype for dtype in HALVES if dtype == "float16" or has_bf16(machine.target) is None]
        for dtype in usual:
            if not isinstance(part.weight, Tensor) or str(part.weight.dtype) == f"torch.{dtype}":
                self._row(dtype, 1)  # refuses now what would be refused later
        self._arrange(self._row("float16" if isinstance(part.weight, QTensor) else _name(part.weight.dtype), 1))

    def on(self, machine: Machine) -> None:
        """Another machine of the same target."""
        self.machine = machine
        self._runs.clear()
        self._sorted.clear()

    def sorted_run(
        self, tokens: int, pairs: int, share: int, dtype: torch.dtype, after: str, out_dtype: str = ""
    ) -> SortedRun | None:
        """What runs pairs of some tokens that lie sorted by expert; None where they are few, or no kernel does.

        Args:
            tokens, pairs: how many there are.
            share: pairs that have one input; 0 where inputs lie sorted.
            dtype: of the activations.
            after: gates, which are left out where the kernel does not have them.
            out_dtype: of the results; that of the activations if empty.
        """
        if self.alike or interpreting() or width_of(tokens, pairs, self.experts) != WIDTH:
            return None
        key = share, dtype, after, out_dtype
        if key not in self._sorted:
            self._sorted[key] = self._sorted_run(_name(dtype), share, after, out_dtype)
        return self._sorted[key]

    def _sorted_run(self, dtype: str, share: int, after: str, out_dtype: str) -> SortedRun | None:
        held, target = self.held, self.machine.target
        row, _ = selection.pick(
            held.spec, held.activations, dtype, WIDTH + 1, target, held.matrix(), experts=True
        )  # fmt: skip
        if row is None or not row.of_experts:
            return None
        after = after if finishes(row, after, target) else ""
        call = Call(held.matrix(), dtype, WIDTH + 1, out_dtype, after, self.experts, share)
        return SortedRun(held, row, call, self.machine)

    def run(self, places: _Places, dtype: torch.dtype, after: str, out_dtype: str = "") -> _Run:
        """What runs pairs of some tokens; without ``after`` where the kernel for them cannot do that."""
        return self.run_for(places.tokens, len(places.ids), places.share, dtype, after, out_dtype)

    def run_for(self, tokens: int, pairs: int, share: int, dtype: torch.dtype, after: str, out_dtype: str = "") -> _Run:
        """The same for pairs that are not chosen yet."""
        width = FEW if self.alike else width_of(tokens, pairs, self.experts)
        key = width, share, dtype, after, out_dtype
        if key not in self._runs:
            row = self._row(_name(dtype), width)
            if self._arrange(row):
                self._runs.clear()
            if after and row.family not in ("vector", "few"):
                after = ""
            call = Call(self.held.matrix(), _name(dtype), width, out_dtype, after, self.experts, share)
            self._runs[key] = _Run(self.held, row, call, self.machine, self.rows)
        return self._runs[key]

    def _row(self, dtype: str, width: int) -> Variant:
        held, target = self.held, self.machine.target
        row, refusals = selection.pick(
            held.spec, held.activations, dtype, width, target, held.matrix(), experts=True
        )  # fmt: skip
        if row is None:
            what = f"experts with {held.spec or 'plain'} weights and {held.activations or 'plain'} activations"
            reasons = [f"{other.name}: {reason}" for other, reason in refusals]
            raise Unsupported(f"{what} in {dtype} on {target.name}", reasons or ["there is no such kernel"])
        return row

    def _arrange(self, row: Variant) -> bool:
        operands = self.held.operands
        if operands is None or operands.element.bits == 8:
            return False
        return operands.arrange(self.held.unit(row, self.machine.target))


class _Run:
    """The experts of one role on one row."""

    def __init__(self, held: Held, row: Variant, call: Call, machine: Machine, rows: int) -> None:
        self.held, self.row, self.call, self.rows = held, row, call, rows
        self.rounding = rounding_of(held, row, machine)
        self.arguments = weight_arguments(held, row, call, machine)
        self.config = configure(row, call, machine)
        self.kernel = Kernel(row.entry, self.config, machine)

    @property
    def width(self) -> int:
        """Tokens of a tile; 0 where pairs come one by one."""
        return 0 if self.row.family == "vector" else int(self.config.constexprs["BLOCK_M"] or 1)

    def __call__(self, x: Tensor | Rounded, places: _Places) -> Tensor:
        """``[T, K]``, or ``[pairs, K]`` where pairs share nothing, to ``[pairs, N]``, or half of that behind gates."""
        gates = self.call.after != ""
        dtype = getattr(torch, self.call.out_dtype or self.call.dtype)
        y = torch.empty((len(places.ids), self.rows // (2 if gates else 1)), dtype=dtype, device=self.held.device)
        arguments: dict[str, Any] = {**self.arguments, "residual": y, "y": y}
        if isinstance(x, Rounded):
            assert self.rounding is not None
            x.require(self.rounding.key)
            arguments["token_scale"], x = x.scales, self.rounding.operand(x)
        if x.shape[0] * places.share != len(places.ids):
            raise FormatError(f"{len(x)} inputs are not those of {len(places.ids)} pairs, {places.share} of each")
        constants = self.config.constexprs
        if self.config.signature["x"] == "*i32":
            aligned = x.storage_offset() * x.element_size() % 16 == 0
            x = (x if aligned else x.clone()).view(torch.int32)
        arguments |= {"x": x, "N": self.rows, "K": self.held.k // self.row.layout.per_word}
        rows = -(-self.rows // int(constants["BLOCK_N"] or 1))
        if self.row.family == "vector":
            self.kernel((rows, len(places.ids)), **(arguments | {"experts": places.ids}))
            return y
        order, experts = places.tiles(self.width)
        given = {"experts": experts, "order": order, "M": len(order)}
        self.kernel((rows * len(experts),), **(arguments | given))
        return y


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _held(part: Grouped, machine: Machine) -> Held:
    """The tall weight; what is added to each expert's results lies without the rows between experts."""
    bias = None
    if part.bias is not None:
        bias = torch.zeros(part.experts, part.stride, device=part.bias.device)
        bias[:, : part.rows] = part.bias
        bias = bias.flatten()
    held = Held(part.weight, part.activations, part.input_scale, bias, imagined=machine.recorder is not None)
    if held.bias is not None:
        held.bias = held.bias.view(part.experts, part.stride)[:, : part.rows].flatten()
    return held
