"""Numbers on their way between the host and a device: those of a step, in one copy that nobody waits for; weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 16  # bytes, as kernels of GPUs like their arguments
_LARGE = 4 << 20  # bytes of a tensor from which on it takes the way of weights
_PART = 4 << 20  # at once: 14 GB/s on an H200 with 4 threads, 12 in parts of 16 MiB, 8 of 64; 9 without
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


def bring(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, large ones in parts by way of pinned memory.

    What is mapped from a file is read as it is copied: so by all threads, and one part while the device takes another.
    A copy out of ordinary memory is one thread's.
    """
    if device.type != "cuda" or value.device.type != "cpu" or value.nbytes < _LARGE or not value.is_contiguous():
        return value.to(device)
    here = value.view(-1).view(torch.uint8)
    there = torch.empty(value.shape, dtype=value.dtype, device=device)
    into = there.view(-1).view(torch.uint8)
    parts = [torch.empty(min(_PART, here.numel()), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    taken: list[Any] = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]
    for turn, begin in enumerate(range(0, here.numel(), _PART)):
        end, which = min(begin + _PART, here.numel()), turn % 2
        if turn >= 2:
            taken[which].synchronize()
        part = parts[which][: end - begin]
        part.copy_(here[begin:end])
        into[begin:end].copy_(part, non_blocking=True)
        taken[which].record()
    return there
