"""Launches machine code through the library of the card's driver: no Triton, no compiler, no toolkit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Protocol

import torch

from isobit.errors import IsobitError
from isobit.kernels.gpu.compile.request import block_of
from isobit.kernels.gpu.packs.manifest import PackedKernel, TiledCopy

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


_MAP_BYTES, _MAP_ALIGNMENT = 128, 64  # of CUtensorMap
_ELEMENTS = {  # CUtensorMapDataType, bytes
    "i8": (0, 1), "u8": (0, 1), "fp8e4nv": (0, 1), "fp8e5": (0, 1), "fp16": (6, 2), "fp32": (7, 4), "bf16": (9, 2)
}  # fmt: skip
_PLAIN, _PROMOTION, _ZEROS = 0, 2, 0  # not interleaved, cached by 128 bytes, zeros outside of the matrix

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
        copies = iter(kernel.copies)
        self._kinds: list[_Pass | None] = [
            None if name in constants else _how(signature[name], copies, kernel.file) for name in names
        ]
        sizes = [size for kind in self._kinds if kind is not None for size in kind.sizes]
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
        passed = (kind(one) for kind, one in zip(self._kinds, arguments, strict=True) if kind is not None)
        values = [value for several in passed for value in several] + self._scratch
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


class _Pass(Protocol):
    """How an argument is passed: as parameters of so many bytes."""

    @property
    def sizes(self) -> tuple[int, ...]: ...

    def __call__(self, argument: Any) -> list[Any]: ...


class _Plain:
    """The address of a tensor, or a number."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.sizes = kind, (ctypes.sizeof(kind),)

    def __call__(self, argument: Any) -> list[Any]:
        return [self.kind(argument.data_ptr() if isinstance(argument, torch.Tensor) else argument)]


class _Described:
    """The descriptor of a matrix that TMA copies, with its shape and strides behind it."""

    sizes = (_MAP_BYTES, 4, 4, 8, 8)

    def __init__(self, copy: TiledCopy) -> None:
        self.copy = copy
        self.kind, self.bytes = _ELEMENTS[copy.dtype]

    def __call__(self, argument: Any) -> list[Any]:
        rows, columns = argument.shape
        room = (ctypes.c_ubyte * (_MAP_BYTES + _MAP_ALIGNMENT))()
        described = (ctypes.c_ubyte * _MAP_BYTES).from_buffer(room, -ctypes.addressof(room) % _MAP_ALIGNMENT)
        box = self.copy.box
        status = _driver().cuTensorMapEncodeTiled(
            ctypes.byref(described), self.kind, 2, ctypes.c_void_p(argument.data_ptr()),
            (ctypes.c_uint64 * 2)(columns, rows), (ctypes.c_uint64 * 1)(argument.stride(0) * self.bytes),
            (ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1), _PLAIN, self.copy.swizzle, _PROMOTION,
            _ZEROS,
        )  # fmt: skip
        _check(status, f"describe a matrix of {rows} by {columns} elements")
        return [
            described, ctypes.c_int32(rows), ctypes.c_int32(columns), ctypes.c_int64(argument.stride(0)),
            ctypes.c_int64(1),
        ]  # fmt: skip


def _how(kind: str, copies: Iterator[TiledCopy], file: str) -> _Pass:
    if block_of(kind) is None:
        return _Plain(ctypes.c_void_p if kind.startswith("*") else _SCALARS[kind])
    copy = next(copies, None)
    if copy is None:
        raise IsobitError(f"{file}: nothing is said of a descriptor that its signature has: make the pack again")
    return _Described(copy)
