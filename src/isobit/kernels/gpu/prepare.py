"""What runs before a product of very many tokens (triton/widen.py), bound to a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isobit.kernels.gpu.configure import Call, configure
from isobit.kernels.gpu.held import Held
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.gpu.workspace import Workspace

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


class Narrowed:
    """bfloat16 activations as float16 with a power of two per token."""

    def __init__(self, row: Variant, call: Call, machine: Machine) -> None:
        self.kernel = Kernel(row.entry, configure(row, call, machine), machine)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[M, K]`` to float16 ``[M, K]`` and float32 ``[M]``."""
        tokens, k = x.shape
        values = torch.empty(x.shape, dtype=torch.float16, device=x.device)
        scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
        self.kernel((tokens,), x=x, values=values, scales=scales, K=k)
        return values, scales
