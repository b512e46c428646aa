"""ModelOpt (TensorRT Model Optimizer): 8 bits a byte as compressed-tensors has them, 4-bit integers in pairs of rows.

    8 bits  weight  F8_E4M3 or I8 [N, K]   weight_scale  F32: one, [N], or [N / 128, 1, K / 128, 1]   input_scale  F32
    4 bits  weight  U8 [N / 2, K], rows 2 i in the low and 2 i + 1 in the high bits, two's complement
            weight_scale  F32 [N, K / group]      weight_scale_2, input_scale  F32, where inputs are 8-bit floats

Its 4-bit floats (NVFP4, MXFP4) are in :mod:`~isobit.checkpoint.layouts.modelopt_floats`.

``pre_quant_scale`` is what inputs are multiplied by. Weights of W4A8 are ``code * weight_scale`` and rounded once more,
to e4m3 with the scale ``weight_scale_2``: what is multiplied are 8-bit floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import translate
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import KV_CACHE, ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts import modelopt_floats as floats
from isobit.checkpoint.layouts.integers import whole_number
from isobit.checkpoint.layouts.needs import OPEN, Need, Needs, Wrong, inputs, scales
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.schemes import ActSpec, WeightSpec

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader
    from isobit.formats.qtensor import QTensor

_STATIC = ActSpec("e4m3fn", "tensor", dynamic=False)
_W4A8 = WeightSpec("e4m3fn", "tensor")
# What quant_algo says -> weights and activations; of 4-bit integers the group size follows.
_ALGORITHMS: dict[str, tuple[WeightSpec, ActSpec | None]] = {
    "fp8": (WeightSpec("e4m3fn", "tensor"), _STATIC),
    "fp8_per_channel_per_token": (WeightSpec("e4m3fn", "channel"), ActSpec("e4m3fn", "token")),
    "fp8_pb_wo": (WeightSpec("e4m3fn", "block", block=(128, 128)), None),
    "w8a8_sq_per_channel": (WeightSpec("int8", "channel"), ActSpec("int8", "tensor", dynamic=False)),
    "w8a16": (WeightSpec("int8", "channel"), None),
    "w4a8_awq": (_W4A8, _STATIC),
    "nvfp4": (floats.NVFP4, floats.NVFP4_INPUTS),
    "nvfp4_awq": (floats.NVFP4, floats.NVFP4_INPUTS),
    "w4a16_nvfp4": (floats.NVFP4, None),
    "mxfp4": (floats.MXFP4, floats.MXFP4_INPUTS),
    "mxfp8": (floats.MXFP8, floats.MXFP8_INPUTS),
}
_BY_POWERS = (
    "ModelOpt takes a power of two above each group of inputs of an MX format so that none is cut off; isobit rounds"
    " them as compressed-tensors does"
)
_FOUR_BITS, _MIXED = "w4a16_awq", "mixed_precision"
_KEYS = frozenset(
    """quant_method quant_algo ignore exclude_modules group_size has_zero_point pre_quant_scale kv_cache_scheme producer
    kv_cache_quant_algo config_groups quantized_layers quantization_method""".split()
)  # fmt: skip
_PATTERN = frozenset("*?[")


def _parse(section: dict[str, Any]) -> Quantization:
    algorithm = text(section.get("quant_algo"), "", "quant_algo")
    notes = ignored_keys(key for key in section if key not in _KEYS)
    if section.get("kv_cache_scheme") or section.get("kv_cache_quant_algo"):
        notes.append(KV_CACHE)
    ignored = section.get("ignore") if section.get("ignore") is not None else section.get("exclude_modules")
    if algorithm == _MIXED:
        groups = _layers(section.get("quantized_layers"))
    else:
        groups = (_group(("Linear",), algorithm, section),)
    inputs = (group.activations for group in groups)
    if any(one is not None and one.scale is not None and one.scale.powers for one in inputs):
        notes.append(_BY_POWERS)
    return Quantization(groups, _ignored(ignored), "modelopt", algorithm, tuple(notes), ignores_parts=True)


def _group(targets: tuple[str, ...], algorithm: str, section: Mapping[str, Any]) -> Group:
    if algorithm == _FOUR_BITS:
        if section.get("has_zero_point"):
            raise Unsupported("this modelopt checkpoint", ["its 4-bit integers have zero points"], INSTEAD)
        size = whole_number(section, ("group_size",), 128)
        try:
            return Group(targets, WeightSpec("int4", "group", size), None)
        except SchemeError as error:
            raise CheckpointError(f"quantization_config: {error}") from None
    if algorithm not in _ALGORITHMS:
        known = ", ".join(name.upper() for name in (*_ALGORITHMS, _FOUR_BITS))
        raise Unsupported(f"ModelOpt's {short(algorithm.upper())}", [f"isobit reads {known}"], INSTEAD)
    weights, activations = _ALGORITHMS[algorithm]
    size = whole_number(section, ("group_size",), 0) if weights.scale is not None else 0
    if size in (0, weights.group):
        return Group(targets, weights, activations)
    try:
        inputs = None if activations is None else replace(activations, group=size)
        return Group(targets, replace(weights, group=size), inputs)
    except SchemeError as error:
        raise CheckpointError(f"quantization_config: {error}") from None


def _layers(value: Any) -> tuple[Group, ...]:
    """A group for each of the layers that a section lists."""
    if not isinstance(value, dict) or not value or not all(isinstance(layer, dict) for layer in value.values()):
        raise CheckpointError("quantization_config: MIXED_PRECISION without quantized_layers, a JSON object of layers")
    return tuple(
        _group((name,), text(layer.get("quant_algo"), "", f"quant_algo of {short(name)}"), layer)
        for name, layer in value.items()
    )


def _ignored(value: Any) -> tuple[str, ...]:
    """The modules that are left out; ModelOpt writes patterns as shells have them."""
    listed = names(value, "ignore")
    return tuple(f"re:{_shell(name)}" if _PATTERN & {*name} else name for name in listed)


def _shell(name: str) -> str:
    return translate(name).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")


# ---------------------------------------------------------------------- 4-bit integers


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    """Bytes, and scales of floats for twice as many rows (those of NVFP4 are 8-bit floats)."""
    weight, scale = infos.get("weight"), infos.get("weight_scale")
    if weight is None or scale is None or weight.dtype != "U8" or len(weight.shape) != 2:
        return False
    return scale.dtype in ("F32", "BF16", "F16") and len(scale.shape) == 2 and scale.shape[0] == 2 * weight.shape[0]


def _describe(parts: Parts) -> Described:
    half, k = parts.infos["weight"].shape
    spec = None if parts.group is None else parts.group.weights
    activations = None if parts.group is None else parts.group.activations
    stored = Described((2 * half, k), 2 * half * k, spec, activations, "int4 with scales")
    if spec is not None and spec.element == "e4m3fn":  # what is stored has fewer bits than what is multiplied
        return Described(stored.shape, stored.weights, label="W4A8 (ModelOpt)")
    return stored


def _needs(parts: Parts, n: int, k: int) -> Needs:
    """Their groups show in the scales, where the configuration names what is multiplied instead."""
    group, scale = parts.group, parts.infos["weight_scale"]
    if group is None or group.weights is None:
        return ()
    codes = Need("weight", ("U8",), ((-(-n // 2), k),))
    if group.weights != _W4A8:
        return (codes, *scales("weight_scale", group.weights, n, k), *inputs(group.activations, parts.infos))
    groups = scale.shape[1]
    if not groups or k % groups or k // groups % 8:
        return (codes, Wrong("weight_scale", f"has {groups} scales a row, which are of no groups of {k} weights"))
    return (
        codes,
        Need("weight_scale", OPEN, ((n, groups),)),
        Need("weight_scale_2", ("F32",), numel=1),
        *inputs(_STATIC, parts.infos),
    )


def _read(reader: Reader) -> LinearWeight:
    import torch

    from isobit.formats import pack

    group = reader.group("weight")
    half, k = reader.matrix("weight")
    n, size = 2 * half, k // reader.info("weight_scale").shape[1]
    spec = WeightSpec("int4", "group", size) if size > 0 and size % 8 == 0 else None
    if group.weights is None or spec is None or (group.weights != spec and group.weights != _W4A8):
        raise reader.error("weight", "is 4-bit integers in pairs of rows, which is not what quantization_config says")
    where = reader.cut("weight", spec, n, k)
    pairs = slice(where.rows.start // 2, -(-where.rows.stop // 2))
    within = slice(where.rows.start - 2 * pairs.start, where.rows.stop - 2 * pairs.start)
    found = reader.take("weight", pairs, where.columns)
    codes = torch.stack((found & 15, found >> 4), dim=1).flatten(0, 1)[within].view(torch.int8)
    codes = (codes ^ 8) - 8  # the sign of four bits
    scale = reader.scale("weight_scale", spec, n, k, where)
    weight = reader.qtensor("weight", spec, where, pack.pack(codes.contiguous(), "int4"), scale)
    if group.weights == spec:
        return reader.linear(weight, group.activations, reader.input_scale(group.activations), n)
    return _as_floats(reader, weight, n)


def _as_floats(reader: Reader, weight: QTensor, n: int) -> LinearWeight:
    """The 8-bit floats that W4A8 multiplies."""
    from isobit.formats import codec
    from isobit.formats.qtensor import QTensor

    over = reader.scale_over("weight_scale_2")
    codes = codec.encode(weight.dequantize() / over, "e4m3fn")
    rounded = QTensor(_W4A8, weight.shape, codes, over)
    return reader.linear(rounded, _STATIC, reader.input_scale(_STATIC), n)


LAYOUT = Layout(
    "ModelOpt, 4-bit integers", "weight", ("weight_scale", "weight_scale_2"), _claims, _describe, _read,
    dtypes=("U8",), scales=("weight_scale",), marks=("weight_scale",), configs={"modelopt": _parse}, needs=_needs,
)  # fmt: skip
