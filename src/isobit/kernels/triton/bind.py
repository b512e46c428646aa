"""Linears on a GPU: binds a weight once, then picks the variant for the number of tokens at hand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.errors import FormatError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels import layouts, selection
from isobit.kernels.pack import record
from isobit.kernels.tiles import NARROW, Config
from isobit.kernels.triton import rounding
from isobit.kernels.triton.launch import Kernel
from isobit.kernels.variants import Variant
from isobit.targets.spec import Target
from isobit.targets.table import target as lookup

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int8: "*i8",
    torch.int16: "*i16", torch.int32: "*i32", torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip
_SIZES = {"*fp16": 2, "*bf16": 2, "*fp32": 4}
_GAINS = {"e4m3fn": 256.0}  # what the float16 decoder leaves; see decode.py
_CARD_MULTIPROCESSORS = 108  # what a split of K aims at where the card does not say


def bind(
    weight: QTensor | Tensor,
    activations: ActSpec | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    *,
    keep_values: bool = False,
    target: Target | None = None,
    out_dtype: torch.dtype | None = None,
) -> BoundLinear:
    """A function ``[..., K] -> [..., N]`` for one weight on a GPU.

    Args:
        weight: ``[N, K]``, on the device.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` for static activations.
        bias: ``[N]``.
        keep_values: no effect: codes are decoded in registers.
        target: whose lowering runs, of this card's generation or an older one; None for this card's own.
        out_dtype: dtype of the result; None for that of the input.

    Raises:
        Unsupported: no kernel takes these formats on the target; has every reason.
    """
    spec = weight.spec if isinstance(weight, QTensor) else None
    reason = selection.unsupported(spec, activations)
    if reason:
        raise Unsupported(f"a linear with {spec or 'plain'} weights and {activations or 'plain'} activations", [reason])
    return BoundLinear(weight, activations, input_scale, bias, target or here(), out_dtype)


def here() -> Target:
    """The target of the current device.

    Raises:
        Unsupported: it is no target that is known.
    """
    if torch.version.hip is not None:
        return lookup(torch.cuda.get_device_properties().gcnArchName.partition(":")[0])
    major, minor = torch.cuda.get_device_capability()
    return lookup(f"sm_{major}{minor}")


class BoundLinear:
    """One weight, laid out for the kernels that have run it so far."""

    def __init__(
        self, weight: QTensor | Tensor, activations: ActSpec | None, input_scale: Tensor | None, bias: Tensor | None,
        target: Target, out_dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.weight, self.activations, self.target, self.out_dtype = weight, activations, target, out_dtype
        self.spec = weight.spec if isinstance(weight, QTensor) else None
        self.n, self.k = int(weight.shape[0]), int(weight.shape[1])
        self.input_scale = None if input_scale is None else input_scale.float().reshape(1)
        self.bias = layouts.poisoned_bias(weight, bias) if isinstance(weight, QTensor) else bias
        self.scale = self._scale()
        self._words: dict[int, Tensor] = {}
        self._runs: dict[tuple[int, torch.dtype], _Run] = {}

    def _scale(self) -> Tensor | None:
        if not isinstance(self.weight, QTensor):
            return None
        if self.weight.spec.granularity in ("tensor", "channel") and self.weight.element.bits == 8:
            return layouts.row_scales(self.weight)
        return self.weight.scale.float() if self.weight.spec.granularity == "block" else self.weight.scale

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        if x.dtype not in _DTYPES or x.shape[-1] != self.k:
            raise FormatError(
                f"a linear of {self.k} inputs takes float activations [..., {self.k}], not {x.dtype} {list(x.shape)}"
            )
        tokens = x.numel() // self.k
        y = torch.empty((*x.shape[:-1], self.n), dtype=self.out_dtype or x.dtype, device=x.device)
        if tokens:
            self._run(tokens, x.dtype)(x.reshape(tokens, self.k).contiguous(), y.view(tokens, self.n))
        return y

    def forget(self) -> None:
        """Decides anew, at the next call, which kernels run."""
        self._runs.clear()

    def _run(self, tokens: int, dtype: torch.dtype) -> _Run:
        key = (selection.size_class(tokens), dtype)
        if key not in self._runs:
            self._runs[key] = _Run(self, self.variant(tokens, dtype), dtype, key[0])
        return self._runs[key]

    def variant(self, tokens: int, dtype: torch.dtype) -> Variant | None:
        """The kernel for that many tokens; None for torch's own float32 product.

        Raises:
            Unsupported: there is none.
        """
        if self.spec is None and dtype == torch.float32:
            return None
        name = str(dtype).removeprefix("torch.")
        rows, reasons = selection.choose(self.spec, self.activations, name, tokens, self.target)
        refusals = list(reasons)
        for row in rows:
            refusal = self._misfit(row)
            if refusal is None:
                return row
            refusals.append(f"{row.name}: {refusal}")
        what = f"a linear with {self.spec or 'plain'} weights and {self.activations or 'plain'} activations"
        raise Unsupported(f"{what} in {name} on {self.target.name}", refusals)

    def _misfit(self, row: Variant) -> str | None:
        """Why the shape or the groups of this weight do not fit a variant."""
        if row.name.startswith(("few-int4", "few-uint4", "many-int4", "many-uint4")) and row.compute != "f32":
            return None if self.unit(row) else f"groups of {self.group} do not make up its units of K = {self.k}"
        if row.name == "vector-int8-dp4a" and self.k % 4:
            return f"K = {self.k} is not a multiple of 4"
        return None

    @property
    def group(self) -> int:
        """Weights along K that share a scale; K itself for channels and tensors."""
        return (self.spec.group if self.spec is not None else None) or self.k

    def unit(self, row: Variant) -> int | None:
        """Codes of one step of the nibble kernel, or None where none fits."""
        largest = int(row.config(self.target).constexprs.get("UNIT") or 128)
        assert self.spec is not None
        for unit in (256, 128, 64):
            whole = (
                self.k % unit == 0 and self.group % (unit // 4) == 0 and (self.spec.symmetric or self.group % unit == 0)
            )
            if unit <= largest and whole:
                return unit
        return None

    def words(self, unit: int) -> Tensor:
        """The nibbles in units of ``unit``."""
        assert isinstance(self.weight, QTensor)
        if unit not in self._words:
            self._words[unit] = layouts.interleave_nibbles(self.weight, unit)
        return self._words[unit]


class _Run:
    """One weight on one variant: the arguments that never change, and the launch."""

    def __init__(self, linear: BoundLinear, row: Variant | None, dtype: torch.dtype, most: int) -> None:
        self.linear, self.row = linear, row
        self.arguments: dict[str, Any] = {}
        if row is None:
            return
        self.rounding = None
        if linear.activations is not None:
            self.rounding = rounding.Rounding(linear.activations, linear.input_scale, row.operand, linear.target)
        self.arguments = _weight_arguments(linear, row, dtype)
        self.config = _configured(linear, row, dtype, self.arguments, most)
        self.kernel = Kernel(row.entry, self.config, linear.target)
        self.parts = int(self.config.constexprs.get("SPLIT") or 1)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        if self.row is None:
            assert isinstance(self.linear.weight, Tensor)
            bias = None if self.linear.bias is None else self.linear.bias.to(x.dtype)
            y.copy_(F.linear(x, self.linear.weight.to(x.dtype), bias))
            return
        arguments = dict(self.arguments)
        if self.rounding is not None:
            x, arguments["token_scale"] = self.rounding(x)
        tokens, (n, k) = x.shape[0], (self.linear.n, self.linear.k)
        constants = self.config.constexprs
        if self.config.signature["x"] == "*i32":
            x = x.view(torch.int32)
        if self.row.entry.endswith("int8"):
            k //= 4
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
    weight = linear.weight
    unused = torch.empty(1, device=linear.bias.device if linear.bias is not None else _device(weight))
    arguments: dict[str, Any] = {"bias": unused if linear.bias is None else linear.bias, "scale": unused}
    if not isinstance(weight, QTensor):
        return arguments | {
            "w": weight.to(dtype).contiguous(),
            "token_scale": unused,
            "work": unused,
            "arrived": unused,
            "gain": 1.0,
        }
    assert linear.scale is not None
    if row.entry.endswith("stream"):
        return arguments | _stream_arguments(weight)
    if row.granularity == "group":
        unit = linear.unit(row)
        assert unit is not None
        n, groups = weight.shape[0], weight.shape[1] // linear.group
        scale = layouts.by_group(weight.scale.expand(n, groups))
        zero = unused if weight.zero is None else layouts.by_group(weight.zero.expand(n, groups))
        words = linear.words(unit)
        return arguments | {"w": words, "scale": scale, "zero": zero, "work": unused, "arrived": unused}
    codes = weight.codes.contiguous()
    if row.compute == "native" and weight.spec.element != "int8":
        codes = codes.view(torch.float8_e4m3fn if weight.spec.element == "e4m3fn" else torch.float8_e5m2)
    arguments |= {"w": codes, "scale": linear.scale, "token_scale": unused}
    if row.entry.endswith("vector_int8"):
        return arguments | {"w": codes.view(torch.int32)}
    arguments["gain"] = _gain(row)
    return arguments if row.family == "vector" else arguments | {"work": unused, "arrived": unused}


def _stream_arguments(weight: QTensor) -> dict[str, Any]:
    shape = (weight.shape[0], weight.shape[1] // (weight.spec.group or weight.shape[1]))
    zero = weight.scale if weight.zero is None else weight.zero.expand(shape).contiguous()
    return {
        "w": weight.codes.contiguous(), "scale": weight.scale.expand(shape).contiguous(), "zero": zero,
        "stride_w": weight.codes.shape[1], "stride_scale": shape[1],
    }  # fmt: skip


def _gain(row: Variant) -> float:
    """What the decoder of the weights left to be multiplied."""
    return 1.0 if row.compute in ("native", "bf16") else _GAINS.get(row.weights or "", 1.0)


def _configured(linear: BoundLinear, row: Variant, dtype: torch.dtype, arguments: dict[str, Any], most: int) -> Config:
    """The configuration for this weight and at most ``most`` tokens: its types, and constants of the shapes."""
    config = row.config(linear.target)
    known = config.constexprs
    constants: dict[str, Any] = {"HAS_BIAS": linear.bias is not None}
    if "EVEN_K" in known:
        k = linear.k // 4 if row.entry.endswith("int8") else linear.k
        constants["EVEN_K"] = k % int(known["BLOCK_K"] or 1) == 0
    if "UNIT" in known:
        constants |= {"UNIT": linear.unit(row), "GROUP": linear.group, "HAS_ZERO": arguments["zero"].numel() > 1}
    if row.entry.endswith("stream"):
        assert isinstance(linear.weight, QTensor)
        has_zero = linear.weight.zero is not None
        constants |= {"BITS": linear.weight.element.bits, "GROUP": linear.group, "HAS_ZERO": has_zero}
    if row.family == "few" and most <= NARROW:
        constants["BLOCK_M"] = NARROW
    if known.get("SPLIT", 1) != 1:
        constants["SPLIT"] = _split(linear, config)
    types = {name: _TRITON[value.dtype] for name, value in arguments.items() if isinstance(value, Tensor)}
    types["y"] = _TRITON[linear.out_dtype or dtype]
    if linear.activations is None:
        types["x"] = _TRITON[dtype]
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


def _device(weight: QTensor | Tensor) -> torch.device:
    return weight.codes.device if isinstance(weight, QTensor) else weight.device
