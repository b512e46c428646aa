"""The rounding of activations on a GPU: the kernels of ``quantize.py`` bound to a scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.pack import code_dtype
from isobit.formats.schemes import ActSpec
from isobit.formats.table import element
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.tiles import Config, Constant, overlaps, whole_token
from isobit.targets.spec import Target

_TRITON = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_WIDE = {"*fp16": torch.float16, "*bf16": torch.bfloat16}


class Rounding:
    """Rounds ``[M, K]`` activations to codes in the dtype that a kernel multiplies, with scales per token or group.

    Args:
        spec: what the scheme says.
        static_scale: float32 ``[1]``, of static schemes.
        operand: the kernel's operand type: ``*fp16`` and ``*bf16`` ask for values of the codes.
        target: whose lowering runs.
    """

    def __init__(self, spec: ActSpec, static_scale: Tensor | None, operand: str, target: Target) -> None:
        if spec.dynamic != (static_scale is None):
            raise FormatError(f"a static scale is {'surplus' if spec.dynamic else 'missing'} for {spec}")
        self.spec, self.static_scale, self.target = spec, static_scale, target
        self.row = element(spec.element)
        self.wide = operand in _WIDE
        self.dtype = _WIDE.get(operand, code_dtype(self.row))
        self.view = {"*fp8e4nv": torch.float8_e4m3fn, "*fp8e5": torch.float8_e5m2}.get(operand)
        self._kernels: dict[tuple[torch.dtype, int, bool, int], Kernel] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``[M, K]`` (or their values) and float32 scales ``[M]``, or ``[M, K / group]``."""
        tokens, k = x.shape
        codes = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        if self.spec.group is not None:
            scales = self._by_group(x, codes, tokens * k // self.spec.group).view(tokens, -1)
        else:
            scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
            static = scales if self.static_scale is None else self.static_scale
            kernel = self._kernel(x.dtype, whole_token(k, self.target))
            kernel((tokens,), x=x, codes=codes, scales=scales, static_scale=static, K=k, qmax=self.row.max)
        return codes if self.view is None else codes.view(self.view), scales

    def _by_group(self, x: Tensor, codes: Tensor, groups: int) -> Tensor:
        scales = torch.empty(groups, dtype=torch.float32, device=x.device)
        kernel = self._kernel(x.dtype, (8, False, 4))
        kernel((-(-groups // 8),), x=x, codes=codes, scales=scales, groups=groups, qmax=self.row.max)
        return scales

    def _kernel(self, dtype: torch.dtype, shape: tuple[int, bool, int]) -> Kernel:
        key = (dtype, *shape)
        if key not in self._kernels:
            self._kernels[key] = self._made(*key)
        return self._kernels[key]

    def _made(self, dtype: torch.dtype, block: int, once: bool, warps: int) -> Kernel:
        codes = _TRITON[self.dtype] if self.wide else ("*i8" if self.dtype == torch.int8 else "*u8")
        signature = {"x": _TRITON[dtype], "codes": codes, "scales": "*fp32", "qmax": "fp32"}
        constants: dict[str, Constant] = {"ELEMENT": self.row.name, "WIDE": self.wide, "OVERLAP": overlaps(self.target)}
        if self.spec.group is not None:
            signature["groups"] = "i32"
            constants |= {"GROUP": self.spec.group, "WIDTH": _power_of_two(self.spec.group), "ROWS": block}
            entry = "isobit.kernels.gpu.triton.quantize:quantize_group"
        else:
            signature |= {"static_scale": "*fp32", "K": "i32"}
            constants |= {"STATIC": self.static_scale is not None, "ONCE": once, "BLOCK_K": block}
            entry = "isobit.kernels.gpu.triton.quantize:quantize_token"
        return Kernel(entry, Config(signature, constants, warps, 1, ("K",)), self.target)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
