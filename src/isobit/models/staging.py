"""Numbers on their way between the host and a device, in one copy that nobody waits for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 16  # bytes, as kernels of GPUs like their arguments
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "int64": torch.int64, "int32": torch.int32}


def send(device: torch.device | None, *arrays: NDArray[Any]) -> list[Tensor]:
    """Tensors of these values on a device; on a CPU they share the arrays' memory.

    To a GPU all of them go in one copy out of pinned memory, in the order of the current stream. The host does not
    wait for it, nor for what was started before: a copy out of ordinary memory would wait for both.
    """
    if device is None or device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    places, end = [], 0
    for array in arrays:
        places.append(end)
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    host = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    into = host.numpy()
    for array, at in zip(arrays, places, strict=True):
        into[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    there = host.to(device, non_blocking=True)
    return [
        there[at : at + array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)
        for array, at in zip(arrays, places, strict=True)
    ]


def fetch(tensor: Tensor) -> Tensor:
    """A tensor's values on the host, once the device has come so far: whoever reads them waits for that himself."""
    if tensor.device.type == "cpu":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
