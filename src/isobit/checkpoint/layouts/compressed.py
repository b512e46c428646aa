"""compressed-tensors: 8-bit codes as bytes, and narrower ones (and weight-only integers) packed; what isobit writes.

    8 bits          <prefix>.weight (F8_E4M3, F8_E5M2, I8)            <prefix>.weight_scale
    fewer, or       <prefix>.weight_packed (I32, a dense bit stream)  <prefix>.weight_scale
    weight-only int <prefix>.weight_shape (I64 [2])                   <prefix>.weight_zero_point (packed along N)

What a layer's weight is, its tensors decide: their dtypes, and which of them there are. The quantization config must
agree with them; it alone says how activations are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from isobit.checkpoint import ctconfig
from isobit.checkpoint.ctrender import compression_format
from isobit.checkpoint.layouts import compressed_needs, few_bit_scales, zero_points
from isobit.checkpoint.layouts.parts import ELEMENT_OF_DTYPE, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.safetensors import INTEGERS, PLAIN_DTYPES, TensorInfo, unreadable
from isobit.checkpoint.shards import PlannedTensor
from isobit.checkpoint.shown import listed
from isobit.errors import FormatError, SchemeError
from isobit.formats.cuts import Cut, word_span
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.spec import Element, words_of
from isobit.formats.table import element

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader
    from isobit.formats.qtensor import QTensor

CODE_DTYPES = ("F8_E4M3", "F8_E5M2", "I8")  # of codes that are stored one a byte
_PACKED_BITS = (2, 3, 4, 8)


# ---------------------------------------------------------------------- describing


def _claims_packed(infos: Mapping[str, TensorInfo]) -> bool:
    return "weight_packed" in infos and "weight" not in infos


def _claims_bytes(infos: Mapping[str, TensorInfo]) -> bool:
    return "weight" in infos and infos["weight"].dtype not in PLAIN_DTYPES


def describe_bytes(parts: Parts) -> Described:
    """A weight whose codes are stored one a byte."""
    info = parts.infos["weight"]
    return _described(parts, info, tuple(info.shape), ELEMENT_OF_DTYPE.get(info.dtype))


def _describe_packed(parts: Parts) -> Described:
    info = parts.infos["weight_packed"]
    if len(info.shape) != 2:
        return _described(parts, info, info.shape, None)
    n, words = info.shape
    width = words * 8
    if "weight_shape" in parts.infos:  # a weight of which nobody can say how wide it is fits no format
        sizes = parts.numbers("weight_shape")
        width = max(0, sizes[1]) if sizes is not None and len(sizes) == 2 else 0
    bits = next((bits for bits in _PACKED_BITS if words_of(width, bits) == words), None)
    name = None if bits is None else f"int{bits}"
    said = None if parts.group is None or parts.group.weights is None else element(parts.group.weights.element)
    if said is not None and said.kind == "float" and said.words(width) == words:
        name = said.name  # the words alone do not show what the codes are
    return _described(parts, info, (n, width), name)


def _described(parts: Parts, codes: TensorInfo, shape: tuple[int, ...], name: str | None) -> Described:
    spec = None if name is None else _spec(parts, shape, name)
    activations = None if parts.group is None else parts.group.activations
    return Described(shape, math.prod(shape), spec, activations, f"{codes.dtype.lower()} with scales")


def _spec(parts: Parts, shape: tuple[int, ...], name: str) -> WeightSpec | None:
    """The format of a weight whose codes are of an element format; None when its tensors fit no format isobit knows.

    What the config says is taken where the tensors agree: a 64-row weight in one block doesn't show the block's height.
    """
    scale = parts.infos.get("weight_scale") or parts.infos.get("weight_scale_inv")
    if scale is None or len(shape) != 2 or 0 in (*shape, *scale.shape):
        return None
    # Integers below 8 bits may be stored one per byte: then the dtype shows int8, and the config their width.
    possible = ("int8", "int4", "int3", "int2") if name == "int8" else (name,)
    said = None if parts.group is None else parts.group.weights
    if said is not None and said.element.removeprefix("u") in possible and _fits(said, shape, scale):
        return said
    try:
        return _by_scale(name, shape, tuple(scale.shape), "weight_zero_point" not in parts.infos)
    except (FormatError, SchemeError):  # such as int8 with a zero point: described by its dtypes instead
        return None


def _fits(spec: WeightSpec, shape: tuple[int, ...], scale: TensorInfo) -> bool:
    n, k = shape
    return (spec.group is None or k % spec.group == 0) and math.prod(spec.scale_shape(n, k)) == scale.numel


def _by_scale(name: str, shape: tuple[int, ...], scale: tuple[int, ...], symmetric: bool) -> WeightSpec | None:
    """The spec of a weight whose config says nothing, or something else, from the shape of its scales."""
    n, k = shape
    name = name if symmetric else f"u{name}"
    if math.prod(scale) == 1 and n > 1:
        return WeightSpec(name, "tensor", symmetric=symmetric)
    if scale in ((n,), (n, 1)):
        return WeightSpec(name, "channel", symmetric=symmetric)
    if len(scale) == 2 and scale[0] == n and k % scale[1] == 0:
        return WeightSpec(name, "group", k // scale[1], symmetric=symmetric)
    if len(scale) == 2:
        return WeightSpec(name, "block", block=(_block(n, scale[0]), _block(k, scale[1])), symmetric=symmetric)
    return None


def _block(size: int, blocks: int) -> int:
    """The edge of a block, given how many cover ``size``: a power of two where one fits, as every tool uses."""
    least = -(-size // blocks)
    power = 1 << (least - 1).bit_length()
    return power if -(-size // power) == blocks else least


# ---------------------------------------------------------------------- writing


def _written(
    spec: WeightSpec, activations: ActSpec | None, n: int, k: int, scale_dtype: str
) -> tuple[PlannedTensor, ...] | None:
    """The tensors of a weight, by part, in the order in which they are written; None for scales that are no floats."""
    if spec.scale is not None:
        return None
    row, scales = element(spec.element), spec.scale_shape(n, k)
    if compression_format(spec, activations) == "pack-quantized":
        found = [
            PlannedTensor("weight_packed", "I32", (n, row.words(k))),
            PlannedTensor("weight_shape", "I64", (2,)),
        ]
    else:
        found = [PlannedTensor("weight", compressed_needs.DTYPE_OF_ELEMENT.get(row.name, "U8"), (n, k))]
    found.append(PlannedTensor("weight_scale", scale_dtype, scales))
    if not spec.symmetric:
        found.append(PlannedTensor("weight_zero_point", "I32", (row.words(scales[0]), *scales[1:])))
    if activations is not None and activations.calibrated:
        found.append(PlannedTensor("input_scale", "F32", (1,)))
    return tuple(found)


def write(
    weight: QTensor, activations: ActSpec | None, input_scale: Tensor | None = None, rows: int | None = None
) -> dict[str, Tensor]:
    """The tensors to store a weight in, by part; reading is the inverse.

    Args:
        weight: the quantized weight.
        activations: how inputs are rounded: int8 weights are stored as bytes with, and packed without, rounding.
        input_scale: one number, for static activations.
        rows: of the whole weight, where this is some of them.

    Raises:
        FormatError: isobit does not write such scales.
    """
    import torch

    from isobit.formats import pack

    stored: dict[str, Tensor] = {}
    row = weight.element
    if compression_format(weight.spec, activations) == "pack-quantized":
        stored["weight_packed"] = weight.codes if row.bits < 8 else pack.pack(weight.codes, row)
        stored["weight_shape"] = torch.tensor((rows or weight.shape[0], weight.shape[1]), dtype=torch.int64)
    else:
        assert row.torch_name is not None
        stored["weight"] = weight.codes.view(getattr(torch, row.torch_name))
    stored["weight_scale"] = weight.scale
    if weight.zero is not None:
        stored["weight_zero_point"] = pack.pack(weight.zero.t().contiguous(), row).t().contiguous()
    if input_scale is not None:
        stored["input_scale"] = input_scale.reshape(1)
    return {part: tensor.contiguous() for part, tensor in stored.items()}


# ---------------------------------------------------------------------- reading


def read_bytes(reader: Reader, scale_part: str = "weight_scale") -> LinearWeight:
    """An 8-bit weight, one byte per code; narrower integers with rounded activations come so, too."""
    import torch

    info = reader.info("weight")
    if info.dtype not in CODE_DTYPES:
        raise reader.error("weight", unreadable(info.dtype))
    wide = reader.group("weight").integers
    if wide is not None:
        return zero_points.read(reader, wide, "weight")
    spec, activations = reader.configured("weight")
    found, wanted = element(ELEMENT_OF_DTYPE[info.dtype]), element(spec.element)
    narrow = found.name == "int8" and wanted.kind == "int" and wanted.signed and wanted.bits < 8
    if found != wanted and not narrow:
        raise reader.error("weight", f"is {info.dtype}, but quantization_config says {spec.element}")
    n, k = reader.matrix("weight")
    if scale_part not in reader.infos:
        raise reader.error("weight", f"is {info.dtype} but has no weight_scale: its values are unknown")
    if spec.granularity == "tensor" and reader.info(scale_part).numel == n > 1:
        spec = replace(spec, granularity="channel")  # the fp8 method leaves open which of the two it is
    where = reader.cut("weight", spec, n, k)
    codes = reader.take("weight", where.rows, where.columns)
    codes = codes if found.name == "int8" else codes.view(torch.uint8)
    if narrow:
        codes = _inwords_of(reader, codes, wanted)
    scale = reader.scale(scale_part, spec, n, k, where)
    _require_no_zero_point(reader)
    weight = reader.qtensor("weight", spec, where, codes, scale)
    if spec.scale is not None:
        few_bit_scales.require_finite(reader, weight)
    return reader.linear(weight, activations, reader.input_scale(activations), n)


def _inwords_of(reader: Reader, codes: Tensor, row: Element) -> Tensor:
    """Narrow codes that came one per byte, packed: compressed-tensors stores them so beside rounded activations."""
    from isobit.formats import pack

    try:
        return pack.pack(codes, row)
    except FormatError as error:
        raise reader.error("weight", str(error)) from None


def _read_packed(reader: Reader) -> LinearWeight:
    """A weight of 2 to 8 bits in int32 words."""
    from isobit.formats import pack

    wide = reader.group("weight_packed").integers
    if wide is not None:
        return zero_points.read(reader, wide, "weight_packed")
    spec, activations = reader.configured("weight_packed")
    row = element(spec.element)
    if row.kind != "int" and row.bits == 8:
        raise reader.error("weight_packed", f"packed weights of {row.name} cannot be read")
    n, k = _packed_shape(reader, row)
    if "weight_g_idx" in reader.infos:
        _refuse_act_order(reader, spec, k)
    if "weight_scale" not in reader.infos:
        raise reader.error("weight_packed", "has no weight_scale: its values are unknown")
    where = reader.cut("weight_packed", spec, n, k)
    codes = reader.take("weight_packed", where.rows, _word_columns(reader, row, k, where))
    codes = codes if row.bits < 8 else pack.unpack(codes, row, where.shape[1])
    scale = reader.scale("weight_scale", spec, n, k, where)
    zero = None
    if spec.symmetric:
        _require_no_zero_point(reader)
    else:
        zero = _zero_point(reader, spec, n, k, where)
    weight = reader.qtensor("weight_packed", spec, where, codes, scale, zero)
    return reader.linear(weight, activations, reader.input_scale(activations), n)


def _packed_shape(reader: Reader, row: Element) -> tuple[int, int]:
    """The sizes of a packed weight, which its words must fit."""
    from isobit.checkpoint.small import read_weight_shape

    dtype = reader.info("weight_packed").dtype
    if dtype != "I32":
        raise reader.error("weight_packed", f"is {dtype}, not I32")
    n, words = reader.matrix("weight_packed")
    if "weight_shape" not in reader.infos:
        raise reader.error("weight_shape", compressed_needs.NO_SHAPE)
    shape = read_weight_shape(reader.source, reader.name("weight_shape"))
    reader.used.append(reader.name("weight_shape"))
    if len(shape) != 2 or shape[0] != n or shape[1] < 1 or row.words(shape[1]) != words:
        raise reader.error(
            "weight_packed", f"[{n}, {words}] does not hold {row.bits}-bit codes of weight_shape {list(shape)}"
        )
    return n, shape[1]


def _word_columns(reader: Reader, row: Element, k: int, where: Cut) -> slice:
    """The words of some columns: those of 8-bit integers are packed here and nowhere else."""
    try:
        return word_span(row, k, where.columns)
    except FormatError as error:
        raise reader.error("weight_packed", str(error)) from None


def _zero_point(reader: Reader, spec: WeightSpec, n: int, k: int, where: Cut) -> Tensor:
    """Zero points as codes ``[N, K / group]``: packed along N, or (older tools) one int8 each."""
    import torch

    from isobit.formats import pack

    row, part = element(spec.element), "weight_zero_point"
    if part not in reader.infos:
        raise reader.error(part, compressed_needs.NO_ZERO_POINT)
    shape, info = spec.scale_shape(n, k), reader.info(part)
    lines, places = where.scales if where.scales else (slice(0, 1), None)
    if info.dtype == "I32" and info.shape == (row.words(n), *shape[1:]):
        words = reader.take(part, None, places)
        return pack.unpack(words.t().contiguous(), row, n).t()[lines].contiguous()
    if info.dtype == "I8" and info.shape == shape:
        signed = reader.take(part, lines, places).to(torch.int16) + (1 << (row.bits - 1))
        if bool(((signed < 0) | (signed >= 1 << row.bits)).any()):
            raise reader.error(part, f"holds values beyond {row.bits} bits")
        return signed.to(torch.uint8)
    raise reader.error(
        part,
        f"is {info.dtype} {listed(info.shape)}; zero points of a [{n}, {k}] weight are I32"
        f" {[row.words(n), *shape[1:]]} (packed) or I8 {list(shape)}",
    )


def _require_no_zero_point(reader: Reader) -> None:
    """Symmetric weights may come with zero points that are all zero."""
    part = "weight_zero_point"
    if part in reader.infos and reader.holds_numbers(part):
        raise reader.error(part, "is not zero, but quantization_config says the weight is symmetric")


def _refuse_act_order(reader: Reader, spec: WeightSpec, k: int) -> None:
    import torch

    part, info = "weight_g_idx", reader.info("weight_g_idx")
    if info.dtype not in INTEGERS or info.shape != (k,):
        raise reader.error(part, f"is {info.dtype} {listed(info.shape)}; group indexes are I32 [{k}]")
    index = reader.take(part).to(torch.int64)
    in_order = spec.group is not None and torch.equal(index, torch.arange(index.numel()) // spec.group)
    if not in_order and bool((index >= 0).any()):
        raise reader.error(
            part,
            "the groups are not runs of neighbouring inputs (act-order, desc_act): isobit cannot run this;"
            " use a version quantized without it (actorder 'weight' or none)",
        )


PACKED = Layout(
    "compressed-tensors, packed",
    "weight_packed",
    ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    _claims_packed,
    _describe_packed,
    _read_packed,
    scales=("weight_scale",),
    marks=("weight_packed",),
    configs={ctconfig.METHOD: ctconfig.parse},
    needs=compressed_needs.packed,
    written=_written,
)
BYTES = Layout(
    "compressed-tensors, a byte a code",
    "weight",
    ("weight_scale", "weight_zero_point"),
    _claims_bytes,
    describe_bytes,
    read_bytes,
    dtypes=CODE_DTYPES,
    scales=("weight_scale",),
    marks=("weight_scale",),
    needs=compressed_needs.bytes_of,
)
