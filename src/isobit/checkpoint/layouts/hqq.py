"""HQQ: integers whose zero points are floats, groups along either axis of a reshaped weight.

    W_q  U8 or I32, planes of codes (high bits first) of the weight as lines [groups, group] (axis 1) or [group, groups]
         (axis 0); or the same bytes as floats      scale, zero  [groups, 1] or [1, groups]      shape  I64 [2]
    nbits, group_size, axis, packing (a text as bytes), view_as_float, compute_dtype (a text), and more of the kind

A weight is ``(code - zero) * scale``, each step rounded to the compute dtype, and so no integers of isobit's. hqq's own
files (save_to_safetensors) have no section in ``config.json``; those of transformers name the skipped modules there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.needs import Need, Wrong
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.shown import listed
from isobit.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

# What packing says -> bits of a code, where the planes lie in a word, bytes of a word.
_PACKINGS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "8bit_u8": (8, (0,), 1),
    "4bit_u8": (4, (4, 0), 1),
    "2bit_u8": (2, (6, 4, 2, 0), 1),
    "1bit_u8": (1, tuple(range(7, -1, -1)), 1),
    "3bit_32": (3, tuple(range(27, -1, -3)), 4),
}
_DTYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}
_SCALES = ("F16", "BF16", "F32")
_NEEDED = ("shape", "scale", "zero", "axis", "group_size", "packing")
# What says how the weight was made, and is not needed to read it.
_REST = (
    "nbits", "view_as_float", "compute_dtype", "quant_scale", "quant_zero", "unpack_view_dtype", "offload_meta",
    "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero",
)  # fmt: skip
_CODES = ("U8", "I32", "F16", "BF16", "F32")  # the last of them the same bytes, taken for floats
_WHOLE = ("I64", "I32", "U8")  # of whole numbers
_NEEDED_WHY = "is missing: without it W_q cannot be read"
_LONGEST = 64  # bytes of a text
TITLE = "HQQ's integers, whose zero points are floats"


def _parse(section: dict[str, Any]) -> Quantization:
    notes = ignored_keys(
        key for key in section if key not in ("quant_method", "quant_config", "skip_modules", "targets")
    )
    said = section.get("quant_config")
    if said is not None and not isinstance(said, dict):
        raise CheckpointError(f"quantization_config: quant_config must be a JSON object, not {short(said)}")
    skipped = names(section.get("skip_modules"), "skip_modules")
    targets = names(section.get("targets"), "targets") or ("Linear",)
    group = Group(targets, None, None, widened=TITLE)
    return Quantization((group,), skipped, "hqq", "W_q", tuple(notes), ignores_parts=True)


def _implies(tensors: Mapping[str, str]) -> dict[str, Any] | None:
    found = [name.removesuffix(".W_q") for name in tensors if name.endswith(".W_q")]
    return {"quant_method": "hqq", "targets": found} if found else None


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "W_q" in infos


def _describe(parts: Parts) -> Described:
    shape, bits = (parts.numbers(part) if part in parts.infos else None for part in ("shape", "nbits"))
    label = f"hqq, {bits[0]} bits" if bits is not None and len(bits) == 1 else "hqq"
    if shape is None or len(shape) != 2 or min(shape) < 1:
        return Described((-1, -1), parts.infos["W_q"].nbytes, label=label)
    return Described((shape[0], shape[1]), shape[0] * shape[1], label=label)


def _needs(parts: Parts, n: int, k: int) -> Iterator[Need | Wrong]:
    infos = parts.infos
    yield from (Need(part, _WHOLE, numel=1, why=_NEEDED_WHY) for part in ("axis", "group_size"))
    yield Need("shape", _WHOLE, numel=2, why=_NEEDED_WHY)
    yield Need("packing", ("U8",), why=_NEEDED_WHY)
    yield from (Need(part, _SCALES, why=_NEEDED_WHY) for part in ("scale", "zero"))
    yield Need("compute_dtype", ("U8",), optional=True)
    yield from (Need(part, optional=True) for part in ("W_q", *_REST))
    said = [parts.numbers(part) for part in ("shape", "axis", "group_size")]
    shape, axis, group = (numbers or () for numbers in said)
    packing, dtype = (_said(parts.numbers(part)) for part in ("packing", "compute_dtype"))
    if dtype and dtype not in _DTYPES:
        yield Wrong("compute_dtype", _no_dtype(dtype))
    if len(shape) == 2 and shape != (n, k):
        yield Wrong("shape", f"says {[*shape]}, but config.json makes it [{n}, {k}]")
    elif len(shape) == 2 and len(axis) == len(group) == 1 and packing:
        held = _held(infos["W_q"], (n, k), axis[0], group[0], packing)
        if isinstance(held, Wrong):
            yield held
            return
        lines = ((held[0], 1) if axis[0] == 1 else (1, held[1]),)
        yield from (Need(part, shapes=lines) for part in ("scale", "zero") if part in infos and infos[part].numel != 1)


def _said(numbers: tuple[int, ...] | None) -> str:
    """The text that a tensor of bytes holds."""
    return "" if numbers is None or not all(0 < one < 256 for one in numbers) else bytes(numbers).decode("latin-1")


def _no_dtype(said: str) -> str:
    return f"says {short(said)}; isobit reads {', '.join(_DTYPES)}"


def _held(codes: TensorInfo, shape: tuple[int, int], axis: int, group: int, packing: str) -> tuple[int, int] | Wrong:
    """The lines of codes that hold a weight, and how wide they are; or what contradicts that."""
    n, k = shape
    if packing not in _PACKINGS:
        return Wrong("packing", f"says {short(packing)}; isobit reads {', '.join(_PACKINGS)}")
    if min(n, k, group) < 1 or max(n, k, group) > 1 << 40 or n * k % group or axis not in (0, 1):
        return Wrong("shape", f"says [{n}, {k}] in groups of {group} along axis {axis}, which do not fit")
    if len(codes.shape) != 2 or 0 in codes.shape:
        return Wrong("W_q", f"has shape {listed(codes.shape)}; a weight is a matrix")
    if codes.dtype not in _CODES:
        return Wrong("W_q", f"is {codes.dtype}; it should be {', '.join(_CODES)}")
    height, wide = (n * k // group, group) if axis == 1 else (group, n * k // group)
    _, shifts, size = _PACKINGS[packing]
    if codes.nbytes // codes.shape[0] % size:
        return Wrong("W_q", f"has lines of {codes.nbytes // codes.shape[0]} bytes, which are no whole words")
    stored = codes.shape[0], codes.nbytes // codes.shape[0] // size
    if stored != (-(-height // len(shifts)), wide):
        message = f"holds {stored[0]} lines of {stored[1]} words; {packing} of [{n}, {k}] in groups of {group} takes"
        return Wrong("W_q", f"{message} {-(-height // len(shifts))} of {wide}")
    return height, wide


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Meta:
    """How a weight ``[n, k]`` is stored: as ``height`` lines of ``width`` codes.

    Attributes:
        axis: along which a group lies in those lines.
        dtype: that everything is computed in.
    """

    n: int
    k: int
    height: int
    width: int
    axis: int
    packing: str
    dtype: torch.dtype


def _read(reader: Reader) -> LinearWeight:
    import torch

    from isobit.checkpoint.layouts.planes import lines

    meta = _meta(reader)
    bits, shifts, size = _PACKINGS[meta.packing]
    rows, columns = reader.span(meta.n, meta.k)
    begin, end = rows.start * meta.k, rows.stop * meta.k  # numbers, in the order of lines
    first, last = begin // meta.width, -(-end // meta.width)
    codes = lines(reader, "W_q", first, last, shifts, bits, torch.uint8 if size == 1 else torch.int32)
    scale, zero = (_numbers(reader, part, meta, slice(first, last)) for part in ("scale", "zero"))
    values = ((codes.to(meta.dtype) - zero) * scale).reshape(-1)[begin - first * meta.width : end - first * meta.width]
    if not bool(torch.isfinite(values).all()):
        raise reader.error("scale", f"makes weights that are beyond {str(meta.dtype).removeprefix('torch.')}")
    reader.used += [reader.name(part) for part in _REST if part in reader.infos]
    return reader.linear(values.view(-1, meta.k)[:, columns].contiguous(), None, None, meta.n, complete=True)


def _meta(reader: Reader) -> _Meta:
    """What a module's small tensors say, held against each other."""
    import torch

    missing = next((part for part in _NEEDED if part not in reader.infos), None)
    if missing is not None:
        raise reader.error(missing, _NEEDED_WHY)
    for part in ("quant_scale", "quant_zero"):
        if part in reader.infos and _whole(reader, part, 1) != (0,):
            raise reader.error(part, "is not 0: scales or zero points that are quantized themselves are not read")
    packing = _text(reader, "packing")
    n, k = _whole(reader, "shape", 2)
    (axis,), (group,) = _whole(reader, "axis", 1), _whole(reader, "group_size", 1)
    held = _held(reader.info("W_q"), (n, k), axis, group, packing)
    if isinstance(held, Wrong):
        raise reader.error(held.part, held.why)
    height, wide = held
    said = _text(reader, "compute_dtype") if "compute_dtype" in reader.infos else "torch.float16"
    if said not in _DTYPES:
        raise reader.error("compute_dtype", _no_dtype(said))
    return _Meta(n, k, height, wide, axis, packing, getattr(torch, said.removeprefix("torch.")))


