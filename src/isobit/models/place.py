"""Where a model lives: the device of its kernels, where its tensors are, and whose lowering runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isobit.errors import Unsupported, UsageError
from isobit.formats.qtensor import QTensor
from isobit.kernels.gpu import card
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.workspace import Workspace
from isobit.legalize.kernels import activation_dtype
from isobit.models.staging import bring
from isobit.targets.spec import Target
from isobit.targets.table import target as lookup

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Place:
    """Where a model lives.

    Attributes:
        device: whose kernels run it: ``cpu`` or ``cuda``.
        tensors: where its tensors are.
        machine: the GPU and whose lowering runs on it; None on a CPU.
        workspace: memory that the kernels of one model share; None on a CPU.
        alike: whether a token's numbers are the same bits whatever comes beside it (batch-invariant): kernels that
            cannot promise that are refused.
    """

    device: str = "cpu"
    tensors: torch.device = torch.device("cpu")
    machine: Machine | None = None
    workspace: Workspace | None = None
    alike: bool = False

    @property
    def target(self) -> Target | None:
        """Whose lowering runs on a GPU; None on a CPU."""
        return None if self.machine is None else self.machine.target

    @property
    def options(self) -> dict[str, Any]:
        """What the binders of this device take besides."""
        found: dict[str, Any] = {"alike": True} if self.alike else {}
        return found if self.machine is None else {**found, "machine": self.machine, "workspace": self.workspace}

    def tensor(self, value: Tensor) -> Tensor:
        """A tensor here."""
        return bring(value, self.tensors)

    def weight(self, value: QTensor | Tensor) -> QTensor | Tensor:
        """A weight here."""
        if isinstance(value, Tensor):
            return self.tensor(value)
        zero, over = (None if part is None else self.tensor(part) for part in (value.zero, value.over))
        return replace(value, codes=self.tensor(value.codes), scale=self.tensor(value.scale), zero=zero, over=over)

    def default_dtype(self, stored: str) -> str:
        """What activations are computed in if nobody says otherwise: float32 on a CPU, else what weights are stored in.

        Args:
            stored: the dtype in config.json.
        """
        if self.target is None:
            return "float32"
        return activation_dtype(self.target, stored if stored in ("bfloat16", "float16") else "bfloat16")


def place(device: str = "cpu", lowering: str | None = None, *, alike: bool = False) -> Place:
    """The place called ``device``.

    Triton's interpreter (TRITON_INTERPRET=1) runs what is written for ``cuda`` on the CPU: a lowering must be named.

    Args:
        device: ``cpu`` or ``cuda``.
        lowering: a target whose lowering is to run on this machine's GPU, which may be of a newer generation; None for
            the GPU's own.
        alike: see :class:`Place`.

    Raises:
        UsageError: there is no such device, or a lowering is named for a CPU.
        Unsupported: there is no GPU that PyTorch can use, or it is none that isobit knows.
    """
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}; models run on {', '.join(DEVICES)}")
    if device == "cpu":
        if lowering is not None:
            raise UsageError(f"the lowering of {lowering} runs on a GPU: add --device cuda")
        return Place(alike=alike)
    if lowering is not None and lookup(lowering).backend is None:
        raise UsageError(f"{lowering} is no GPU that kernels are compiled for")
    if os.environ.get("TRITON_INTERPRET") == "1":
        if lowering is None:
            raise UsageError("under Triton's interpreter there is no GPU: name a lowering")
        return _on(device, torch.device("cpu"), lookup(lowering), alike)
    if not torch.cuda.is_available():
        why = "PyTorch is built for CPUs only" if torch.version.cuda is None else "PyTorch sees none"
        raise Unsupported(
            "running on a GPU",
            [why],
            "run on the CPU (--device cpu); `isobit doctor` says what is here and what is missing",
        )
    return _on(device, torch.device("cuda"), lookup(lowering) if lowering else None, alike)


def _on(device: str, tensors: torch.device, target: Target | None, alike: bool) -> Place:
    return Place(device, tensors, card.machine(target), Workspace(tensors), alike)
