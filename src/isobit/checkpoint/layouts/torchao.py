"""torchao in safetensors, as transformers saves it: codes a byte each, beside them scales and zero points.

    _weight_qdata  I8 or F8_E4M3 [N, K]   _weight_scale  F32 or the model's dtype   _weight_zero_point  I8, as scales

A weight is ``(code - zero_point) * scale``. What the codes are, and how inputs are rounded, ``quant_type`` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.integers import whole_number
from isobit.checkpoint.layouts.needs import Need, Needs, scale_shapes, scales
from isobit.checkpoint.layouts.parts import ELEMENT_OF_DTYPE, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

_KEYS = frozenset(
    """quant_method quant_type modules_to_not_convert include_input_output_embeddings untie_embedding_weights
    quant_type_kwargs""".split()
)  # fmt: skip
_ZEROS = ("I8", "I32", "I64")  # dtypes of zero points
_ELEMENTS = {"int8": "int8", "int4": "int4", "int3": "int3", "int2": "int2"}
_HALF_STEPS = (
    "torchao divides the largest input of a token by 127.5 for its 8-bit scale; isobit divides by 127: the same number "
    "of bits, other codes"
)


def _parse(section: dict[str, Any]) -> Quantization:
    kinds = section.get("quant_type")
    if not isinstance(kinds, dict) or not isinstance(kinds.get("default"), dict) or len(kinds) != 1:
        reasons = ["isobit reads quant_type with one configuration, the default, as torchao 0.13 and later write it"]
        raise Unsupported(f"torchao's quant_type {short(kinds)}", reasons, INSTEAD)
    kind, said = _fields(kinds["default"])
    notes = ignored_keys(key for key in section if key not in _KEYS)
    make = _CONFIGS.get(kind)
    if make is None:
        known = ", ".join(_CONFIGS)
        raise Unsupported(f"torchao's {short(kind)}", [f"isobit reads {known}"], INSTEAD)
    try:
        weights, activations = make(said)
    except SchemeError as error:
        raise CheckpointError(f"quantization_config: {error}") from None
    if activations is not None and activations.element == "int8":
        notes.append(_HALF_STEPS)
    targets = ("Linear", "Embedding") if section.get("include_input_output_embeddings") is True else ("Linear",)
    skipped = names(section.get("modules_to_not_convert"), "modules_to_not_convert")
    return Quantization(
        (Group(targets, weights, activations),), skipped, "torchao", kind, tuple(notes), ignores_parts=True
    )


def _fields(value: Any) -> tuple[str, Mapping[str, Any]]:
    """The name of an object as torchao writes it, and its fields."""
    if not isinstance(value, dict) or not isinstance(value.get("_type"), str):
        raise CheckpointError(f"quantization_config: {short(value)} is no configuration of torchao's")
    fields = value.get("_data")
    return value["_type"], fields if isinstance(fields, dict) else {}


def _value(said: Mapping[str, Any], key: str, default: str) -> str:
    """The text of a field that is a member of an enumeration or a dtype."""
    found = said.get(key)
    found = found.get("_data") if isinstance(found, dict) else found
    return text(found, default, key).removeprefix("torch.")


def _granularity(said: Mapping[str, Any], element_name: str) -> WeightSpec:
    """What shares a scale."""
    found = said.get("granularity")
    if found is None and said.get("group_size") is not None:
        return WeightSpec(element_name, "group", whole_number(said, ("group_size",)))
    name, fields = ("PerRow", {}) if found is None else _fields(found)
    if name == "PerGroup":
        return WeightSpec(element_name, "group", whole_number(fields, ("group_size",)))
    if name in ("PerRow", "PerAxis"):
        return WeightSpec(element_name, "channel")
    if name == "PerTensor":
        return WeightSpec(element_name, "tensor")
    raise Unsupported(f"torchao's granularity {short(name)}", ["isobit reads tensors, rows and groups"], INSTEAD)


def _int8(said: Mapping[str, Any]) -> tuple[WeightSpec, None]:
    return _granularity(said, "int8"), None


def _int8_dynamic(said: Mapping[str, Any]) -> tuple[WeightSpec, ActSpec]:
    if _value(said, "act_mapping_type", "symmetric") != "symmetric" or said.get("weight_only_decode"):
        reasons = ["inputs are rounded with zero points, or in prompts only, which isobit does not compute"]
        raise Unsupported("torchao's Int8DynamicActivationInt8WeightConfig of this kind", reasons, INSTEAD)
    return _granularity(said, "int8"), ActSpec("int8", "token")


def _float8(said: Mapping[str, Any]) -> tuple[WeightSpec, None]:
    name = _value(said, "weight_dtype", "float8_e4m3fn")
    if name not in ("float8_e4m3fn", "float8_e5m2"):
        raise Unsupported(
            f"torchao's weights of {short(name)}", ["isobit reads float8_e4m3fn and float8_e5m2"], INSTEAD
        )
    return _granularity(said, element(name).name), None


def _float8_dynamic(said: Mapping[str, Any]) -> tuple[WeightSpec, ActSpec]:
    weights, _ = _float8(said)
    if weights.granularity != "channel" or _value(said, "activation_dtype", "float8_e4m3fn") != "float8_e4m3fn":
        reasons = ["isobit rounds inputs per token to e4m3, beside weights with a scale per row"]
        raise Unsupported("torchao's Float8DynamicActivationFloat8WeightConfig of this kind", reasons, INSTEAD)
    return weights, ActSpec("e4m3fn", "token")


def _intx(said: Mapping[str, Any]) -> tuple[WeightSpec, None]:
    name = _value(said, "weight_dtype", "int8")
    if name not in _ELEMENTS or _value(said, "mapping_type", "symmetric") == "asymmetric":
        reasons = [f"isobit reads {', '.join(_ELEMENTS)} without zero points"]
        raise Unsupported(f"torchao's IntxWeightOnlyConfig of {short(name)} of this kind", reasons, INSTEAD)
    if _value(said, "intx_packing_format", "unpacked_to_int8") != "unpacked_to_int8":
        raise Unsupported("torchao's packed integers", ["isobit reads UNPACKED_TO_INT8"], INSTEAD)
    return _granularity(said, _ELEMENTS[name]), None


_CONFIGS: dict[str, Any] = {
    "Int8WeightOnlyConfig": _int8,
    "Int8DynamicActivationInt8WeightConfig": _int8_dynamic,
    "Float8WeightOnlyConfig": _float8,
    "Float8DynamicActivationFloat8WeightConfig": _float8_dynamic,
    "IntxWeightOnlyConfig": _intx,
}


# ---------------------------------------------------------------------- tensors


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "_weight_qdata" in infos


def _describe(parts: Parts) -> Described:
    shape = parts.infos["_weight_qdata"].shape
    spec, activations = (None, None) if parts.group is None else (parts.group.weights, parts.group.activations)
    spec = spec if len(shape) == 2 else None
    return Described(shape, math.prod(shape), spec, activations, "codes of torchao")


def _needs(parts: Parts, n: int, k: int) -> Needs:
    spec = None if parts.group is None else parts.group.weights
    if spec is None:
        return ()
    name = spec.element if element(spec.element).bits == 8 else "int8"
    dtypes = tuple(dtype for dtype, known in ELEMENT_OF_DTYPE.items() if known == name)
    return (
        Need("_weight_qdata", dtypes, ((n, k),)),
        *scales("_weight_scale", spec, n, k),
        Need("_weight_zero_point", _ZEROS, scale_shapes(spec, n, k), optional=True),
    )


def _read(reader: Reader) -> LinearWeight:
    import torch

    from isobit.formats import pack

    spec, activations = reader.configured("_weight_qdata")
    info, row = reader.info("_weight_qdata"), element(spec.element)
    if ELEMENT_OF_DTYPE.get(info.dtype) != (row.name if row.bits == 8 else "int8"):
        raise reader.error("_weight_qdata", f"is {info.dtype}, but quantization_config says {spec.element}")
    n, k = reader.matrix("_weight_qdata")
    if "_weight_scale" not in reader.infos:
        raise reader.error("_weight_scale", "is missing: the values of the codes are unknown")
    where = reader.cut("_weight_qdata", spec, n, k)
    codes = reader.take("_weight_qdata", where.rows, where.columns)
    if row.bits < 8:
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < row.codes.start or high >= row.codes.stop:
            raise reader.error("_weight_qdata", f"holds codes from {low} to {high}, which {row.name} does not have")
        codes = pack.pack(codes, row)
    scale = reader.scale("_weight_scale", spec, n, k, where)
    if "_weight_zero_point" in reader.infos and reader.holds_numbers("_weight_zero_point"):
        raise reader.error("_weight_zero_point", "is not zero, but quantization_config says codes are symmetric")
    codes = codes if row.kind == "int" else codes.view(torch.uint8)
    return reader.linear(reader.qtensor("_weight_qdata", spec, where, codes, scale), activations, None, n)


LAYOUT = Layout(
    "torchao", "_weight_qdata", ("_weight_scale", "_weight_zero_point"), _claims, _describe, _read,
    scales=("_weight_scale",), marks=("_weight_qdata",), configs={"torchao": _parse}, needs=_needs,
)  # fmt: skip
