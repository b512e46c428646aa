"""Parts of stored tensors as tensors of their own: where their elements lie, without a copy. No torch.

A tensor of three dimensions that holds the matrices of all experts is read as those matrices.
"""

from __future__ import annotations

import math
from dataclasses import replace

from isobit.checkpoint.safetensors import DTYPES, TensorInfo


def strides_of(info: TensorInfo) -> tuple[int, ...]:
    """Elements from one to the next along each axis."""
    return info.strides if info.strides is not None else contiguous(info.shape)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of elements that lie in the order of rows."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def taken(info: TensorInfo, name: str, axis: int, number: int) -> TensorInfo:
    """The tensor of one index along an axis, which is then gone."""
    strides = strides_of(info)
    return _view(info, name, number * strides[axis], _without(info.shape, axis), _without(strides, axis))


def narrowed(info: TensorInfo, axis: int, begin: int, count: int, step: int = 1) -> TensorInfo:
    """``count`` indices along an axis, from ``begin`` on, in steps."""
    strides = strides_of(info)
    shape = (*info.shape[:axis], count, *info.shape[axis + 1 :])
    found = (*strides[:axis], strides[axis] * step, *strides[axis + 1 :])
    return _view(info, info.name, begin * strides[axis], shape, found)


def transposed(info: TensorInfo) -> TensorInfo:
    """The last two axes in the other order."""
    shape, strides = info.shape, strides_of(info)
    return _view(
        info, info.name, 0, (*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2])
    )  # fmt: skip


def joined(info: TensorInfo) -> TensorInfo:
    """The last two axes as one, of a tensor that lies in the order of rows."""
    return replace(info, shape=(*info.shape[:-2], info.shape[-2] * info.shape[-1]))


def _without(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*values[:axis], *values[axis + 1 :])


def _view(
    info: TensorInfo, name: str, skipped: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> TensorInfo:  # fmt: skip
    size = DTYPES[info.dtype][0] // 8
    begin = info.begin + skipped * size
    # An axis of one index lies in order whatever its stride.
    in_order = all(
        one == two or length == 1 for one, two, length in zip(strides, contiguous(shape), shape, strict=True)
    )
    return replace(
        info, name=name, shape=shape, begin=begin, end=begin + math.prod(shape) * size,
        strides=None if in_order else strides,
    )  # fmt: skip
