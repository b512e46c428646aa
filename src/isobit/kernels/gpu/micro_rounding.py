"""The rounding of activations under scales of few bits on a GPU: ``triton/quantize_micro.py`` bound to a scheme."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.schemes import ActSpec
from isobit.formats.table import element
from isobit.kernels.gpu import micro_tiles
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.rounded import Form, Rounded, RoundingKey

_VALUES = {"*fp16": torch.float16, "*bf16": torch.bfloat16}
_FORMS: dict[str, Form] = {"*fp16": "float16", "*bf16": "bfloat16"}
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class MicroRounding(Rounding):
    """Rounds ``[..., K]`` activations by groups, in the form that a kernel multiplies.

    That is what codes stand for times their scales, in 16 bits, or codes and codes of scales. A number above the scales
    (``over``) is left to the kernel.

    Args:
        spec: what the scheme says.
        over: float32 ``[1]``: what scales are divided by, where the format has that.
        row: the kernel.
        k: values of a token.
        machine: what runs it.
    """

    def __init__(self, spec: ActSpec, over: Tensor | None, row: Variant, k: int, machine: Machine) -> None:
        if spec.scale is None or spec.group is None or spec.calibrated != (over is not None):
            raise FormatError(f"a scale above others is {'surplus' if over is not None else 'missing'} for {spec}")
        self.spec, self.static_scale, self.machine = spec, over, machine
        self.element = element(spec.element)
        self.values = row.operand in _VALUES
        self.pointer = row.operand if self.values else "*u8"
        self.ending, self._view = "", None
        self.dtype = _VALUES.get(row.operand, torch.uint8)
        units = self.values and row.weights == "e2m1"
        self.unit = (micro_tiles.step("e2m1", k, machine.target) or 0) if units else 0
        number = None if over is None else float(over)
        self.key = RoundingKey(spec, _FORMS.get(row.operand, "codes"), number, self.unit)
        self._rows = _row(spec, wide=self.values)
        self._made: dict[torch.dtype, Kernel] = {}
        self._unused: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Rounded:
        """Codes ``[..., K]`` (e2m1: two a byte) and uint8 scales ``[..., K / group]``; or values, and no scales."""
        x = x.contiguous()
        rounded, arguments = self.room(x)
        kernel = self._for(x.dtype)
        groups = x.numel() // int(self.spec.group or 1)
        if groups:
            kernel((-(-groups // int(kernel.config.constexprs["ROWS"] or 1)),), x=x, groups=groups, **arguments)
        return rounded

    def room(self, x: Tensor) -> tuple[Rounded, dict[str, Any]]:
        """What activations like ``x`` are rounded into, and what a kernel is told that does so."""
        k = x.shape[-1]
        per = 2 if not self.values and self.element.bits == 4 else 1
        codes = torch.empty((*x.shape[:-1], k // per), dtype=self.dtype, device=x.device)
        unused, one = self._nothing(x.device)
        scales = unused
        if not self.values:
            shape = (*x.shape[:-1], k // int(self.spec.group or k))
            scales = torch.empty(shape, dtype=torch.uint8, device=x.device)
        over = one if self.static_scale is None else self.static_scale
        arguments = {"codes": codes, "scales": scales, "over": over, "qmax": self.element.max}
        return Rounded(codes, scales, x.dtype, self.key), arguments

    def _for(self, dtype: torch.dtype) -> Kernel:
        if dtype not in self._made:
            config = self._rows.config(self.machine.target)
            config = micro_tiles.rounded(config, self.spec, _POINTERS[dtype], self.pointer, self.unit)
            self._made[dtype] = Kernel(self._rows.entry, config, self.machine)
        return self._made[dtype]

    def _nothing(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is passed where nothing is written or read."""
        if device not in self._unused:
            self._unused[device] = torch.empty(0, dtype=torch.uint8, device=device), torch.ones(1, device=device)
        return self._unused[device]


def _row(spec: ActSpec, *, wide: bool) -> Variant:
    """The row that rounds to a format under scales of a format."""
    return next(
        row for row in VARIANTS
        if row.way == "rounding" and row.wide == wide and row.activations == spec.element
        and any(spec.scale == scale for _, scale in row.scales)
    )  # fmt: skip
