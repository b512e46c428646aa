"""Teaches Triton's interpreter bfloat16, which it holds as integers, adds and multiplies as such, and cuts off."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_PRODUCTS_AND_SUMS = ("create_fadd", "create_fsub", "create_fmul", "create_fma")


def teach() -> None:
    """From here on products and sums of bfloat16 are computed in float32, and what becomes bfloat16 is rounded to
    nearest even."""
    for name in _PRODUCTS_AND_SUMS:
        setattr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name)))
    plain = InterpreterBuilder.create_dot

    def dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
        return plain(self, _widened(a), _widened(b), d, *rest)

    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.cast_impl = _rounding(InterpreterBuilder.cast_impl)


def _in_float32(plain: Any) -> Any:
    def operation(self: Any, *operands: TensorHandle) -> TensorHandle:
        if operands[0].dtype.scalar != tl.bfloat16:
            return plain(self, *operands)
        found = plain(self, *(_widened(one) for one in operands))
        return TensorHandle(_rounded(found.data), tl.bfloat16)

    return operation


def _rounding(plain: Any) -> Any:
    def cast(self: Any, source: TensorHandle, kind: Any) -> TensorHandle:
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return TensorHandle(_rounded(source.data), tl.bfloat16)
        return plain(self, source, kind)

    return cast


def _widened(one: TensorHandle) -> TensorHandle:
    if one.dtype.scalar != tl.bfloat16:
        return one
    return TensorHandle((one.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(wide: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = np.ascontiguousarray(wide, np.float32).view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), nearest)
