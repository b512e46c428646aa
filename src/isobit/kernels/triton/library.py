"""PyTorch's own matrix products (cuBLAS) where they were measured to be the fastest that keep the contract."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_NEEDS_CUDA = (12, 9)  # whose cuBLAS scales rows and columns of a float8 product, into any float


def misfit(entry: str, n: int, k: int, device: torch.device, bias: Tensor | None) -> str | None:
    """Why a product cannot run here, or None.

    Args:
        entry: of a row of kernels/variants.py.
        n, k: of the weight.
        device: where it is.
        bias: which PyTorch would add in the dtype of the result.
    """
    if device.type != "cuda":
        return f"PyTorch's product for GPUs does not run on {device.type}"
    if bias is not None:
        return "PyTorch rounds a bias to the dtype of the result"
    if entry.endswith(":scaled_mm"):
        if n % 16 or k % 16:
            return f"PyTorch multiplies float8 only where N = {n} and K = {k} are multiples of 16"
        found = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
        if found < _NEEDS_CUDA:
            return f"PyTorch is built for CUDA {torch.version.cuda}, and float8 with scales of rows needs 12.9"
    return None


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
