"""The linears of experts for very many tokens, which lie sorted by expert (``triton/linear_experts.py``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isobit.kernels.gpu.configure import Call, configure
from isobit.kernels.gpu.held import Held
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.run import rounding_of, weight_arguments
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.rounded import Rounded


class SortedRun:
    """The experts of one role on such a row.

    Args:
        held: their weights.
        row: it.
        call: ``share`` 0 for inputs that lie sorted and results that are to lie by pairs; else the other way round.
        machine: what runs it.

    Attributes:
        rounding: of its inputs; None where they are taken as they are.
    """

    def __init__(self, held: Held, row: Variant, call: Call, machine: Machine) -> None:
        self.held, self.row, self.call, self.machine = held, row, call, machine
        self.rounding = rounding_of(held, row, machine)
        self.arguments = weight_arguments(held, row, call, machine)
        self.config = configure(row, call, machine)
        self.kernel = Kernel(row.entry, self.config, machine)

    def __call__(self, x: Tensor, scales: Tensor | None, places: tuple[Tensor, Tensor], pairs: int) -> Tensor:
        """Sorted inputs to results, half as wide behind gates: ``[places, N]``, or ``[pairs, N]``.

        Args:
            x: ``[places, K]``: what the kernel multiplies.
            scales: of what was rounded: of tokens, or, of inputs with scales of their own, ``[places]``.
            places: ``order`` and ``experts`` (``triton/experts.py``).
            pairs: of a token and an expert.
        """
        order, experts = places
        width = self.call.rows // (2 if self.call.after else 1)
        dtype = getattr(torch, self.call.out_dtype or self.call.dtype)
        y = torch.empty((len(order) if self.call.share else pairs, width), dtype=dtype, device=self.held.device)
        given: dict[str, Any] = {**self.arguments, "x": x, "y": y, "experts": experts, "order": order}
        if scales is not None:
            given["token_scale"] = scales
        tiles = -(-self.call.rows // int(self.config.constexprs["BLOCK_N"] or 1)) * len(experts)
        self.kernel(
            (min(self.machine.multiprocessors, tiles),), **given, M=len(experts), PAIRS=pairs, N=self.call.rows,
            K=self.held.k,
        )  # fmt: skip
        return y

    def operand(self, x: Tensor | Rounded) -> tuple[Tensor, Tensor | None]:
        """What is multiplied, as rows, and its scales."""
        if not isinstance(x, Rounded):
            assert self.rounding is None
            return x, None
        assert self.rounding is not None
        x.require(self.rounding.key)
        return self.rounding.operand(x), x.scales
