"""torchao in safetensors, as transformers saves it: codes a byte each, beside them scales and zero points.

    _weight_qdata  I8 or F8_E4M3 [N, K]   _weight_scale  F32 or the model's dtype   _weight_zero_point  I8, as scales

A weight is ``(code - zero_point) * scale``. What the codes are, and how inputs are rounded, ``quant_type`` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.integers import group_of, whole_number
from isobit.checkpoint.layouts.needs import Need, Needs, scale_shapes, scales
from isobit.checkpoint.layouts.parts import ELEMENT_OF_DTYPE, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Integers, Quantization
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
_BITS = {f"int{bits}": bits for bits in range(1, 9)}
_BY_MODULE = ("FqnToConfig", "ModuleFqnToConfig")
_LISTS = ("fqn_to_config", "module_fqn_to_config")
_HALF_STEPS = (
    "torchao divides the largest input of a token by 127.5 for its 8-bit scale; isobit divides by 127: the same number "
    "of bits, other codes"
)
_AS_THEY_ARE = (
    "torchao rounds the inputs of each token to 8 bits with a zero point; isobit takes them as they are: weights alone "
    "are rounded"
)


def _parse(section: dict[str, Any]) -> Quantization:
    kinds = section.get("quant_type")
    if not isinstance(kinds, dict) or not isinstance(kinds.get("default"), dict) or len(kinds) != 1:
        reasons = ["isobit reads quant_type with one configuration, the default, as torchao 0.13 and later write it"]
        raise Unsupported(f"torchao's quant_type {short(kinds)}", reasons, INSTEAD)
    kind, said = _fields(kinds["default"])
    notes = ignored_keys(key for key in section if key not in _KEYS)
    embeddings = section.get("include_input_output_embeddings") is True
    targets = ("Linear", "Embedding") if embeddings else ("Linear",)
    if kind in _BY_MODULE:
        groups = _of_modules(said, notes)
    else:
        groups = (_group(targets, kind, said, notes),)
    skipped = names(section.get("modules_to_not_convert"), "modules_to_not_convert")
    return Quantization(groups, skipped, "torchao", kind, tuple(dict.fromkeys(notes)), ignores_parts=True)


def _of_modules(said: Mapping[str, Any], notes: list[str]) -> tuple[Group, ...]:
    """The groups of a configuration for each module: names, patterns in their order, and what is left."""
    listed = next((said[key] for key in _LISTS if isinstance(said.get(key), dict) and said[key]), None)
    if listed is None:
        raise CheckpointError(f"quantization_config: {_LISTS[0]} must be a JSON object of modules")
    found = []
    for number, (key, one) in enumerate(listed.items()):
        target = key.removesuffix(".weight").removesuffix("\\")
        if key.startswith("re:"):  # the first that matches a whole name; isobit goes by the order of letters
            target = f"re:(?#{number:06d})(?:{target.removeprefix('re:')})$"
        elif key == "_default":
            target = "Linear"
        found.append(Group((target,), None, None) if one is None else _group((target,), *_fields(one), notes))
    return tuple(found)


def _group(targets: tuple[str, ...], kind: str, said: Mapping[str, Any], notes: list[str]) -> Group:
    make = _CONFIGS.get(kind)
    if make is None:
        known = ", ".join((*_CONFIGS, *_BY_MODULE))
        raise Unsupported(f"torchao's {short(kind)}", [f"isobit reads {known}"], INSTEAD)
    try:
        found = make(said)
    except SchemeError as error:
        raise CheckpointError(f"quantization_config: {error}") from None
    notes += found.notes
    if isinstance(found.weights, Integers):
        return group_of(targets, found.weights)
    return Group(targets, found.weights, found.activations)


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


@dataclass(frozen=True)
class _Kind:
    """What a configuration says.

    Attributes:
        weights: how they are stored; integers with zero points as other tools' are.
        activations: how inputs are rounded; None when they are not.
        notes: what people should know.
    """

    weights: WeightSpec | Integers
    activations: ActSpec | None = None
    notes: tuple[str, ...] = ()


def _granularity(said: Mapping[str, Any], element_name: str, key: str = "granularity") -> WeightSpec:
    """What shares a scale."""
    found = said.get(key)
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


def _int8(said: Mapping[str, Any]) -> _Kind:
    return _Kind(_granularity(said, "int8"))


def _int8_dynamic(said: Mapping[str, Any]) -> _Kind:
    if _value(said, "act_mapping_type", "symmetric") != "symmetric" or said.get("weight_only_decode"):
        reasons = ["inputs are rounded with zero points, or in prompts only, which isobit does not compute"]
        raise Unsupported("torchao's Int8DynamicActivationInt8WeightConfig of this kind", reasons, INSTEAD)
    return _Kind(_granularity(said, "int8"), ActSpec("int8", "token"), (_HALF_STEPS,))


def _float8(said: Mapping[str, Any]) -> _Kind:
    return _Kind(_float8_weights(said))


def _float8_weights(said: Mapping[str, Any]) -> WeightSpec:
    name = _value(said, "weight_dtype", "float8_e4m3fn")
    if name not in ("float8_e4m3fn", "float8_e5m2"):
        raise Unsupported(
            f"torchao's weights of {short(name)}", ["isobit reads float8_e4m3fn and float8_e5m2"], INSTEAD
        )
    return _granularity(said, element(name).name)


def _float8_dynamic(said: Mapping[str, Any]) -> _Kind:
    weights = _float8_weights(said)
    if weights.granularity != "channel" or _value(said, "activation_dtype", "float8_e4m3fn") != "float8_e4m3fn":
        reasons = ["isobit rounds inputs per token to e4m3, beside weights with a scale per row"]
        raise Unsupported("torchao's Float8DynamicActivationFloat8WeightConfig of this kind", reasons, INSTEAD)
    return _Kind(weights, ActSpec("e4m3fn", "token"))


def _intx(said: Mapping[str, Any], front: str = "") -> _Kind:
    """Integers of 1 to 8 bits, a byte each; ``front`` is what names of fields begin with."""
    name = _value(said, "weight_dtype", "int8")
    bits = _BITS.get(name)
    if bits is None:
        raise Unsupported(f"torchao's integers of {short(name)}", [f"isobit reads {', '.join(_BITS)}"], INSTEAD)
    if _value(said, "intx_packing_format", "unpacked_to_int8") != "unpacked_to_int8":
        raise Unsupported("torchao's packed integers", ["isobit reads UNPACKED_TO_INT8"], INSTEAD)
    held = name if bits in (2, 3, 4) else "int8"
    spec = _granularity(said, held, f"{front}granularity")
    if _value(said, f"{front}mapping_type", "symmetric") != "asymmetric":
        wide = f"integers of {bits} bits take 8 bits each in memory: no kernel of isobit reads such codes"
        return _Kind(spec, notes=() if element(held).bits == bits else (wide,))
    if spec.granularity == "tensor":
        reasons = ["isobit reads zero points of rows and groups"]
        raise Unsupported("torchao's integers with one zero point of a tensor", reasons, INSTEAD)
    return _Kind(Integers(bits, spec.group, symmetric=False))


def _intx_dynamic(said: Mapping[str, Any]) -> _Kind:
    found = _intx(said, "weight_")
    symmetric = _value(said, "act_mapping_type", "asymmetric") == "symmetric"
    if symmetric and isinstance(found.weights, WeightSpec):
        return _Kind(found.weights, ActSpec("int8", "token"), (*found.notes, _HALF_STEPS))
    return _Kind(found.weights, None, (*found.notes, _AS_THEY_ARE))


_CONFIGS: dict[str, Callable[[Mapping[str, Any]], _Kind]] = {
    "Int8WeightOnlyConfig": _int8,
    "Int8DynamicActivationInt8WeightConfig": _int8_dynamic,
    "Float8WeightOnlyConfig": _float8,
    "Float8DynamicActivationFloat8WeightConfig": _float8_dynamic,
    "IntxWeightOnlyConfig": _intx,
    "Int8DynamicActivationIntxWeightConfig": _intx_dynamic,
}


# ---------------------------------------------------------------------- tensors


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "_weight_qdata" in infos


def _describe(parts: Parts) -> Described:
    shape, group = parts.infos["_weight_qdata"].shape, parts.group
    spec, activations = (None, None) if group is None or len(shape) != 2 else (group.weights, group.activations)
    label = "codes of torchao" if group is None or not group.widened else group.widened
    return Described(shape, math.prod(shape), spec, activations, label)


def _shape(group: Group) -> WeightSpec | None:
    """What shares a scale; the element is that of the codes as they are stored."""
    how = group.integers
    if how is None:
        return group.weights
    return WeightSpec("int8", "channel" if how.group is None else "group", how.group)


def _needs(parts: Parts, n: int, k: int) -> Needs:
    spec = None if parts.group is None else _shape(parts.group)
    if spec is None or parts.group is None:
        return ()
    name = spec.element if element(spec.element).bits == 8 else "int8"
    dtypes = tuple(dtype for dtype, known in ELEMENT_OF_DTYPE.items() if known == name)
    zeros = scale_shapes(spec, n, k)
    why = "is missing, but quantization_config says that codes have zero points"
    return (
        Need("_weight_qdata", dtypes, ((n, k),)),
        *scales("_weight_scale", spec, n, k),
        Need("_weight_zero_point", _ZEROS, zeros, optional=parts.group.integers is None, why=why),
    )


def _read(reader: Reader) -> LinearWeight:
    import torch

    from isobit.formats import pack

    how = reader.group("_weight_qdata").integers
    if how is not None:
        return _read_zeros(reader, how)
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


def _read_zeros(reader: Reader, how: Integers) -> LinearWeight:
    """Integers with zero points: 4-bit codes where there are at most so many bits, else plain numbers."""
    import torch

    from isobit.formats import pack

    shape = WeightSpec("int8", "channel" if how.group is None else "group", how.group)
    n, k = reader.matrix("_weight_qdata")
    where = reader.cut("_weight_qdata", shape, n, k)
    codes = reader.take("_weight_qdata", where.rows, where.columns).to(torch.int16)
    scale = reader.scale("_weight_scale", shape, n, k, where)
    part = "_weight_zero_point"
    if part not in reader.infos or reader.info(part).numel != n * shape.scale_shape(n, k)[1]:
        raise reader.error(part, "is missing or misshapen, but quantization_config says that codes have zero points")
    zero = reader.take(part).reshape(shape.scale_shape(n, k))[where.scales].to(torch.int16)
    for name, found in (("_weight_qdata", codes), (part, zero)):
        low, high = (int(bound) for bound in torch.aminmax(found))
        if low < -(1 << (how.bits - 1)) or high >= 1 << (how.bits - 1):
            raise reader.error(name, f"holds numbers from {low} to {high}, which {how.bits} bits do not have")
    if how.spec is None:
        run = codes.shape[1] // scale.shape[1]
        values = (codes.view(len(codes), -1, run) - zero.unsqueeze(-1)).float() * scale.float().unsqueeze(-1)
        return reader.linear(values.flatten(1).to(scale.dtype).contiguous(), None, None, n, complete=True)
    middle = 1 << (how.bits - 1)
    words = pack.pack((codes + middle).to(torch.uint8).contiguous(), "uint4")
    zeros = (zero + middle).to(torch.uint8).contiguous()
    weight = reader.qtensor("_weight_qdata", how.spec, where, words, scale, zeros)
    return reader.linear(weight, None, None, n)


LAYOUT = Layout(
    "torchao", "_weight_qdata", ("_weight_scale", "_weight_zero_point"), _claims, _describe, _read,
    scales=("_weight_scale",), marks=("_weight_qdata",), configs={"torchao": _parse}, needs=_needs,
)  # fmt: skip
