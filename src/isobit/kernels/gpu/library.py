"""PyTorch's own matrix products (cuBLAS) where they were measured to be the fastest that keep the contract."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

ENTRIES = ("torch:scaled_mm", "torch:mm")
_NEEDS_CUDA = (12, 9)  # whose cuBLAS scales rows and columns of a float8 product, into any float


def problems(device: torch.device) -> tuple[tuple[str, str], ...]:
    """(entry of a row of kernels/gpu/rows.py, why PyTorch's product cannot run on a device)."""
    if device.type != "cuda":
        return tuple((entry, f"PyTorch's product for GPUs does not run on {device.type}") for entry in ENTRIES)
    found = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    if found < _NEEDS_CUDA:
        return (
            (ENTRIES[0], f"PyTorch is built for CUDA {torch.version.cuda}, and float8 with scales of rows needs 12.9"),
        )
    return ()


def scaled_mm(x: Tensor, w: Tensor, token_scale: Tensor, scale: Tensor, y: Tensor) -> None:
    """Float8 codes ``x [M, K]`` by ``w [N, K]`` with float32 scales ``[M]`` and ``[N]`` into ``y``, summed in full."""
    torch._scaled_mm(
        x, w.t(), token_scale[:, None], scale[None, :], out_dtype=y.dtype, use_fast_accum=False, out=y
    )  # fmt: skip


def mm(x: Tensor, w: Tensor, y: Tensor) -> None:
    """Floats ``x [M, K]`` by ``w [N, K]`` of one dtype into ``y``, of the same dtype or float32."""
    with _full_sums():
        if y.dtype == x.dtype:
            torch.mm(x, w.t(), out=y)
        else:
            torch.mm(x, w.t(), out_dtype=y.dtype, out=y)


@contextlib.contextmanager
def _full_sums() -> Iterator[None]:
    """Partial sums in float32, which PyTorch otherwise allows cuBLAS to add up in 16 bits."""
    switches = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = [getattr(switches, name) for name in names]
    for name in names:
        setattr(switches, name, False)
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(switches, name, value)
