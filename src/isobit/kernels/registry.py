"""Which kernel runs a linear: rows that say what they take, and one choice that says why the others do not.

A kernel is a row here and a file beside this one; the file is imported when a row of it is first bound. Environment
variable ``ISOBIT_KERNEL`` forces a row by name, so that every path can be run on any machine that can run it at all.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from isobit.errors import Unsupported, UsageError
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels import selection

# Says why a row cannot run (weights, activations, device), or None when it can.
Accepts = Callable[[WeightSpec | None, ActSpec | None, str], str | None]


@dataclass(frozen=True)
class LinearKernel:
    """One way to run a linear.

    Attributes:
        name: what doctor, plans and ISOBIT_KERNEL call it.
        binder: ``module:function``; called with (weight, activations, input_scale, bias, keep_values=...) it returns
            the function that maps ``[..., K]`` to ``[..., N]``.
        accepts: why it cannot run something, or None.
        priority: the highest that accepts is chosen.
    """

    name: str
    binder: str
    accepts: Accepts
    priority: int

    def bind(self, *args: Any, **options: Any) -> Callable[..., Any]:
        """Binds weights to the kernel; see ``binder``."""
        module, _, function = self.binder.partition(":")
        return getattr(importlib.import_module(module), function)(*args, **options)  # type: ignore[no-any-return]


def _reference_accepts(weights: WeightSpec | None, activations: ActSpec | None, device: str) -> str | None:
    if device != "cpu":
        return f"the reference kernel runs on the CPU, not on {device}"
    if weights is None and activations is not None:
        return "activations are rounded only together with weights"
    if weights is not None and activations is not None and not weights.symmetric:
        return "weights with zero points take activations as they are"
    return None


def _triton_accepts(weights: WeightSpec | None, activations: ActSpec | None, device: str) -> str | None:
    if device != "cuda":
        return f"the Triton kernels run on GPUs, not on {device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'isobit[triton]'"
    return selection.unsupported(weights, activations)


LINEAR_KERNELS: tuple[LinearKernel, ...] = (
    LinearKernel("triton", "isobit.kernels.triton.bind:bind", _triton_accepts, priority=100),
    LinearKernel("reference", "isobit.kernels.reference:bind", _reference_accepts, priority=0),
)


def choose(
    weights: WeightSpec | None,
    activations: ActSpec | None,
    device: str,
    *,
    kernels: tuple[LinearKernel, ...] = LINEAR_KERNELS,
) -> LinearKernel:
    """The kernel for a linear.

    Args:
        weights: how the weight is stored; None for a plain floating-point tensor.
        activations: how inputs are rounded; None when they are not.
        device: where it runs: ``cpu`` or ``cuda``.
        kernels: the rows to choose from.

    Raises:
        Unsupported: no row accepts; has the reason of each.
        UsageError: ISOBIT_KERNEL names no row.
    """
    forced = os.environ.get("ISOBIT_KERNEL")
    if forced:
        if forced not in {row.name for row in kernels}:
            raise UsageError(
                f"ISOBIT_KERNEL={forced}: there is no such kernel; known: {', '.join(r.name for r in kernels)}"
            )
        kernels = tuple(row for row in kernels if row.name == forced)
    reasons = []
    for row in sorted(kernels, key=lambda row: -row.priority):
        reason = row.accepts(weights, activations, device)
        if reason is None:
            return row
        reasons.append(f"{row.name}: {reason}")
    raise Unsupported(f"a linear with {weights or 'plain'} weights and {activations or 'plain'} activations", reasons)
