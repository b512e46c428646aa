"""bitsandbytes: codes of a table with a largest magnitude per block (NF4, FP4), and 8-bit integers by rows.

    4 bits  weight  U8 [N * K / 2, 1], two codes a byte, the first in the high bits; the dtype of other storage, too
            weight.absmax  F32 [blocks]; or U8, codes of weight.nested_quant_map with weight.nested_absmax per block
            weight.quant_map  F32 [16]      weight.quant_state.bitsandbytes__nf4  U8, JSON: shape, block, dtype
    8 bits  weight  I8 [N, K]      SCB  F32 [N], the largest magnitude of each row      weight_format  U8

A 4-bit weight is ``table[code] * absmax``, rounded to the dtype of the quant_state; an 8-bit one ``code * SCB / 127``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short, strict
from isobit.checkpoint.layouts.integers import yes_or_no
from isobit.checkpoint.layouts.needs import Need, Wrong
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import CheckpointError
from isobit.formats.schemes import WeightSpec

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

_KINDS = ("nf4", "fp4")
_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in _KINDS)
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_SCALES = ("F32", "BF16", "F16")
_STORAGE = ("U8", "I8", "BF16", "F16", "F32")  # dtypes that hold the bytes of codes
_NO_STATE = "is missing: without it the shape of the weight is unknown"
_LARGEST_STATE = 1 << 16  # bytes
_KEYS = frozenset(
    """quant_method load_in_4bit load_in_8bit _load_in_4bit _load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant
    bnb_4bit_compute_dtype bnb_4bit_quant_storage llm_int8_threshold llm_int8_skip_modules llm_int8_has_fp16_weight
    llm_int8_enable_fp32_cpu_offload target_parameters""".split()
)  # fmt: skip
_NO_OUTLIERS = (
    "bitsandbytes rounds the inputs of 8-bit layers to 8 bits, but for those beyond llm_int8_threshold; isobit takes "
    "all inputs as they are (int8-w8a16)"
)


def _parse(section: dict[str, Any]) -> Quantization:
    four, eight = (yes_or_no(section, f"load_in_{bits}bit", False) for bits in (4, 8))
    if four == eight:
        raise CheckpointError("quantization_config: one of load_in_4bit and load_in_8bit is true for bitsandbytes")
    notes = ignored_keys(key for key in section if key not in _KEYS)
    kind = text(section.get("bnb_4bit_quant_type"), "fp4", "bnb_4bit_quant_type")
    if four and kind not in _KINDS:
        raise CheckpointError(f"quantization_config: bnb_4bit_quant_type {short(kind)} is neither nf4 nor fp4")
    if four:
        group = Group(("Linear",), None, None, widened=f"{kind.upper()} of bitsandbytes")
    else:
        group = Group(("Linear",), WeightSpec("int8", "channel"), None)
        notes.append(_NO_OUTLIERS)
    skipped = names(section.get("llm_int8_skip_modules"), "llm_int8_skip_modules")
    stored = kind if four else "int8"
    return Quantization((group,), skipped, "bitsandbytes", stored, tuple(notes), ignores_parts=True)


# ---------------------------------------------------------------------- 4 bits


@dataclass(frozen=True)
class _State:
    """What a quant_state says.

    Attributes:
        shape: of the weight.
        block: weights per number of absmax, in the order of rows.
        dtype: torch's name of the dtype that it is made for.
        nested_block: numbers of absmax per number of nested_absmax; 0 where absmax holds numbers itself.
        offset: what is added to those.
    """

    shape: tuple[int, int]
    block: int
    dtype: str
    nested_block: int
    offset: float


def _claims_4bit(infos: Mapping[str, TensorInfo]) -> bool:
    return "weight" in infos and ("weight.absmax" in infos or any(part in infos for part in _STATES))


def _describe_4bit(parts: Parts) -> Described:
    info = parts.infos["weight"]
    kind = next((kind for kind, part in zip(_KINDS, _STATES, strict=True) if part in parts.infos), "4-bit")
    return Described((-1, -1), 2 * info.nbytes, label=f"{kind} (bitsandbytes)")


def _needs_4bit(parts: Parts, n: int, k: int) -> Iterator[Need | Wrong]:
    infos, size = parts.infos, math.ceil(n * k / 2)
    part = next((part for part in _STATES if part in infos), _STATES[0])
    nested = any(name in infos for name in _NESTED)
    codes = infos["weight"]
    yield Need("weight", _STORAGE, ((codes.numel, 1), (1, codes.numel)))
    if codes.nbytes != size:
        yield Wrong("weight", f"has {codes.nbytes} bytes; 4-bit codes of [{n}, {k}] take {size}")
    yield Need(part, ("U8",), why=_NO_STATE)
    yield Need("weight.quant_map", ("F32",), numel=16)
    yield from (Need(name, ("F32",), numel=size) for name, size in zip(_NESTED, (None, 256), strict=True) if nested)
    numbers = parts.numbers(part)
    state = None if numbers is None else _stated(bytes(numbers), part, nested)
    if isinstance(state, str):
        yield Wrong(part, state)
    elif state is not None and state.shape != (n, k):
        yield Wrong(part, f"says shape {[*state.shape]}, but config.json makes it [{n}, {k}]")
    count = None if not isinstance(state, _State) else math.ceil(n * k / state.block)
    yield Need("weight.absmax", ("U8",) if nested else _SCALES, numel=count)
    if nested and isinstance(state, _State) and count is not None:
        yield Need(_NESTED[0], ("F32",), numel=math.ceil(count / state.nested_block))


def _read_4bit(reader: Reader) -> LinearWeight:
    import torch

    reader.group("weight")
    state = _state(reader)
    n, k = state.shape
    info = reader.info("weight")
    if info.nbytes != math.ceil(n * k / 2):
        raise reader.error("weight", f"has {info.nbytes} bytes; 4-bit codes of [{n}, {k}] take {math.ceil(n * k / 2)}")
    table = _table(reader, "weight.quant_map", 16)
    scale = _absmax(reader, state)
    rows, columns = reader.span(n, k)
    packed, first = _packed(reader, rows.start * k, rows.stop * k)
    made = torch.empty((rows.stop - rows.start, k), dtype=getattr(torch, state.dtype))
    step = max(1, (1 << 22) // k)
    for begin in range(rows.start, rows.stop, step):
        end = min(begin + step, rows.stop)
        place = torch.arange(begin * k, end * k)
        pair = packed[place // 2 - first]
        codes = torch.where(place % 2 == 0, pair >> 4, pair & 15)
        values = table[codes.long()] * scale[place // state.block]
        made[begin - rows.start : end - rows.start] = values.view(-1, k).to(made.dtype)
    return reader.linear(made[:, columns].contiguous(), None, None, n, complete=True)


def _packed(reader: Reader, begin: int, end: int) -> tuple[Tensor, int]:
    """Bytes with the codes of some numbers, and how many lie in front of them; all where they are stored in words."""
    import torch

    info = reader.info("weight")
    if info.dtype != "U8" or info.shape != (info.numel, 1):
        return reader.take("weight").reshape(-1).view(torch.uint8), 0
    return reader.take("weight", slice(begin // 2, -(-end // 2))).reshape(-1), begin // 2


def _state(reader: Reader) -> _State:
    """The quant_state of a module."""
    part = next((part for part in _STATES if part in reader.infos), None)
    if part is None:
        raise reader.error(_STATES[0], _NO_STATE)
    info = reader.info(part)
    if info.dtype != "U8" or not 0 < info.nbytes <= _LARGEST_STATE:
        raise reader.error(part, f"is {info.dtype} of {info.nbytes} bytes; it is a JSON object as bytes")
    found = _stated(bytes(reader.take(part).reshape(-1).tolist()), part, "weight.nested_absmax" in reader.infos)
    if isinstance(found, str):
        raise reader.error(part, found)
    return found


def _stated(data: bytes, part: str, nested: bool) -> _State | str:
    """What the bytes of a quant_state say; a text says what is wrong with them."""
    try:
        said = strict(data)
    except ValueError as error:
        return str(error)
    if not isinstance(said, dict):
        return f"is no JSON object, but {short(said)}"
    shape, block, inner = said.get("shape"), said.get("blocksize"), said.get("nested_blocksize") if nested else 0
    offset, dtype = said.get("nested_offset", 0.0) if nested else 0.0, said.get("dtype")
    problems = []
    if not (isinstance(shape, list) and len(shape) == 2 and all(_counts(size) for size in shape)):
        problems.append(f"shape {short(shape)} is no two sizes")
    if not _counts(block) or (nested and not _counts(inner)):
        problems.append(f"blocks of {short(block)} and {short(inner)}")
    if dtype not in _DTYPES:
        problems.append(f"dtype {short(dtype)} is none of {', '.join(_DTYPES)}")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not math.isfinite(offset):
        problems.append(f"nested_offset {short(offset)} is no number")
    if said.get("quant_type") not in (None, part.rpartition("__")[2]):
        problems.append(f"quant_type {short(said['quant_type'])} contradicts its own name")
    if problems:
        return "; ".join(problems)
    return _State((shape[0], shape[1]), block, dtype, inner, float(offset))  # type: ignore[index, arg-type]


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40


def _table(reader: Reader, part: str, size: int) -> Tensor:
    """A table of values, float32 ``[size]``."""
    import torch

    _require(reader, part, ("F32",), size)
    table = reader.take(part).reshape(-1)
    if not bool(torch.isfinite(table).all()):
        raise reader.error(part, "holds NaN or infinite numbers")
    return table


def _require(reader: Reader, part: str, dtypes: tuple[str, ...], numbers: int) -> None:
    if part not in reader.infos:
        raise reader.error(part, "is missing from this checkpoint")
    info = reader.info(part)
    if info.dtype not in dtypes or info.numel != numbers:
        message = f"is {info.dtype} with {info.numel} numbers; it should be {' or '.join(dtypes)} with {numbers}"
        raise reader.error(part, message)


def _absmax(reader: Reader, state: _State) -> Tensor:
    """The largest magnitude of each block, float32."""
    import torch

    part, (n, k) = "weight.absmax", state.shape
    count = math.ceil(n * k / state.block)
    if not state.nested_block:
        _require(reader, part, _SCALES, count)
        found = reader.take(part)
        # A version that saves a model after it computed writes them in bfloat16, transposed: this is told by the shape.
        turned = found.dtype == torch.bfloat16 and found.dim() == 2 and found.shape == (k // state.block, n)
        found = (found.t() if turned else found).reshape(-1).float()
    else:
        _require(reader, part, ("U8",), count)
        _require(reader, _NESTED[0], ("F32",), math.ceil(count / state.nested_block))
        inner = reader.take(_NESTED[0]).reshape(-1).repeat_interleave(state.nested_block)[:count]
        found = _table(reader, _NESTED[1], 256)[reader.take(part).reshape(-1).long()] * inner
        found += state.offset
    if not bool(torch.isfinite(found).all()):
        raise reader.error(part, "holds NaN or infinite scales")
    return found


# ---------------------------------------------------------------------- 8 bits


def _claims_8bit(infos: Mapping[str, TensorInfo]) -> bool:
    return "weight" in infos and "SCB" in infos


def _describe_8bit(parts: Parts) -> Described:
    shape = parts.infos["weight"].shape
    spec = WeightSpec("int8", "channel") if len(shape) == 2 and parts.infos["weight"].dtype == "I8" else None
    return Described(shape, math.prod(shape), spec, None, "int8 (bitsandbytes)")


def _needs_8bit(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    return (
        Need("weight", ("I8",), ((n, k),)),
        Need("SCB", _SCALES, numel=n),
        Need("weight_format", ("U8",), numel=1, optional=True),
    )


def _read_8bit(reader: Reader) -> LinearWeight:
    import torch

    spec, activations = reader.configured("weight")
    if reader.info("weight").dtype != "I8" or spec != WeightSpec("int8", "channel"):
        dtype = reader.info("weight").dtype
        raise reader.error("weight", f"is {dtype}; beside SCB it is I8, and quantization_config says load_in_8bit")
    n, k = reader.matrix("weight")
    _require(reader, "SCB", _SCALES, n)
    where = reader.cut("weight", spec, n, k)
    largest = reader.take("SCB").reshape(-1).float()[where.rows]
    if not bool(torch.isfinite(largest).all()):
        raise reader.error("SCB", "holds NaN or infinite scales")
    order = reader.infos.get("weight_format")
    if order is not None and order.numel == 1 and reader.holds_numbers("weight_format"):
        raise reader.error("weight_format", "is not 0 (row): other orders of the codes are not read")
    codes = reader.take("weight", where.rows, where.columns)
    weight = reader.qtensor("weight", spec, where, codes, (largest / torch.full((), 127.0))[:, None])
    return reader.linear(weight, activations, None, n)


FOUR_BITS = Layout(
    "bitsandbytes, 4 bits", "weight", ("weight.absmax", "weight.quant_map", *_NESTED, *_STATES),
    _claims_4bit, _describe_4bit, _read_4bit, marks=("weight.absmax", *_STATES), needs=_needs_4bit,
    configs=dict.fromkeys(("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"), _parse),
)  # fmt: skip
EIGHT_BITS = Layout(
    "bitsandbytes, 8 bits", "weight", ("SCB", "weight_format"), _claims_8bit, _describe_8bit, _read_8bit,
    dtypes=("I8",), marks=("SCB",), needs=_needs_8bit,
)  # fmt: skip
