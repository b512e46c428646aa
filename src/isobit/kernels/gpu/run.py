"""One weight on one row: the arguments that never change, what runs before the product, and the launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.kernels.gpu import alike_tiles, library
from isobit.kernels.gpu.configure import Call, configure, finishes
from isobit.kernels.gpu.held import Held
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.micro_rounding import MicroRounding
from isobit.kernels.gpu.operands import Operands
from isobit.kernels.gpu.prepare import Narrowing, Widened
from isobit.kernels.gpu.rounding import Preparing, Rounding
from isobit.kernels.gpu.tiles import FEW, NATIVE
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.rounded import Rounded

_FLOAT8 = {"*fp8e4nv": torch.float8_e4m3fn, "*fp8e5": torch.float8_e5m2}
_GAINS = {"e4m3fn": 256.0}  # what the float16 decoder leaves; see triton/decode.py


class Float32Product:
    """PyTorch's product of floats, for float32 activations."""

    rounding: Preparing | None = None

    def __init__(self, held: Held) -> None:
        self.held = held

    def finishes(self, after: str) -> bool:
        """Nothing but the product."""
        return after == ""

    def __call__(self, x: Tensor | Rounded, y: Tensor) -> None:
        """``x [M, K]`` to ``y [M, N]``."""
        assert self.held.plain is not None and not isinstance(x, Rounded)
        bias = None if self.held.bias is None else self.held.bias.to(x.dtype)
        y.copy_(F.linear(x, self.held.plain.to(x.dtype), bias))


class LibraryProduct:
    """A linear on a product of PyTorch's."""

    def __init__(self, held: Held, row: Variant, call: Call, machine: Machine) -> None:
        self.rounding: Preparing | None = rounding_of(held, row, machine)
        self.arguments = weight_arguments(held, row, call, machine)

    def finishes(self, after: str) -> bool:
        """Nothing but the product."""
        return after == ""

    def __call__(self, x: Tensor | Rounded, y: Tensor) -> None:
        """``x [M, K]``, or what it was rounded to, to ``y [M, N]``."""
        weight = self.arguments["w"]
        if self.rounding is not None:
            rounded = x if isinstance(x, Rounded) else self.rounding(x)
            codes, scales = self.rounding.operand(rounded), rounded.scales.view(-1)
            library.scaled_mm(codes, weight, scales, self.arguments["scale"], y)
        else:
            assert not isinstance(x, Rounded)
            library.mm(x, weight, y)


