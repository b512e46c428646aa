"""What runs before a product of very many tokens (widen.py), bound to a weight: results lie in shared workspaces."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.rows import Variant, variant
from isobit.kernels.gpu.tiles import Config, whole_token

if TYPE_CHECKING:
    from isobit.kernels.gpu.bind import BoundLinear

_DTYPES = {"*fp16": torch.float16, "*bf16": torch.bfloat16}
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
_ROOM: dict[tuple[torch.device, int, torch.dtype], Tensor] = {}


def workspace(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[n, k]``, the same memory for all launches of a stream, which run one after another."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    room = _ROOM.get((device, stream, dtype))
    if room is None or room.numel() < n * k:
        _ROOM.pop((device, stream, dtype), None)
        del room  # before the larger one is asked for
        room = _ROOM[device, stream, dtype] = torch.empty(n * k, dtype=dtype, device=device)
    return room[: n * k].view(n, k)


class Widened:
    """The weight of a linear in the dtype of the product, made anew at every call."""

    def __init__(self, linear: BoundLinear, row: Variant) -> None:
        self.linear, self.dtype = linear, _DTYPES[row.operand]
        widen = variant(row.widen)
        config = widen.config(linear.target)
        held = linear.operands
        assert held is not None
        if row.granularity == "group":
            config = config.with_constants(GROUP=linear.group, UNIT=linear.unit(row))
            config = _typed(config, scale=_TYPES[held.scale.dtype])
            per_program = int(config.constexprs["UNIT"] or 1) * int(config.constexprs["UNITS"] or 1)
            self.arguments: dict[str, Any] = {
                "words": held.codes, "scale": held.scale, "power": linear.folding(), "N": linear.n, "K": linear.k
            }  # fmt: skip
        else:
            per_program = int(config.constexprs["BLOCK"] or 1)
            self.arguments = {"codes": held.codes, "K": linear.k}
        self.grid = (linear.n, -(-linear.k // per_program))
        self.kernel = Kernel(widen.entry, config, linear.target)

    def __call__(self) -> Tensor:
        """``[N, K]``."""
        values = workspace(self.linear.n, self.linear.k, self.dtype, self.linear.device)
        self.kernel(self.grid, values=values, **self.arguments)
        return values


class Halved:
    """bfloat16 activations as float16 with a power of two per token."""

    def __init__(self, linear: BoundLinear, row: Variant) -> None:
        narrow = variant(row.narrow)
        block, once, warps = whole_token(linear.k, linear.target)
        config = replace(narrow.config(linear.target).with_constants(BLOCK_K=block, ONCE=once), num_warps=warps)
        self.kernel = Kernel(narrow.entry, config, linear.target)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[M, K]`` to float16 ``[M, K]`` and float32 ``[M]``."""
        tokens, k = x.shape
        values = torch.empty(x.shape, dtype=torch.float16, device=x.device)
        scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
        self.kernel((tokens,), x=x, values=values, scales=scales, K=k)
        return values, scales


def _typed(config: Config, **types: str) -> Config:
    signature = {name: types.get(name, kind) for name, kind in config.signature.items()}
    return Config(signature, config.constexprs, config.num_warps, config.num_stages, config.divisible)
