"""The small tensors of a checkpoint, checked before anything uses them: biases, norms, shapes of packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.checkpoint.safetensors import INTEGERS, PLAIN_DTYPES, unreadable
from isobit.checkpoint.shown import listed
from isobit.checkpoint.store import Store
from isobit.errors import CheckpointError

_MOST_SIZES = 8  # of a weight


def read_vector(ck: Store, name: str, *sizes: int) -> Tensor:
    """Reads a bias or the weight of a norm: of some sizes in a plain floating-point dtype, every number finite.

    Raises:
        CheckpointError: it is missing, or anything else.
    """
    info = ck.info(name)
    if info.shape != sizes:
        raise CheckpointError(
            f"has shape {listed(info.shape)}, but config.json makes it {list(sizes)}", file=info.file, tensor=name
        )
    if info.dtype not in PLAIN_DTYPES:
        raise CheckpointError(unreadable(info.dtype), file=info.file, tensor=name)
    vector = ck.read(name)
    if not bool(torch.isfinite(vector).all()):
        raise CheckpointError("holds NaN or infinite numbers", file=info.file, tensor=name)
    return vector


def read_weight_shape(ck: Store, name: str) -> tuple[int, ...]:
    """The numbers of a packed weight's ``weight_shape``: two, if it is not damaged.

    Raises:
        CheckpointError: they are no whole numbers, or far too many.
    """
    info = ck.info(name)
    if info.dtype not in INTEGERS or info.numel > _MOST_SIZES:
        raise CheckpointError(
            f"is {info.dtype} {listed(info.shape)}; it is the two sizes of the weight, I64 [2]",
            file=info.file,
            tensor=name,
        )
    return tuple(int(size) for size in ck.read(name).reshape(-1))
