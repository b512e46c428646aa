"""Reading the ``quantization_config`` of ``config.json``, as compressed-tensors, transformers and vLLM do.

``parse`` reads compressed-tensors configs of any version and the ``fp8`` method of DeepSeek and Qwen. Which tensors
are quantized is decided by the tensors themselves (see ``layout``); the config says how activations are rounded and
serves as a cross-check. ``ctrender`` writes such a section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from isobit.checkpoint.cttargets import matches
from isobit.checkpoint.methods import INSTEAD as _INSTEAD
from isobit.checkpoint.methods import method_name, refuse_unread, section
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.schemes import ActSpec, WeightSpec, scheme
from isobit.formats.table import ELEMENTS

METHOD = "compressed-tensors"

# Floats that compressed-tensors has no type for are written with one of isobit's own; see ctrender.py.
_OWN_FLOATS = {
    (f"float{row.bits}_{row.name}", row.bits, True): row.name
    for row in ELEMENTS.values()
    if row.kind == "float" and row.signed and (row.bits < 8 or row.name == "e5m2")
}
# (type, bits, symmetric) of compressed-tensors -> element format.
WEIGHT_ELEMENTS = {
    ("float", 8, True): "e4m3fn",
    **_OWN_FLOATS,
    ("int", 8, True): "int8",
    ("int", 4, True): "int4",
    ("int", 4, False): "uint4",
    ("int", 3, True): "int3",
    ("int", 2, True): "int2",
}
ACT_ELEMENTS = {("float", 8, True): "e4m3fn", **_OWN_FLOATS, ("int", 8, True): "int8"}

_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision", None)


class Group(NamedTuple):
    """One config group.

    Attributes:
        targets: module names, ``re:`` patterns of names, or class names (``Linear``, ``Embedding``).
        weights: how the weights are stored; None when they are not quantized.
        activations: how activations are rounded before the linear; None when they are not.
    """

    targets: tuple[str, ...]
    weights: WeightSpec | None
    activations: ActSpec | None


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says about its quantization.

    Attributes:
        groups: the config groups.
        ignore: modules that are not quantized although a group targets them; names, ``re:`` patterns, class names.
        method: ``compressed-tensors`` or ``fp8``.
        format: the compression format, e.g. ``pack-quantized``.
        notes: what the checkpoint asks for beyond linear layers and isobit does not do, for people.
    """

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    method: str
    format: str
    notes: tuple[str, ...] = ()

    def group_for(self, module: str) -> Group | None:
        """The group of a module by its name (``model.layers.0.mlp.up_proj``); None if it is not quantized.

        Exact names come before patterns, patterns before class names, as in compressed-tensors.
        """
        if self.ignores(module):
            return None
        for exactness in ("name", "pattern", "class"):
            for group in self.groups:
                if any(matches(target, module, exactness) for target in group.targets):
                    return group
        return None

    def ignores(self, module: str) -> bool:
        """Whether the config says that a module is not quantized."""
        if self.method == "fp8":  # plain names and parts of names
            return any(entry == module or f".{entry}." in f".{module}." for entry in self.ignore)
        return any(matches(entry, module, kind) for entry in self.ignore for kind in ("name", "pattern", "class"))


def parse(config: Mapping[str, Any]) -> Quantization | None:
    """Reads the quantization config of a model's ``config.json``; None if it has none.

    Raises:
        CheckpointError: the config is malformed.
        Unsupported: another method, or a part of this one that isobit cannot run.
    """
    refuse_unread(config)
    found = section(config)
    if found is None:
        return None
    return _parse_fp8(found[1]) if method_name(*found) == "fp8" else _parse_compressed_tensors(found[1])


def _parse_compressed_tensors(part: dict[str, Any]) -> Quantization:
    _refuse_extras(part)
    groups = part.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError("quantization_config has no config_groups")
    notes = []
    if part.get("kv_cache_scheme"):
        notes.append("the checkpoint asks for a quantized KV cache; isobit keeps the KV cache in the model's dtype")
    return Quantization(
        groups=tuple(_group(str(name), value) for name, value in groups.items()),
        ignore=_names(part.get("ignore"), "ignore"),
        method=METHOD,
        format=str(part.get("format") or "mixed-precision"),
        notes=tuple(notes),
    )


def _refuse_extras(part: dict[str, Any]) -> None:
    reasons = []
    sparsity = part.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") not in ("dense", None):
        reasons.append(f"it is sparse ({sparsity['format']})")
    if part.get("transform_config"):
        reasons.append("its weights are rotated (transform_config)")
    if part.get("format") not in _FORMATS:
        reasons.append(f"format {part['format']!r} is none of {', '.join(str(name) for name in _FORMATS[:-1])}")
    if reasons:
        raise Unsupported("this compressed-tensors checkpoint", reasons, _INSTEAD)


def _group(name: str, value: Any) -> Group:
    if isinstance(value, list):  # {"FP8_DYNAMIC": ["Linear"]}: a preset name and its targets
        try:
            preset = scheme(name)
        except SchemeError:
            raise Unsupported(f"preset {name!r} in config_groups", ["isobit does not know it"], _INSTEAD) from None
        return Group(_names(value, f"config_groups.{name}"), preset.weights, preset.activations)
    if not isinstance(value, dict):
        raise CheckpointError(f"config_groups.{name} must be a JSON object")
    if value.get("output_activations"):
        raise Unsupported(f"config group {name!r}", ["it quantizes the outputs of layers"], _INSTEAD)
    weights, activations = value.get("weights"), value.get("input_activations")
    if value.get("format", None) not in _FORMATS:
        raise Unsupported(f"config group {name!r}", [f"its format is {value['format']!r}"], _INSTEAD)
    return Group(
        _names(value.get("targets"), f"config_groups.{name}.targets"),
        None if weights is None else _weight_spec(weights, f"config_groups.{name}.weights"),
        None if activations is None else _act_spec(activations, f"config_groups.{name}.input_activations"),
    )


