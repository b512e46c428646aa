"""A quantization config held against the modules of a model: what is refused, and what people should know.

Pure: from names alone, so that a plan of ``config.json`` and a checkpoint that is loaded say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isobit.checkpoint import methods, mlcinfo
from isobit.checkpoint.ctconfig import rounds_inputs_only
from isobit.checkpoint.cttargets import fused_conflicts, module_class
from isobit.checkpoint.jsonfile import bare
from isobit.checkpoint.layouts.table import MARKS, SCALES
from isobit.checkpoint.quantization import Group, Quantization
from isobit.errors import CheckpointError
from isobit.formats.schemes import name_of

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_PLAIN_DTYPES = ("BF16", "F16", "F32", "F64", "")
_LISTED = 3
_SAVED_AFTER_USE = (
    "bitsandbytes saved this model after it had computed on a CPU: its scales (absmax) are bfloat16 and transposed, "
    "and load wrongly elsewhere; isobit turns them back"
)
_NONE: Mapping[str, str] = MappingProxyType({})


def read(
    config: Mapping[str, Any],
    modules: Iterable[str],
    *,
    folder: Path | None = None,
    tensors: Mapping[str, str] = _NONE,
    stored: Mapping[str, str] = _NONE,
) -> Quantization | None:
    """What a model's ``config.json`` says about quantization, with notes; None if it says nothing.

    Args:
        config: its contents.
        modules: names of the modules that have a matrix.
        folder: where the model lies, if it does.
        tensors: its tensors with their dtypes as safetensors spells them (empty: unknown), as far as they are known.
        stored: names of modules -> names in the file, of those that differ: the config may use either.

    Raises:
        CheckpointError: the config is malformed, or it and the tensors contradict each other.
        Unsupported: a method that isobit does not read, or something that it does not run.
    """
    methods.refuse_unread(config, folder, tensors)
    found = methods.parse(config)
    found = replace(found, stored=stored) if found is not None and stored else found
    known = sorted(set(modules))
    _require_agreement(found, known, tensors)
    if found is None:
        return None
    _refuse(found, known, tensors)
    kept = tuple(name for name in known if _name(found.group_for(name)) and _is_kept(found, name, tensors))
    found = replace(found, ignore=(*found.ignore, *kept)) if kept else found  # heads and routers that are left plain
    if any(name.endswith(".weight.absmax") and dtype == "BF16" for name, dtype in tensors.items()):
        found = replace(found, notes=(*found.notes, _SAVED_AFTER_USE))
    told = (look(found, known) for look in (_widened, _in_four_bits, _overlaps, _attention, _fused, _idle))
    return replace(found, notes=(*found.notes, *(note for notes in told for note in notes)))


def _refuse(quantization: Quantization, modules: list[str], tensors: Mapping[str, str]) -> None:
    plain: list[str] = []
    ignored = frozenset(quantization.ignore)
    for module in modules:
        group = quantization.group_for(module)
        if group is None:
            continue
        if group.inputs_only:
            raise rounds_inputs_only(f"the quantization of {bare(module)}")
        if (group.weights or group.widened) and _is_plain(module, tensors):
            left = any(f"{name}.weight" in ignored for name in quantization.names(module))  # by its parameter's name
            plain += [] if left or _may_be_plain(quantization, module) else [module]
    if plain:
        more = f" and {len(plain) - 1} more" if len(plain) > 1 else ""
        raise CheckpointError(
            f"quantization_config says that {bare(plain[0])}{more} are quantized, but their weights are stored as they "
            "are, without scales: the two do not belong together. If the weights were converted back, remove "
            "quantization_config (or the file beside config.json that says so); other tools cannot load this folder as "
            "it is either"
        )


_UNSAID = "but config.json has no quantization_config, so that nothing says how its activations are rounded"
_MLC = f".{mlcinfo.CODES}"
_UNSAID_OF_MLC = (
    "as MLC does it, but no quantization is named: in MLC's folders mlc-chat-config.json does, and q0f16, q0bf16 and"
    " q0f32 are names of plain weights. Put the name there that the folder was made with, or download it again"
)


def _require_agreement(quantization: Quantization | None, modules: list[str], tensors: Mapping[str, str]) -> None:
    """What is stored quantized, the config must call quantized: it alone says how inputs are rounded."""
    for module in modules:
        part = next((part for part in MARKS if module + part in tensors), None)
        if part is None:
            continue
        dtype = tensors.get(f"{module}.weight", "")
        shown = f"{module}.weight" if part in SCALES else module + part
        if part in SCALES and dtype in _PLAIN_DTYPES[:-1]:
            raise CheckpointError(
                f"there is a scale for a weight that is not quantized ({dtype})", tensor=module + part
            )
        stored = f"is quantized{f' ({tensors[shown]})' if tensors.get(shown) else ''}"
        if quantization is None:
            raise CheckpointError(f"{stored} {_UNSAID_OF_MLC if part == _MLC else _UNSAID}", tensor=shown)
        group = quantization.group_for(module)
        if group is None or not (group.weights or group.widened or group.inputs_only):
            raise CheckpointError(f"{stored}, but quantization_config says that this module is not", tensor=shown)


def _is_plain(module: str, tensors: Mapping[str, str]) -> bool:
    plain = tensors.get(f"{module}.weight", "none") in _PLAIN_DTYPES
    return plain and not any(module + part in tensors for part in MARKS)


def _is_kept(quantization: Quantization, module: str, tensors: Mapping[str, str]) -> bool:
    """Whether a module is plain that is called quantized. Where no tensor tells, a class name alone does not make the
    ``fp8`` method convert output projections and routers, which published files of it hold as they were."""
    if tensors or quantization.method != "fp8":
        return _is_plain(module, tensors)
    return _may_be_plain(quantization, module)


def _may_be_plain(quantization: Quantization, module: str) -> bool:
    """Output projections and routers: engines never quantize those for the class name alone."""
    if quantization.method == "torchao" and quantization.targets.find(*quantization.names(module)) == "Embedding":
        return True  # transformers says that it quantizes them, and leaves them
    last = module.removesuffix(".wg").removesuffix(".layer").rpartition(".")[2]  # of Hunyuan and Granite
    by_class = quantization.targets.find(*quantization.names(module)) in ("Linear", "Module")
    return by_class and last in ("lm_head", "gate", "router", "shared_expert_gate")


def _name(group: Group | None) -> str | None:
    if group is None or group.weights is None:
        return None if group is None else group.widened or None
    return name_of(group.weights, group.activations)


def _widened(quantization: Quantization, modules: list[str]) -> list[str]:
    """Formats of modules that no kernel takes."""
    groups = (quantization.group_for(module) for module in modules)
    found = dict.fromkeys(group.widened for group in groups if group is not None and group.widened)
    if not found:
        return []
    return [
        f"weights in {'; '.join(found)} are made plain floats of their scales' dtype when they are loaded, exactly: "
        "no kernel of isobit reads that format"
    ]


def _in_four_bits(quantization: Quantization, modules: list[str]) -> list[str]:
    """Integers of fewer bits with zero points, which kernels take as 4-bit ones."""
    groups = (quantization.group_for(module) for module in modules)
    found = {
        group.integers.bits
        for group in groups
        if group is not None and group.weights is not None and group.integers is not None
        and group.integers.bits < 4 and not group.integers.symmetric
    }  # fmt: skip
    return [f"integers of {bits} bits with zero points take 4 bits each in memory" for bits in sorted(found)]


def _overlaps(quantization: Quantization, modules: list[str]) -> list[str]:
    """Modules for which compressed-tensors, whose rule isobit follows, and vLLM choose different formats."""
    differ = []
    for module in modules:
        names = quantization.names(module)
        target, first = quantization.targets.find(*names), quantization.targets.first(*names)
        if target is None or first is None or target == first or quantization.ignores(module):
            continue
        ours, theirs = (_name(quantization.owner[entry]) for entry in (target, first))
        if ours != theirs:
            differ.append((module, target, ours or "not quantized", first, theirs or "not quantized"))
    if not differ:
        return []
    module, target, ours, first, theirs = (bare(part) for part in differ[0])
    more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
    return [
        f"targets of config_groups overlap: {module}{more}: isobit takes '{target}' ({ours}) as compressed-tensors "
        f"and transformers do, by the order of letters; vLLM takes the first in the file, '{first}' ({theirs})"
    ]


def _attention(quantization: Quantization, modules: list[str]) -> list[str]:
    """Groups that round queries, keys and values."""
    found = [
        target
        for group in quantization.groups
        for target in group.targets
        if group.outputs or (group.inputs_only and _meets_attention(quantization, target, modules))
    ]
    if not found:
        return []
    listed = ", ".join(bare(target) for target in found[:_LISTED])
    return [
        f"the checkpoint asks for rounded queries, keys or values ({listed}); isobit computes attention, and keeps its "
        "KV cache, in the model's dtype"
    ]


def _attentions(modules: list[str]) -> list[str]:
    """The attention modules, which are those that have projections of their own."""
    split = (module.rpartition(".") for module in modules)
    return list(dict.fromkeys(parent for parent, _, last in split if last in _ATTENTION and parent))


def _meets_attention(quantization: Quantization, target: str, modules: list[str]) -> bool:
    attentions = _attentions([name for module in modules for name in quantization.names(module)])
    return target.endswith("Attention") or any(quantization.targets.find(name) == target for name in attentions)


def _fused(quantization: Quantization, modules: list[str]) -> list[str]:
    """Layers that engines fuse and that are not quantized alike."""
    schemes = {module: _name(quantization.group_for(module)) for module in modules}
    return [f"{conflict}: {conflict.consequence}" for conflict in fused_conflicts(schemes)]


def _idle(quantization: Quantization, modules: list[str]) -> list[str]:
    """Targets that no module of this model has."""
    if quantization.ignores_parts or not modules:
        return []
    names = [name for module in modules for name in quantization.names(module)]
    left = quantization.targets.idle([*names, *_attentions(names)])
    classes = {"Module", *(module_class(name) for name in names)}
    left = [target for target in left if target not in classes and not target.endswith("Attention")]
    if not left:
        return []
    listed = ", ".join(f"'{bare(target)}'" for target in left[:_LISTED])
    more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
    return [f"targets of config_groups that match no layer of this model: {listed}{more}"]