def _numbers(reader: Reader, part: str, meta: _Meta, lines: slice) -> Tensor:
    """Scales or zero points of some lines, as they are computed with: ``[lines, 1]``, ``[1, width]`` or one."""
    import torch

    info = reader.info(part)
    expected = (meta.height, 1) if meta.axis == 1 else (1, meta.width)
    if info.dtype not in _SCALES or (info.shape != expected and info.numel != 1):
        message = f"is {info.dtype} {short([*info.shape])}; it should be {', '.join(_SCALES)} {[*expected]}"
        raise reader.error(part, message)
    by_lines = meta.axis == 1 and info.numel != 1
    found = reader.take(part, lines if by_lines else None).to(meta.dtype)
    if not bool(torch.isfinite(found).all()):
        raise reader.error(part, "holds NaN or infinite numbers")
    return found if by_lines or info.numel != 1 else found.reshape(1, 1)


def _whole(reader: Reader, part: str, count: int) -> tuple[int, ...]:
    """The whole numbers of a small tensor."""
    info = reader.info(part)
    if info.dtype not in _WHOLE or info.numel != count:
        raise reader.error(part, f"is {info.dtype} {short([*info.shape])}; it should be {count} whole numbers")
    return tuple(int(value) for value in reader.take(part).reshape(-1))


def _text(reader: Reader, part: str) -> str:
    info = reader.info(part)
    if info.dtype != "U8" or not 0 < info.numel <= _LONGEST:
        raise reader.error(part, f"is {info.dtype} {short([*info.shape])}; it should be a short text as bytes")
    return bytes(reader.take(part).reshape(-1).tolist()).decode("latin-1")


LAYOUT = Layout(
    "HQQ", "W_q", (), _claims, _describe, _read,
    marks=("W_q",), configs={"hqq": _parse}, private=(*_NEEDED, *_REST), implies=_implies,
    needs=_needs,
)  # fmt: skip
