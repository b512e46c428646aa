"""What is done to activations before a linear on a GPU multiplies them, which kernels in front of it can do as well;
and their rounding: the kernels of ``triton/quantize.py`` bound to a scheme."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.pack import code_dtype
from isobit.formats.schemes import ActSpec
from isobit.formats.table import element
from isobit.kernels.gpu import configure
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.rounded import Form, Rounded, RoundingKey

_WIDE = {"*fp16": torch.float16, "*bf16": torch.bfloat16}
_FORMS: dict[str, Form] = {"*fp16": "float16", "*bf16": "bfloat16"}
_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.uint8: "*u8"}

# Tokens of which the next kernel starts when the one before has ended (``layer_tiles.late``): a step of 8 takes 2.59 ms
# so and 2.61 otherwise, 2048 tokens of a prompt 246 and 244 (dev/LOG.md, 2026-11-28).
_LATE = range(2, 17)


class Preparing(ABC):
    """Makes of ``[..., K]`` activations what a kernel multiplies, and a number for each token or group.

    Attributes:
        machine: what runs it.
        key: what decides the bits that come out.
        pointer: what they are to Triton.
        ending: ELEMENT of a kernel that makes the activations and ends with this; empty where none does.
        static_scale: float32 ``[1]``: the given scale of all tokens, if there is one.
    """

    machine: Machine
    key: RoundingKey
    pointer: str
    ending: str
    static_scale: Tensor | None = None

    @abstractmethod
    def __call__(self, x: Tensor) -> Rounded:
        """Does it in a launch of its own."""

    @abstractmethod
    def room(self, x: Tensor) -> tuple[Rounded, dict[str, Any]]:
        """What activations like ``x`` are made into, and what a kernel is told that does so."""

    def operand(self, rounded: Rounded) -> Tensor:
        """What is multiplied, as rows ``[M, ...]``."""
        return rounded.codes.reshape(rounded.tokens, -1)


class Rounding(Preparing):
    """Rounds ``[..., K]`` activations to codes in the form that a kernel multiplies, with scales per token or group.

    Args:
        spec: what the scheme says.
        static_scale: float32 ``[1]``, of static schemes.
        operand: the kernel's operand type: ``*fp16`` and ``*bf16`` ask for values of the codes.
        machine: what runs it.
    """

    def __init__(self, spec: ActSpec, static_scale: Tensor | None, operand: str, machine: Machine) -> None:
        if spec.dynamic != (static_scale is None):
            raise FormatError(f"a static scale is {'surplus' if spec.dynamic else 'missing'} for {spec}")
        self.spec, self.static_scale, self.machine = spec, static_scale, machine
        self.element = element(spec.element)
        self.dtype = _WIDE.get(operand, code_dtype(self.element))
        self.pointer = _POINTERS[self.dtype]
        self.ending = spec.element if spec.group is None else ""
        self.key = RoundingKey(
            spec, _FORMS.get(operand, "codes"), None if static_scale is None else float(static_scale)
        )
        self._view = {"*fp8e4nv": torch.float8_e4m3fn, "*fp8e5": torch.float8_e5m2}.get(operand)
        self._row = _row(spec, wide=operand in _WIDE)
        self._kernels: dict[tuple[torch.dtype, int, bool], Kernel] = {}

    def __call__(self, x: Tensor) -> Rounded:
        """Codes ``[..., K]`` (or their values) and float32 scales ``[..., 1]``, or ``[..., K / group]``."""
        k = x.shape[-1]
        x = x.contiguous()
        rounded, arguments = self.room(x)
        tokens = rounded.tokens
        kernel = self._kernel(x.dtype, k, late=tokens in _LATE)
        if self.spec.group is not None:
            groups = tokens * k // self.spec.group
            at_once = int(kernel.config.constexprs["ROWS"] or 1)
            kernel((-(-groups // at_once),), x=x, groups=groups, **arguments)
        else:
            kernel((tokens,), x=x, K=k, **arguments)
        return rounded

    def room(self, x: Tensor) -> tuple[Rounded, dict[str, Any]]:
        """What activations like ``x`` are rounded into, and what a kernel is told that does so."""
        k = x.shape[-1]
        codes = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        shape = (*x.shape[:-1], k // (self.spec.group or k))
        scales = torch.empty(shape, dtype=torch.float32, device=x.device)
        static = scales if self.static_scale is None else self.static_scale
        arguments = {"codes": codes, "scales": scales, "static_scale": static, "qmax": self.element.max}
        return Rounded(codes, scales, x.dtype, self.key), arguments

    def operand(self, rounded: Rounded) -> Tensor:
        """The codes ``[M, K]`` in the dtype in which the kernel multiplies them."""
        codes = rounded.codes.reshape(rounded.tokens, -1)
        return codes if self._view is None else codes.view(self._view)

    def _kernel(self, dtype: torch.dtype, k: int, *, late: bool) -> Kernel:
        key = (dtype, k, late)
        if key not in self._kernels:
            config = configure.rounding(
                self._row, str(dtype).removeprefix("torch."), self.pointer, self.machine, k=k,
                element=self.spec.element, group=self.spec.group or k, static=self.static_scale is not None, late=late,
            )  # fmt: skip
            self._kernels[key] = Kernel(self._row.entry, config, self.machine)
        return self._kernels[key]


def _row(spec: ActSpec, *, wide: bool) -> Variant:
    """The row that rounds to a format; in groups, which only e4m3fn has in schemes, one row rounds to any."""
    granularity = None if spec.group is None else "group"
    return next(
        row for row in VARIANTS
        if row.way == "rounding" and (row.granularity, row.wide) == (granularity, wide) and not row.scales
        and (granularity == "group" or row.activations == spec.element)
    )  # fmt: skip
