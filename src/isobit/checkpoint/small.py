"""The small tensors of a checkpoint, checked before anything uses them: biases, norms, shapes of packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.checkpoint.safetensors import PLAIN_DTYPES
from isobit.checkpoint.store import Store
from isobit.errors import CheckpointError

WIDE = ("F64", "C64")  # not quantized either, and not computed with
INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
_MOST_AXES = 8  # that a message shows


def read_vector(ck: Store, name: str, *sizes: int) -> Tensor:
    """Reads a bias or the weight of a norm: of some sizes in a plain floating-point dtype, every number finite.

    Raises:
        CheckpointError: it is missing, or anything else.
    """
    info = ck.info(name)
    if info.shape != sizes:
        raise CheckpointError(
            f"has shape {short_list(info.shape)}, but config.json makes it {list(sizes)}", file=info.file, tensor=name
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
    if info.dtype not in INTEGERS or info.numel > _MOST_AXES:
        raise CheckpointError(
            f"is {info.dtype} {short_list(info.shape)}; it is the two sizes of the weight, I64 [2]",
            file=info.file,
            tensor=name,
        )
    return tuple(int(size) for size in ck.read(name).reshape(-1))


def unreadable(dtype: str) -> str:
    """What is said of a weight, bias or norm of a dtype that is neither plain nor one of codes."""
    advice = "; save the model in float32 or bfloat16" if dtype in WIDE else ""
    readable = f"{', '.join(PLAIN_DTYPES)} or codes of a quantized weight"
    return f"is of dtype {dtype}, which cannot be read: weights are {readable}{advice}"


def short_list(shape: tuple[int, ...]) -> str:
    """A shape for a message; only the first sizes of one with very many."""
    return str(list(shape)) if len(shape) <= _MOST_AXES else f"[{', '.join(map(str, shape[:_MOST_AXES]))}, ...]"
