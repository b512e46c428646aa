"""What runs before a product of very many tokens (triton/widen.py), bound to a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isobit.kernels.gpu.before_tiles import RANGE
from isobit.kernels.gpu.configure import Call, configure
from isobit.kernels.gpu.held import Held
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Preparing
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.rounded import Rounded, RoundingKey

_DTYPES = {"*fp16": torch.float16, "*bf16": torch.bfloat16}


class Widened:
    """The weight of a linear in the dtype of the product, made anew at every call, in the workspace."""

    def __init__(self, held: Held, row: Variant, dtype: str, call: Call, machine: Machine, room: Workspace) -> None:
        self.shape, self.dtype, self.room = (held.n, held.k), _DTYPES[dtype], room
        config = configure(row, call, machine)
        operands, constants = held.operands, config.constexprs
        assert operands is not None
        if row.layout.units:
            per_program = int(constants["UNIT"] or 1) * int(constants["UNITS"] or 1)
            self.arguments: dict[str, Any] = {
                "words": operands.codes, "scale": operands.scale, "power": held.folding(), "N": held.n, "K": held.k
            }  # fmt: skip
        else:
            per_program = int(constants["BLOCK"] or 1)
            self.arguments = {"codes": operands.codes, "K": held.k}
        self.grid = (held.n, -(-held.k // per_program))
        self.kernel = Kernel(row.entry, config, machine)

    def __call__(self) -> Tensor:
        """``[N, K]``; holds until the workspace is used again."""
        values = self.room.take(self.shape, self.dtype)
        self.kernel(self.grid, values=values, **self.arguments)
        return values


class Narrowing(Preparing):
    """bfloat16 activations ``[..., K]`` as float16 with a power of two per token."""

    def __init__(self, row: Variant, call: Call, machine: Machine) -> None:
        self.kernel = Kernel(row.entry, configure(row, call, machine), machine)
        self.machine, self.key = machine, RoundingKey(None, "float16", None)
        self.pointer, self.ending = "*fp16", RANGE

    def __call__(self, x: Tensor) -> Rounded:
        """float16 ``[..., K]`` and float32 ``[..., 1]``."""
        narrowed, _ = self.room(x)
        self.kernel(
            (narrowed.tokens,), x=x.contiguous(), values=narrowed.codes, scales=narrowed.scales, K=x.shape[-1]
        )  # fmt: skip
        return narrowed

    def room(self, x: Tensor) -> tuple[Rounded, dict[str, Any]]:
        """What activations like ``x`` are narrowed into, and what a kernel is told that does so."""
        values = torch.empty(x.shape, dtype=torch.float16, device=x.device)
        scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
        arguments = {"codes": values, "scales": scales, "static_scale": scales, "qmax": 0.0}
        return Rounded(values, scales, x.dtype, self.key), arguments
