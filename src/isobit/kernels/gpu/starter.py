"""What starts the kernels of layers on one machine: compiled once for each shape, and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.layer_tiles import POINTERS
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.tiles import Config
from isobit.kernels.gpu.workspace import Workspace
from isobit.targets.spec import Target

_MODULES = "isobit.kernels.gpu.triton"


class Starter:
    """Kernels by their function and shape.

    Args:
        machine: what runs them.
        workspace: shared with the model's linears.
        alike: a token has the same bits beside any number of others; see :class:`isobit.kernels.gpu.layer.GpuLayer`.
    """

    def __init__(self, machine: Machine, workspace: Workspace, *, alike: bool = False) -> None:
        self.machine, self.workspace, self.alike = machine, workspace, alike
        self._kernels: dict[tuple[str, Any], Kernel] = {}
        self._nothing: dict[torch.dtype, Tensor] = {}  # what an argument is that a kernel does not read

    def kernel(self, entry: str, configure: Callable[[Any, Target], Config], shape: Any) -> Kernel:
        """The kernel ``module:function`` of ``triton/`` as ``configure`` has it for a shape."""
        key = (entry, shape)
        if key not in self._kernels:
            self._kernels[key] = Kernel(f"{_MODULES}.{entry}", configure(shape, self.machine.target), self.machine)
        return self._kernels[key]

    def unused(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What stands for a tensor that a kernel does not read."""
        if dtype not in self._nothing:
            self._nothing[dtype] = torch.zeros(4, dtype=dtype, device=device)
        return self._nothing[dtype]


def rows_of(x: Tensor) -> Tensor:
    """``[..., K]`` as rows with one stride; a copy where they have none."""
    k = x.shape[-1]
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    return x.reshape(-1, k) if x.is_contiguous() else x.contiguous().view(-1, k)


def name_of(dtype: torch.dtype) -> str:
    """A dtype of activations as torch calls it.

    Raises:
        FormatError: no kernel computes in it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in POINTERS:
        raise FormatError(f"layers on GPUs compute in {', '.join(POINTERS)}, not in {name}")
    return name
