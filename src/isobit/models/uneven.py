"""Experts of a layer whose inputs are rounded by static scales of their own: GPU kernels take one for all of them.

Plans look for them in files, and loading at what it has read; both say the same. Needs no torch.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

from isobit.checkpoint.files import open_regular
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import Unsupported

INSTEAD = (
    "run it on the CPU (--device cpu, device='cpu'), or quantize its source again: `isobit quantize` gives the experts"
    " of a layer one scale (fp8-static), or takes scales from the values at hand (fp8, int8)"
)
_SCALE = re.compile(r"(.*\.experts\.)(\d+)(\..*)\.input_scale")
_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


def differing(names: Sequence[str], scales: Sequence[float]) -> str | None:
    """Why the experts of a layer cannot run on a GPU, or None: their static scales of one role differ.

    Args:
        names: their modules.
        scales: of the inputs of each.
    """
    for name, scale in zip(names, scales, strict=True):
        if scale != scales[0]:
            return (
                f"the static scales of activations differ from expert to expert ({names[0]}.input_scale is"
                f" {scales[0]:.6g}, {name}.input_scale {scale:.6g}), and GPU kernels round the input of all experts of"
                " a layer by one"
            )
    return None


def refusal(reason: str) -> Unsupported:
    """The error of such experts on a GPU."""
    return Unsupported("this mixture of experts on a GPU", [reason], INSTEAD)


def in_files(infos: Mapping[str, TensorInfo]) -> str:
    """The same of tensors in files, of the first layer and role where they differ; empty for none.

    Raises:
        OSError: a file cannot be read.
    """
    groups: dict[tuple[str, str], list[TensorInfo]] = {}
    for name, info in infos.items():
        found = _SCALE.fullmatch(name)
        if found is not None and info.numel == 1 and info.strides is None and info.dtype in _BYTES:
            groups.setdefault((found[1], found[3]), []).append(info)
    for group in groups.values():
        names = [info.name.removesuffix(".input_scale") for info in group]
        if (reason := differing(names, [_number(info) for info in group])) is not None:
            return reason
    return ""


def _number(info: TensorInfo) -> float:
    data = info.data
    if data is None:
        with open(open_regular(info.file), "rb", buffering=0) as file:
            file.seek(info.begin)
            data = file.read(_BYTES[info.dtype])
    if info.dtype == "BF16":
        return float(struct.unpack("<f", bytes(2) + data[:2])[0])
    return float(struct.unpack("<e" if info.dtype == "F16" else "<f", data)[0])
