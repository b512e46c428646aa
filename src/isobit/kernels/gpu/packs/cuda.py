"""Launches machine code through the library of the card's driver: no Triton, no compiler, no toolkit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from isobit.errors import IsobitError
from isobit.kernels.gpu.packs.manifest import PackedKernel

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, padded to 8 bytes, and a union of 64 bytes."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_ubyte * 60)]


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


_SCALARS: dict[str, Any] = {
    "i32": ctypes.c_int32, "u32": ctypes.c_uint32, "i64": ctypes.c_int64, "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float, "f32": ctypes.c_float,
}  # fmt: skip


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        IsobitError: there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise IsobitError(f"the NVIDIA driver's library cannot be loaded: {error}") from error


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise IsobitError(f"the CUDA driver failed to {what}: {(text.value or b'unknown error').decode()} ({status})")


class Launcher:
    """A kernel of a pack, in the place of one that Triton has compiled: ``launcher[grid](*arguments)``.

    Args:
        kernel: its description.
        code: its machine code.
        names: every argument of the kernel in order, compile-time ones too.
    """

    def __init__(self, kernel: PackedKernel, code: bytes, names: tuple[str, ...]) -> None:
        self.kernel, self._code = kernel, code
        signature, constants = kernel.request.signature, kernel.request.constants
        kinds = [None if name in constants else signature[name] for name in names]
        self._kinds: list[Any] = [
            None if kind is None else ctypes.c_void_p if kind.startswith("*") else _SCALARS[kind] for kind in kinds
        ]
        sizes = [ctypes.sizeof(kind) for kind in self._kinds if kind is not None]
        scratch = kernel.parameters[len(sizes) :]
        if list(kernel.parameters[: len(sizes)]) != sizes or any(size != 8 for size in scratch):
            raise IsobitError(
                f"{kernel.file}: the machine code takes parameters of {list(kernel.parameters)} bytes, "
                f"and its signature says {sizes}: make the pack again"
            )
        self._scratch = [ctypes.c_void_p(None) for _ in scratch]
        self._functions: dict[int, ctypes.c_void_p] = {}  # by device

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        """What launches the kernel with that many blocks."""
        return lambda *arguments: self._launch(grid, arguments)

    def _launch(self, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
        values = [_value(kind, one) for kind, one in zip(self._kinds, arguments, strict=True) if kind is not None]
        values += self._scratch
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        attribute = _Attribute(id=_OVERLAP, value=1)
        launch = _Launch(
            grid=(ctypes.c_uint * 3)(*grid),
            block=(ctypes.c_uint * 3)(self.kernel.threads, 1, 1),
            shared=self.kernel.shared,
            stream=torch.cuda.current_stream().cuda_stream,
            attributes=ctypes.pointer(attribute),
            count=int(self.kernel.overlaps),
        )
        status = _driver().cuLaunchKernelEx(ctypes.byref(launch), self._function(), addresses, None)
        _check(status, f"launch {self.kernel.symbol}")

    def _function(self) -> ctypes.c_void_p:
        """The kernel on the current device, loaded at its first launch there."""
        device = torch.cuda.current_device()
        if device not in self._functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            driver = _driver()
            _check(driver.cuModuleLoadData(ctypes.byref(module), self._code), f"load {self.kernel.file}")
            symbol = self.kernel.symbol.encode()
            _check(driver.cuModuleGetFunction(ctypes.byref(function), module, symbol), f"find {self.kernel.symbol}")
            status = driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, self.kernel.shared)
            _check(status, f"reserve {self.kernel.shared} bytes of shared memory for {self.kernel.symbol}")
            self._functions[device] = function
        return self._functions[device]


def _value(kind: Any, argument: Any) -> Any:
    """An argument as the driver takes it: the address of a tensor, or a number."""
    if isinstance(argument, torch.Tensor):
        argument = argument.data_ptr()
    return kind(argument)