def _names(value: Any, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{what} must be a list of names")
    for name in value:
        if name.startswith("re:"):
            try:
                re.compile(name[3:])
            except re.error as error:
                raise CheckpointError(f"{what}: {name!r} is not a regular expression: {error}") from None
    return tuple(value)


@dataclass(frozen=True)
class _Args:
    """The fields of compressed-tensors' QuantizationArgs that matter, with its defaults."""

    kind: str
    bits: int
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    dynamic: bool


def _args(value: Any, what: str) -> _Args:
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must be a JSON object")
    bits, group = value.get("num_bits", 8), value.get("group_size")
    if not isinstance(bits, int) or not (group is None or isinstance(group, int)):
        raise CheckpointError(f"{what}: num_bits and group_size must be whole numbers")
    if value.get("dynamic") == "local":
        raise Unsupported(what, ["its scales are dynamic per group under a scale per tensor (NVFP4)"], _INSTEAD)
    group = None if group in (None, 0) else group
    strategy = value.get("strategy") or ("tensor" if group is None else "channel" if group == -1 else "group")
    if strategy == "group" and group == -1:
        strategy = "channel"
    return _Args(
        kind=str(value.get("type") or "int").lower(),
        bits=bits,
        symmetric=value.get("symmetric", True) is not False,
        strategy=str(strategy).lower(),
        group=group if strategy == "group" else None,
        block=_block(value.get("block_structure"), what) if strategy == "block" else None,
        dynamic=bool(value.get("dynamic")),
    )


def _block(value: Any, what: str) -> tuple[int, int]:
    sizes = value.split("x") if isinstance(value, str) else value
    try:
        rows, columns = (int(size) for size in sizes)
    except (TypeError, ValueError):
        raise CheckpointError(f"{what}: block sizes {value!r} are not two whole numbers") from None
    return rows, columns


def _element(table: dict[tuple[str, int, bool], str], args: _Args, what: str) -> str:
    found = table.get((args.kind, args.bits, args.symmetric))
    if found is None:
        kind = f"{'' if args.symmetric else 'asymmetric '}{args.bits}-bit {args.kind}"
        raise Unsupported(f"{what} of {kind}", [f"isobit reads {', '.join(table.values())}"], _INSTEAD)
    return found


def _weight_spec(value: Any, what: str) -> WeightSpec:
    args = _args(value, what)
    name = _element(WEIGHT_ELEMENTS, args, what)
    if args.dynamic:
        raise Unsupported(what, ["weights with dynamic scales are not stored quantized"], _INSTEAD)
    if args.strategy not in ("tensor", "channel", "group", "block"):
        raise Unsupported(f"{what} with strategy {args.strategy!r}", ["isobit reads tensor, channel, group, block"])
    try:
        return WeightSpec(name, args.strategy, args.group, args.block, args.symmetric)  # type: ignore[arg-type]
    except SchemeError as error:
        raise CheckpointError(f"{what}: {error}") from None


def _act_spec(value: Any, what: str) -> ActSpec:
    args = _args(value, what)
    name = _element(ACT_ELEMENTS, args, what)
    if args.strategy not in ("token", "tensor", "group"):
        raise Unsupported(f"{what} with strategy {args.strategy!r}", ["isobit rounds per token, tensor or group"])
    try:
        return ActSpec(name, args.strategy, args.group, args.dynamic)  # type: ignore[arg-type]
    except SchemeError as error:
        raise CheckpointError(f"{what}: {error}") from None


def _parse_fp8(part: dict[str, Any]) -> Quantization:
    """DeepSeek's and Qwen's ``fp8`` method: blocks with ``weight_scale_inv``, or one scale per tensor."""
    if part.get("fmt", "e4m3") not in ("e4m3", None):
        raise Unsupported(f"fp8 format {part['fmt']!r}", ["isobit reads e4m3"], _INSTEAD)
    activation_scheme = str(part.get("activation_scheme", "dynamic")).lower()
    if activation_scheme not in ("dynamic", "static"):
        raise CheckpointError(f"activation_scheme {activation_scheme!r} is neither dynamic nor static")
    dynamic = activation_scheme == "dynamic"
    block = part.get("weight_block_size")
    if block is not None:
        sizes = _block(block, "weight_block_size")
        if not dynamic:
            raise CheckpointError("weight_block_size with static activations is not defined")
        weights, activations = _blocks(sizes)
    else:
        weights, activations = WeightSpec("e4m3fn", "tensor"), ActSpec("e4m3fn", "tensor", dynamic=dynamic)
    ignore = [*(part.get("ignored_layers") or []), *(part.get("modules_to_not_convert") or [])]
    notes: tuple[str, ...] = ()
    if str(part.get("scale_fmt") or "").lower() == "ue8m0":
        notes = ("the model was trained with activation scales that are powers of two; isobit uses exact ones",)
    return Quantization(
        groups=(Group(("Linear",), weights, activations),),
        ignore=_names(ignore, "modules_to_not_convert"),
        method="fp8",
        format="float-quantized",
        notes=notes,
    )


def _blocks(sizes: tuple[int, int]) -> tuple[WeightSpec, ActSpec]:
    try:
        return WeightSpec("e4m3fn", "block", block=sizes), ActSpec("e4m3fn", "group", sizes[1])
    except SchemeError as error:
        raise CheckpointError(f"weight_block_size {list(sizes)}: {error}") from None