class Run:
    """A linear on a row that isobit compiles, which the weight fits."""

    def __init__(self, held: Held, row: Variant, call: Call, machine: Machine, room: Workspace) -> None:
        self.held, self.row, self.room, self.call, self.machine = held, row, room, call, machine
        self.rounding: Preparing | None = rounding_of(held, row, machine)
        if row.narrow is not None:
            self.rounding = Narrowing(row.narrow, call, machine)
        self.arguments = weight_arguments(held, row, call, machine)
        self.widened = None if row.widen is None else Widened(held, row.widen, row.operand, call, machine, room)
        self.config = configure(row, call, machine)
        self.kernels = {"": Kernel(row.entry, self.config, machine)}  # by what is done with the result
        self.split_k = int(self.config.constexprs.get("SPLIT_K") or 1)

    def finishes(self, after: str) -> bool:
        """Whether it can do something with its results before they are stored; see ``configure.Call``."""
        wide = self.call.alike and self.call.tokens > FEW
        return finishes(self.row, after, self.machine.target, wide=wide)

    def __call__(self, x: Tensor | Rounded, y: Tensor, after: str = "", residual: Tensor | None = None) -> None:
        """``x [M, K]``, or what it was rounded to, to ``y [M, N]``, or ``[M, N / 2]`` behind gates.

        Args:
            after: what is done with the result.
            residual: ``[M, N]``: what is added.
        """
        arguments = {**self.arguments, "residual": y if residual is None else residual}
        if self.rounding is not None:
            rounded = x if isinstance(x, Rounded) else self.rounding(x)
            x, arguments["token_scale"] = self.rounding.operand(rounded), rounded.scales
        assert not isinstance(x, Rounded)
        if self.widened is not None:
            arguments["w"] = self.widened()
        if after not in self.kernels:
            config = configure(self.row, replace(self.call, after=after), self.machine)
            self.kernels[after] = Kernel(self.row.entry, config, self.machine)
        kernel = self.kernels[after]
        if not self.call.alike or self.split_k == 1 or len(x) <= alike_tiles.ROWS:
            self._launch(kernel, x, y, arguments)
            return
        for begin in range(0, len(x), alike_tiles.ROWS):  # the bits of a row do not depend on where it is cut
            part = slice(begin, begin + alike_tiles.ROWS)
            cut = {"residual": arguments["residual"][part]}
            if self.rounding is not None:
                cut["token_scale"] = arguments["token_scale"][part]
            self._launch(kernel, x[part], y[part], {**arguments, **cut})

    def _launch(self, kernel: Kernel, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> None:
        tokens, constants = x.shape[0], self.config.constexprs
        if self.config.signature["x"] == "*i32":
            x = _aligned(x).view(torch.int32)
        elif self.config.copied:
            x = _aligned(x)
        arguments |= {"x": x, "y": y, "N": self.held.n, "K": self.held.k // self.row.layout.per_word}
        block_n, block_m = int(constants["BLOCK_N"] or 1), int(constants.get("BLOCK_M") or 1)
        rows = -(-self.held.n // block_n)
        if self.row.family == "vector":
            kernel((rows, tokens), **arguments)
            return
        tiles = rows * -(-tokens // block_m)
        if self.split_k > 1:
            dtype = torch.int32 if x.dtype == torch.int8 else torch.float32
            arguments["partials"] = self.room.take((tiles * self.split_k * block_n * block_m,), dtype)
            arguments["counters"] = self.room.counters(tiles)
        at_once = self.machine.multiprocessors * self.config.resident or tiles * self.split_k
        kernel((min(tiles * self.split_k, at_once),), M=tokens, **arguments)


def _aligned(x: Tensor) -> Tensor:
    """Activations that begin at a multiple of 16 bytes: a copy of those that do not, as parts of others may."""
    return x if x.storage_offset() * x.element_size() % 16 == 0 else x.clone()


def rounding_of(held: Held, row: Variant, machine: Machine) -> Rounding | None:
    """What rounds a weight's inputs for a row; None where they are not rounded."""
    if held.activations is None:
        return None
    if held.activations.scale is not None:
        return MicroRounding(held.activations, held.input_scale, row, held.k, machine)
    return Rounding(held.activations, held.input_scale, row.operand, machine)


def weight_arguments(held: Held, row: Variant, call: Call, machine: Machine) -> dict[str, Any]:
    """The weight, its scales and bias in the layout of a row."""
    unused = torch.empty(1, device=held.device)
    counters = torch.empty(1, dtype=torch.int32, device=held.device)
    arguments: dict[str, Any] = {
        "bias": unused if held.bias is None else held.bias, "scale": unused, "token_scale": unused, "gain": 1.0,
        "partials": counters if row.operand == NATIVE["int8"] else unused, "counters": counters,
        "experts": counters, "order": counters,
        "zero": torch.empty(1, dtype=torch.uint8, device=held.device),
    }  # fmt: skip
    operands = held.operands
    if operands is None:
        assert held.plain is not None
        plain = held.plain.to(getattr(torch, call.dtype)).contiguous()
        return arguments | {"w": plain if row.layout.per_word == 1 else _words(plain)}
    if row.way == "stream":
        scale = operands.per_row(operands.scale).contiguous()
        zero = scale if operands.zero is None else operands.per_row(operands.zero).contiguous()
        strides = {"stride_w": operands.codes.shape[1], "stride_scale": scale.shape[1]}
        return arguments | {"w": operands.codes, "scale": scale, "zero": zero} | strides
    if row.scales:
        narrow = row.compute == "native" or operands.element.bits == 8
        codes = operands.codes.view(torch.uint8 if narrow else torch.int16)
        return arguments | {"w": codes, "groups": operands.scale.contiguous(), "scale": held.above()}
    if row.granularity == "group":
        if row.widen:
            return arguments | {"scale": held.folding()}
        if not row.layout.units:
            scale = operands.per_row(operands.scale).contiguous()
            return arguments | {"w": operands.codes, "scale": scale, "gain": _gain(row, machine)}
        words = operands.codes if row.layout.per_word == 1 else _words(operands.codes)
        zero = arguments["zero"] if operands.zero is None else operands.zero
        return arguments | {"w": words, "scale": operands.scale, "zero": zero}
    return arguments | {"w": _codes(operands, row), "scale": operands.row_scale, "gain": _gain(row, machine)}


def _codes(operands: Operands, row: Variant) -> Tensor:
    """8-bit codes in the dtype that a row reads."""
    if row.layout.per_word > 1:
        return operands.codes.view(torch.int32)
    return operands.codes.view(_FLOAT8[row.operand]) if row.operand in _FLOAT8 else operands.codes


def _gain(row: Variant, machine: Machine) -> float:
    """What the decoders left to be multiplied: of the weights, and where codes are read of the activations."""
    decoder = row.config(machine.target).constexprs.get("ELEMENT")
    exact = row.compute in ("native", "bf16") or decoder == "hardware"
    gain = 1.0 if exact else _GAINS.get(row.weights or "", 1.0)
    return gain * gain if row.activations and row.layout.per_word > 1 else gain


def _words(held: Tensor) -> Tensor:
    """A weight as int32 words; a copy where it begins inside of one, which only weights mapped from a file do."""
    aligned = held.storage_offset() * held.element_size() % 4 == 0
    return (held if aligned else held.clone()).view(torch.int32)
