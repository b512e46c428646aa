"""What is handed to a kernel, held against what it is said to be, before a pointer to it leaves Python."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec


def check_linear(
    weight: QTensor | Tensor,
    activations: ActSpec | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    *,
    as_stored: bool = False,
) -> None:
    """That the operands of a linear fit together: shapes, dtypes, one device.

    Args:
        weight: ``[N, K]``; a QTensor has checked its parts against each other already.
        activations: how inputs are rounded; None when they are not.
        input_scale: one number for static activations.
        bias: ``[N]`` floating-point, or None.
        as_stored: whether the kernel reads scales in formats of their own.

    Raises:
        FormatError: they don't; every disagreement is listed.
    """
    problems = []
    quantized = isinstance(weight, QTensor)
    parts = [weight.codes, weight.scale, weight.zero, weight.over] if isinstance(weight, QTensor) else [weight]
    if not quantized and (weight.dim() != 2 or not weight.is_floating_point() or 0 in weight.shape):  # type: ignore[union-attr]
        problems.append(f"the weight is a floating-point matrix, not {_described(parts[0])}")
    if isinstance(weight, QTensor) and weight.spec.scale is not None and not as_stored:
        problems.append(f"its scales are {weight.spec.scale}: kernels take float scales (QTensor.with_float_scales)")
    if bias is not None and (tuple(bias.shape) != tuple(weight.shape[:1]) or not bias.is_floating_point()):
        problems.append(f"the bias of {weight.shape[0]} outputs is [{weight.shape[0]}] floats, not {_described(bias)}")
    if activations is not None and activations.calibrated and not _is_scale(input_scale):
        problems.append("static activations need a scale that is a positive number")
    devices = {part.device for part in (*parts, bias) if part is not None}
    if len(devices) > 1:
        problems.append(f"its parts are on {', '.join(sorted(map(str, devices)))}")
    if problems:
        raise FormatError(f"a linear of shape {list(weight.shape)}: {'; '.join(problems)}")


def check_on_cpu(what: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """That a tensor is contiguous ``shape`` of a dtype in this machine's memory, as the CPU kernels read it; or None.

    Raises:
        FormatError: it isn't.
    """
    if tensor is None:
        return
    found = tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.is_contiguous()
    if not found or tensor.device.type != "cpu":
        name = str(dtype).removeprefix("torch.")
        raise FormatError(f"{what}: contiguous {name} {list(shape)} on the CPU, not {_described(tensor)}")


def _is_scale(scale: Tensor | None) -> bool:
    return scale is not None and scale.numel() == 1 and scale.is_floating_point() and 0 < float(scale) < float("inf")


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device.type}"
