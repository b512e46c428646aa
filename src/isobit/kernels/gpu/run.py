"""One weight on one variant: the arguments that never change, what runs before the product, and the launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.kernels.gpu import library, rounding
from isobit.kernels.gpu.before import Halved, Widened
from isobit.kernels.gpu.lane_tiles import for_rows
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.packs import record
from isobit.kernels.gpu.rows import Variant
from isobit.kernels.gpu.tiles import NARROW, Config
from isobit.targets.spec import Target

if TYPE_CHECKING:
    from isobit.kernels.gpu.bind import BoundLinear

_TRITON = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int8: "*i8",
    torch.int16: "*i16", torch.int32: "*i32", torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip
_FLOAT8 = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_SIZES = {"*fp16": 2, "*bf16": 2, "*fp32": 4}
_GAINS = {"e4m3fn": 256.0}  # what the float16 decoder leaves; see decode.py
_CARD_MULTIPROCESSORS = 108  # what a split of K aims at where the card does not say


class Run:
    """A linear on a variant; None for PyTorch's float32 product.

    Args:
        linear: the weight.
        row: the variant, which the weight fits.
        dtype: of the activations.
        most: the largest number of tokens that it is called with, if that is at most ``NARROW``.
    """

    def __init__(self, linear: BoundLinear, row: Variant | None, dtype: torch.dtype, most: int) -> None:
        self.linear, self.row = linear, row
        self.rounding: Any = None
        if row is None:
            return
        if linear.activations is not None:
            self.rounding = rounding.Rounding(linear.activations, linear.input_scale, row.operand, linear.target)
        self.arguments = _weight_arguments(linear, row, dtype)
        if row.library:
            return
        self.widened = Widened(linear, row) if row.widen else None
        self.halved = Halved(linear, row) if row.narrow and dtype == torch.bfloat16 else None
        self.config = _configured(linear, row, dtype, self.arguments, most)
        self.kernel = Kernel(row.entry, self.config, linear.target)
        self.parts = int(self.config.constexprs.get("SPLIT") or 1)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """``x [M, K]`` to ``y [M, N]``."""
        if self.row is None:
            assert self.linear.plain is not None
            bias = None if self.linear.bias is None else self.linear.bias.to(x.dtype)
            y.copy_(F.linear(x, self.linear.plain.to(x.dtype), bias))
            return
        arguments = dict(self.arguments)
        if self.rounding is not None:
            x, arguments["token_scale"] = self.rounding(x)
        if self.row.library:
            self._library(x, y, arguments)
            return
        if self.halved is not None:
            x, arguments["token_scale"] = self.halved(x)
        if self.widened is not None:
            arguments["w"] = self.widened()
        self._launch(x, y, arguments)

    def _library(self, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> None:
        if self.row is not None and self.row.entry.endswith(":mm"):
            library.mm(x, arguments["w"], y)
        else:
            library.scaled_mm(x, arguments["w"], arguments["token_scale"], arguments["scale"], y)

    def _launch(self, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> None:
        assert self.row is not None
        tokens, (n, k) = x.shape[0], (self.linear.n, self.linear.k)
        constants = self.config.constexprs
        if self.config.signature["x"] == "*i32":
            aligned = x.storage_offset() * x.element_size() % 16 == 0
            x = (x if aligned else x.clone()).view(torch.int32)
        k //= self.row.per_word
        arguments |= {"x": x, "y": y, "N": n, "K": k}
        rows = -(-n // int(constants["BLOCK_N"] or 1))
        if self.row.family == "vector":
            self.kernel((rows, tokens), **arguments)
            return
        tiles = rows * -(-tokens // int(constants["BLOCK_M"] or 1))
        if self.parts > 1:
            arguments |= _workspace(
                x, tiles, self.parts * int(constants["BLOCK_N"] or 1) * int(constants["BLOCK_M"] or 1)
            )
        self.kernel((tiles * self.parts,), M=tokens, **arguments)


def _weight_arguments(linear: BoundLinear, row: Variant, dtype: torch.dtype) -> dict[str, Any]:
    """The weight, its scales and bias in the layout of a variant."""
    unused = torch.empty(1, device=linear.device)
    arguments: dict[str, Any] = {"bias": unused if linear.bias is None else linear.bias, "scale": unused}
    spare = {"token_scale": unused, "work": unused, "arrived": unused}
    held = linear.operands
    if held is None:
        assert linear.plain is not None
        plain = linear.plain.to(dtype).contiguous()
        return arguments | spare | {"w": plain if row.per_word == 1 else _words(plain), "gain": 1.0}
    if row.entry.endswith("stream"):
        scale = held.per_row(held.scale).contiguous()
        zero = scale if held.zero is None else held.per_row(held.zero).contiguous()
        strides = {"stride_w": held.codes.shape[1], "stride_scale": scale.shape[1]}
        return arguments | {"w": held.codes, "scale": scale, "zero": zero} | strides
    if row.widen and row.granularity == "group":
        return arguments | spare | {"scale": linear.folding(), "gain": 1.0}
    if row.granularity == "group":
        zero = torch.empty(1, dtype=torch.uint8, device=linear.device) if held.zero is None else held.zero
        words = held.codes if row.per_word == 1 else _words(held.codes)
        return arguments | {"w": words, "scale": held.scale, "zero": zero, "work": unused, "arrived": unused}
    codes = held.codes
    if row.compute == "native" and held.spec.element in _FLOAT8 and row.per_word == 1:
        codes = codes.view(_FLOAT8[held.spec.element])
    arguments |= {"w": codes, "scale": held.row_scale, "token_scale": unused}
    arguments["gain"] = _gain(row, linear.target)
    if row.per_word > 1:
        return arguments | {"w": codes.view(torch.int32)}
    return arguments if row.family == "vector" else arguments | {"work": unused, "arrived": unused}


def _gain(row: Variant, target: Target) -> float:
    """What the decoders left to be multiplied: of the weights, and where codes are read of the activations."""
    exact = row.compute in ("native", "bf16") or row.constexprs(target).get("ELEMENT") == "hardware"
    gain = 1.0 if exact else _GAINS.get(row.weights or "", 1.0)
    return gain * gain if row.activations and row.per_word > 1 else gain


def _words(held: Tensor) -> Tensor:
    """A weight as int32 words; a copy where it begins inside of one, which only weights mapped from a file do."""
    aligned = held.storage_offset() * held.element_size() % 4 == 0
    return (held if aligned else held.clone()).view(torch.int32)


def _configured(linear: BoundLinear, row: Variant, dtype: torch.dtype, arguments: dict[str, Any], most: int) -> Config:
    """The configuration for this weight and at most ``most`` tokens: its types, and constants of the shapes."""
    config = row.config(linear.target)
    constants: dict[str, Any] = {"HAS_BIAS": linear.bias is not None}
    if "UNIT" in config.constexprs:
        constants |= {"UNIT": linear.unit(row), "GROUP": linear.group}
    if "HAS_ZERO" in config.constexprs:
        constants["HAS_ZERO"] = linear.operands is not None and linear.operands.zero is not None
    if ":linear_lanes" in row.entry:
        config = for_rows(config.with_constants(**constants), linear.n)
    known = config.constexprs
    if "EVEN_K" in known:
        constants["EVEN_K"] = linear.k // row.per_word % int(known["BLOCK_K"] or 1) == 0
    if row.entry.endswith("stream"):
        assert linear.operands is not None
        constants |= {
            "BITS": linear.operands.element.bits, "GROUP": linear.group, "HAS_ZERO": linear.operands.zero is not None
        }  # fmt: skip
    if row.family == "few" and most <= NARROW:
        constants["BLOCK_M"] = NARROW
    if known.get("SPLIT", 1) != 1:
        constants["SPLIT"] = _split(linear, config)
    types = {name: _TRITON[value.dtype] for name, value in arguments.items() if isinstance(value, Tensor)}
    types["y"] = _TRITON[linear.out_dtype or dtype]
    if linear.activations is None and row.per_word == 1:
        types["x"] = row.operand if row.narrow else _TRITON[dtype]
    if row.widen:
        types["w"] = row.operand
    types["work"] = config.signature["work"]
    types["arrived"] = "*i32"
    changed = {name: types.get(name, kind) for name, kind in config.signature.items()}
    return Config(changed, {**known, **constants}, config.num_warps, config.num_stages, config.divisible)


def _split(linear: BoundLinear, config: Config) -> int:
    """Parts of K: as many as fill what the multiprocessors hold at once, with at least four steps along K for each."""
    constants = config.constexprs
    n, m = int(constants["BLOCK_N"] or 1), NARROW
    step = int(constants.get("BLOCK_K") or constants.get("UNIT") or 128)
    bits = 4 if "UNIT" in constants else 8 * _SIZES.get(config.signature["w"], 1)
    stage = step * (n * bits // 8 + m * _SIZES.get(config.signature["x"], 1))
    resident = max(1, _shared_memory(linear.target) // (stage * config.num_stages))
    tiles, parts = -(-linear.n // n), 1
    while parts < 8 and 2 * parts * tiles <= resident * _multiprocessors() and linear.k >= 8 * parts * step:
        parts *= 2
    return parts


def _shared_memory(target: Target) -> int:
    """Bytes on a multiprocessor: of the card at hand, or of the target where its kernels are recorded for another."""
    if record.active() is not None or not torch.cuda.is_available():
        return target.shared_memory
    return int(torch.cuda.get_device_properties().shared_memory_per_multiprocessor)


def _multiprocessors() -> int:
    recorder = record.active()
    if recorder is not None:
        return recorder.multiprocessors
    if not torch.cuda.is_available():
        return _CARD_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties().multi_processor_count)


_WORK: dict[tuple[torch.device, int, torch.dtype], tuple[Tensor, Tensor]] = {}


def _workspace(x: Tensor, tiles: int, size: int) -> dict[str, Tensor]:
    """Room for the partial sums of one launch, shared by all launches of a stream, which run one after another."""
    dtype = torch.int32 if x.dtype == torch.int8 else torch.float32
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    work, arrived = _WORK.get((x.device, stream, dtype), (x.new_empty(0), x.new_empty(0)))
    if work.numel() < tiles * size or arrived.numel() < tiles:
        work = torch.empty(max(work.numel(), tiles * size), dtype=dtype, device=x.device)
        arrived = torch.zeros(max(arrived.numel(), tiles), dtype=torch.int32, device=x.device)
        _WORK[x.device, stream, dtype] = (work, arrived)
    return {"work": work, "arrived": arrived}
