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
from functools import partial
from typing import Any

from isobit.errors import Unsupported, UsageError
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels import held
from isobit.kernels.cpu import formats as cpu_formats
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.gpu import selection

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
        as_stored: whether it is asked for few-bit scales as they are, before what ``held`` says.
        gpu: whether it is given what ``held.on_gpu`` says, and not what CPUs are given.
    """

    name: str
    binder: str
    accepts: Accepts
    priority: int
    as_stored: bool = False
    gpu: bool = False

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


def _cpu_accepts(weights: WeightSpec | None, activations: ActSpec | None, device: str) -> str | None:
    if device != "cpu":
        return f"the CPU kernels do not run on {device}"
    return cpu_formats.unsupported(weights, activations) or cpu_library_problem()


def cpu_library_problem() -> str | None:
    """Why the library of the CPU kernels cannot be used and how to mend that, or None."""
    return cpu_library.problem()


LINEAR_KERNELS: tuple[LinearKernel, ...] = (
    LinearKernel("triton", "isobit.kernels.gpu.bind:bind", _triton_accepts, priority=100, as_stored=True, gpu=True),
    LinearKernel("cpu", "isobit.kernels.cpu.linear:bind", _cpu_accepts, priority=50, as_stored=True),
    LinearKernel("reference", "isobit.kernels.reference:bind", _reference_accepts, priority=0, as_stored=True),
)


@dataclass(frozen=True)
class Bound:
    """A weight bound to a kernel.

    Attributes:
        kernel: the row that runs it.
        run: ``[..., K]`` to ``[..., N]``.
        reasons: why each row of a higher priority does not.
    """

    kernel: LinearKernel
    run: Callable[..., Any]
    reasons: tuple[str, ...]


def bind(
    weight: Any,
    activations: ActSpec | None,
    input_scale: Any,
    bias: Any,
    *,
    device: str,
    keep_values: bool = False,
    kernels: tuple[LinearKernel, ...] | None = None,
    **options: Any,
) -> Bound:
    """Binds a weight to the first row that takes it: formats decide, and then the codes of the weight at hand.

    Args:
        weight: QTensor or tensor ``[N, K]``.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` for static activations.
        bias: ``[N]``, or None.
        device: ``cpu`` or ``cuda``.
        keep_values: see the reference kernel.
        kernels: the rows to choose from; None for all.
        options: what binders of this device take besides, such as ``target`` on GPUs.

    Raises:
        Unsupported: no row takes it; has the reason of each.
        UsageError: ISOBIT_KERNEL names no row.
    """
    spec: WeightSpec | None = getattr(weight, "spec", None)
    few_bits = (spec is not None and spec.scale is not None) or held.before(activations) is not None
    reasons: list[str] = []
    for row in _rows(LINEAR_KERNELS if kernels is None else kernels):
        take = partial(_take, row, device, {"keep_values": keep_values, **options})
        as_stored = row.as_stored or not few_bits
        found = take(weight, activations, input_scale, bias) if as_stored else ""
        if isinstance(found, str) and few_bits:
            found = _take_held(row, take, weight, activations, input_scale, bias)
        if not isinstance(found, str):
            return Bound(row, found, tuple(reasons))
        reasons.append(f"{row.name}: {found}")
    raise _refusal(spec, activations, reasons)


def _take(
    row: LinearKernel, device: str, options: dict[str, Any],
    weight: Any, activations: ActSpec | None, input_scale: Any, bias: Any, **more: Any,
) -> Callable[..., Any] | str:  # fmt: skip
    """A weight bound to a row; or why it does not take it."""
    reason = row.accepts(getattr(weight, "spec", None), activations, device)
    if reason is not None:
        return reason
    try:
        return row.bind(weight, activations, input_scale, bias, **options, **more)
    except Unsupported as refusal:
        return "; ".join(refusal.reasons)


def _take_held(
    row: LinearKernel, take: Callable[..., Callable[..., Any] | str],
    weight: Any, activations: ActSpec | None, input_scale: Any, bias: Any,
) -> Callable[..., Any] | str:  # fmt: skip
    """The same for the formats that ``held`` names."""
    reason = held.not_on_gpu(activations) if row.gpu else None
    if reason is not None:
        return reason
    widened = importlib.import_module("isobit.kernels.widened")  # with torch, as the binders have it
    given = widened.weight(weight, halves=row.gpu) if hasattr(weight, "spec") else weight
    first = held.before(activations)
    if first is None:
        return take(given, activations, input_scale, bias)
    wide = {"out_dtype": widened.torch.float32} if row.gpu else {}  # rounded once, to the dtype of the activations
    run = take(given, None, None, bias, **wide)
    dtype = widened.torch.bfloat16 if row.gpu else widened.torch.float32
    return run if isinstance(run, str) else widened.RoundedBefore(run, first, input_scale, weight, dtype)


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
    reasons = []
    for row in _rows(kernels):
        reason = row.accepts(weights, activations, device) if row.as_stored else None
        if reason is not None or not row.as_stored:
            reason = held.not_on_gpu(activations) if row.gpu else None
            given = held.held(weights, halves=row.gpu), held.within(activations)
            reason = reason or row.accepts(*given, device)
        if reason is None:
            return row
        reasons.append(f"{row.name}: {reason}")
    raise _refusal(weights, activations, reasons)


def forced(kernels: tuple[LinearKernel, ...] = LINEAR_KERNELS) -> str | None:
    """The row that ISOBIT_KERNEL names; None if it names none.

    Raises:
        UsageError: there is no such row.
    """
    name = os.environ.get("ISOBIT_KERNEL") or None
    if name and name not in {row.name for row in kernels}:
        known = ", ".join(row.name for row in kernels)
        raise UsageError(f"ISOBIT_KERNEL={name}: there is no such kernel; known: {known}; unset it for the best one")
    return name


def _rows(kernels: tuple[LinearKernel, ...]) -> list[LinearKernel]:
    """The rows in the order in which they are asked; only the one that ISOBIT_KERNEL names, if it names one."""
    name = forced(kernels)
    return sorted((row for row in kernels if name in (None, row.name)), key=lambda row: -row.priority)


def _refusal(weights: WeightSpec | None, activations: ActSpec | None, reasons: list[str]) -> Unsupported:
    return Unsupported(f"a linear with {weights or 'plain'} weights and {activations or 'plain'} activations", reasons)
