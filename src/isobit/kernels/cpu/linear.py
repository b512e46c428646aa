"""Linears on the CPU kernels (C++, cpp/): weights are used where they are stored, nothing is copied or decoded.

Rounding points are those of docs/numerics.md. Sums are float32 in an order that depends on shapes and the instruction
set only. No gradients are computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element
from isobit.kernels.checked import check_linear
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.formats import (
    ACTIVATIONS,
    FLOAT_FORMATS,
    FORMATS,
    OVER_RULES,
    SCALE_FORMATS,
    activation_scales,
    unsupported,
)
from isobit.kernels.cpu.library import check, isa, isas, last_error, library, set_threads, threads, use_isa

__all__ = [
    "CpuLinear", "bind", "check", "isa", "isas", "last_error", "library", "linears", "quantize_activations",
    "read_bandwidth", "set_threads", "threads", "use_isa",
]  # fmt: skip

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
_WITH_NAN = ("e4m3fn", "e5m2")
_LARGEST_POWER = (
    40  # e4m3fn codes are decoded 2^-120 too small, and scales made 2^72 larger (docs/numerics.md section 6)
)


class LinearStruct(ctypes.Structure):
    """isobit_linear of isobit_cpu.h."""

    _fields_ = [
        ("n", _SIZE),
        ("k", _SIZE),
        ("format", _INT),
        ("activations", _INT),
        ("activation_group", _INT),
        ("input_scale", _FLOAT),
        ("group", _SIZE),
        ("block_rows", _SIZE),
        ("row_bytes", _SIZE),
        ("scale_format", _INT),
        ("alike", _INT),
        ("codes", _POINTER),
        ("scales", _POINTER),
        ("zeros", _POINTER),
        ("bias", _POINTER),
        ("over", _POINTER),
        ("over_rule", _INT),
        ("over_each", _INT),
        ("activation_scales", _INT),
    ]


class CpuLinear:
    """One weight bound to the CPU kernels: a function ``[..., K] -> [..., N]`` in the dtype of its input.

    Attributes:
        n, k: shape of the weight.
        address: of the isobit_linear, for :func:`linears`.
    """

    __slots__ = ("_call", "_kept", "_struct", "address", "k", "n")

    def __init__(self, struct: LinearStruct, kept: tuple[Tensor | None, ...]) -> None:
        self._struct, self._kept = struct, kept  # memory that the struct points to
        self.n, self.k, self.address = struct.n, struct.k, ctypes.addressof(struct)
        self._call = library().isobit_cpu_linear

    @property
    def struct(self) -> LinearStruct:
        """isobit_linear; valid while this is there."""
        return self._struct

    def first_rows(self, n: int, bias: Tensor | None) -> CpuLinear:
        """The first ``n`` rows of the weight as a linear of their own, with a bias float32 ``[..., n]`` or none."""
        struct = LinearStruct.from_buffer_copy(self._struct)
        struct.n, struct.bias = n, None if bias is None else bias.data_ptr()
        return CpuLinear(struct, (*self._kept, bias))

    def __call__(self, x: Tensor) -> Tensor:
        """``x W^T + b``; ``x`` ``[..., K]`` of any floating-point dtype is computed with as float32."""
        shape, k, n = x.shape, self.k, self.n
        if shape[-1] != k or not x.is_cpu:
            raise ValueError(f"the input on {x.device.type} has {shape[-1]} values a row, the weight on the CPU {k}")
        values = x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()
        m = values.numel() // k
        y = torch.empty(*shape[:-1], n)
        if m and self._call(self.address, values.data_ptr(), m, k, y.data_ptr(), n):
            check(-1)
        return y if x.dtype is torch.float32 else y.to(x.dtype)


def linears(bound: Sequence[CpuLinear], x: Tensor) -> list[Tensor]:
    """Several linears of one input, in one call: activations are rounded and laid out once.

    Args:
        bound: linears with the same K.
        x: ``[..., K]``.

    Returns:
        ``[..., N]`` of each, in the dtype of ``x``.
    """
    count, k = len(bound), bound[0].k
    if any(linear.k != k for linear in bound) or x.shape[-1] != k or not x.is_cpu:
        raise ValueError(f"linears of {[linear.k for linear in bound]} inputs do not share one of {x.shape[-1]}")
    values = x.float().contiguous()
    m = values.numel() // k
    outputs = [torch.empty(*x.shape[:-1], linear.n) for linear in bound]
    if m:
        weights = (_POINTER * count)(*(linear.address for linear in bound))
        pointers = (_POINTER * count)(*(y.data_ptr() for y in outputs))
        strides = (_SIZE * count)(*(linear.n for linear in bound))
        check(library().isobit_cpu_linears(weights, count, values.data_ptr(), m, k, pointers, strides))
    return [y.to(x.dtype) for y in outputs]


def bind(
    weight: QTensor | Tensor,
    activations: ActSpec | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    *,
    keep_values: bool = False,
    alike: bool = False,
) -> CpuLinear:
    """Binds a weight to the kernels; the registry's row says which formats they take.

    Args:
        weight: ``[N, K]``, on the CPU.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` for static activations.
        bias: ``[N]``.
        keep_values: of no effect: weights are never kept decoded.
        alike: a row of activations gives the same bits in any number of rows, also where activations are not rounded.

    Raises:
        Unsupported: the weight holds codes that the kernels do not decode, or is of a dtype that they do not know.
        FormatError: shapes, dtypes or devices do not fit together.
    """
    del keep_values
    check_formats(weight.spec if isinstance(weight, QTensor) else None, activations)
    check_linear(weight, activations, input_scale, bias, as_stored=True)
    if (weight.codes if isinstance(weight, QTensor) else weight).device.type != "cpu":
        raise FormatError(f"a linear of shape {list(weight.shape)}: the CPU kernels read this machine's memory")
    struct = LinearStruct(n=weight.shape[0], k=weight.shape[1], alike=alike)
    if activations is not None:
        struct.activations = ACTIVATIONS[element(activations.element).name]
        struct.activation_group = activations.group or 0
        struct.activation_scales = activation_scales(activations.scale)
        struct.input_scale = 0.0 if input_scale is None else float(input_scale)
    kept = _quantized(struct, weight) if isinstance(weight, QTensor) else _plain(struct, weight)
    if bias is not None:
        bias = bias.float().contiguous()
        struct.bias = bias.data_ptr()
    return CpuLinear(struct, (*kept, bias))


def check_formats(weights: WeightSpec | None, activations: ActSpec | None) -> None:
    """That there is a kernel for these formats.

    Raises:
        Unsupported: there is none.
    """
    reason = unsupported(weights, activations)
    if reason is not None:
        raise Unsupported(f"a linear with {weights or 'plain'} weights", [reason])


def _plain(struct: LinearStruct, weight: Tensor) -> tuple[Tensor, ...]:
    name = str(weight.dtype).removeprefix("torch.")
    if name not in FLOAT_FORMATS:
        raise Unsupported(f"a linear with weights of {name}", [f"the CPU kernels know {', '.join(FLOAT_FORMATS)}"])
    struct.format = FLOAT_FORMATS[name]
    return (_codes(struct, weight),)


def _quantized(struct: LinearStruct, weight: QTensor) -> tuple[Tensor | None, ...]:
    spec, row = weight.spec, weight.element
    struct.format = FORMATS[row.name]
    struct.group = spec.group or (spec.block[1] if spec.block else 0)
    struct.block_rows = 0 if spec.granularity == "tensor" else spec.block[0] if spec.block else 1
    codes, scale = _codes(struct, weight.codes), weight.scale.contiguous()
    stored, dtype = spec.scale, str(scale.dtype).removeprefix("torch.")
    struct.scale_format = SCALE_FORMATS[dtype if stored is None else stored.element]
    struct.scales = scale.data_ptr()
    over = None if weight.over is None else weight.over.contiguous()
    if stored is not None and over is not None:
        struct.over, struct.over_rule, struct.over_each = over.data_ptr(), OVER_RULES[stored.over], over.dim() > 1
    zero = None if weight.zero is None else weight.zero.contiguous()
    struct.zeros = None if zero is None else zero.data_ptr()
    if row.name in _WITH_NAN:
        _refuse_nan(struct, row.name)
    if stored is not None and stored.codes is not None:
        _refuse_scales(scale, row.name, stored.element)
    return codes, scale, zero, over


def _refuse_scales(scale: Tensor, name: str, element: str) -> None:
    """That scales of 8 bits are numbers, and that codes times them are float32 on the way there.

    Raises:
        Unsupported: they aren't.
    """
    why = None
    if element == "e4m3fn":
        why = "are NaN" if bool((scale & 0x7F == 0x7F).any()) else None
    elif bool((scale == 0xFF).any()):
        why = "are NaN"
    elif name == "e4m3fn" and int(scale.max()) - 127 >= _LARGEST_POWER:
        why = f"are 2^{_LARGEST_POWER} or more"
    if why is not None:
        raise Unsupported(
            f"a linear with {name} weights", [f"some of its scales {why}, which the CPU kernels do not read"]
        )


def _codes(struct: LinearStruct, codes: Tensor) -> Tensor:
    """Rows of codes; only those whose bytes are not side by side are copied."""
    if codes.stride(1) != 1:
        codes = codes.contiguous()
    struct.codes = codes.data_ptr()
    # The stride of a single row says nothing.
    struct.row_bytes = (codes.stride(0) if codes.shape[0] > 1 else codes.shape[1]) * codes.element_size()
    return codes


def _refuse_nan(struct: LinearStruct, name: str) -> None:
    found = library().isobit_cpu_has_nan(struct.format, struct.codes, struct.n, struct.row_bytes, struct.k)
    if found < 0:
        check(found)
    if found:
        raise Unsupported(
            f"a linear with {name} weights", ["some of them are NaN or infinite, which the CPU kernels do not decode"]
        )


# ---------------------------------------------------------------------- for tests and benchmarks


def quantize_activations(x: Tensor, spec: ActSpec, static_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rounds activations as the kernels do; the same codes and scales as ``formats.codec.quantize_activations``.

    Args:
        x: ``[..., K]``.
        spec: per token, in groups, or static.
        static_scale: the calibrated scale, when ``spec`` is static.
    """
    name, k = element(spec.element).name, x.shape[-1]
    values = x.float().contiguous()
    m = values.numel() // k
    codes = torch.empty(x.shape, dtype=torch.int8 if name == "int8" else torch.uint8)
    scales = torch.empty(*x.shape[:-1], -(-k // spec.group) if spec.group else 1)
    given = 0.0 if static_scale is None else float(static_scale)
    rule = activation_scales(spec.scale)
    arguments = (ACTIVATIONS[name], rule, spec.group or 0, given, values.data_ptr(), m, k)
    if m:
        check(library().isobit_cpu_quantize(*arguments, codes.data_ptr(), scales.data_ptr()))
    return codes, scales


def read_bandwidth(buffer: Tensor) -> int:
    """Reads all bytes of a contiguous tensor once, with all threads: the time it takes is the read bandwidth's."""
    total = int(cpu_library.library().isobit_cpu_read(buffer.data_ptr(), buffer.numel() * buffer.element_size()))
    if total == 2**64 - 1 and last_error():
        check(-1)
    return total
