"""What stands beside the decoder of a model that sees or hears: it stays as it is, under the names that it has."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from isobit.checkpoint.cttargets import PATTERN
from isobit.checkpoint.layouts import plain
from isobit.checkpoint.layouts import table as layouts
from isobit.checkpoint.layouts.parts import Parts
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.widened import widened
from isobit.formats.rules import Policy
from isobit.models.blueprint import HEAD
from isobit.models.contents import Contents
from isobit.models.encoders.weights import by_tensors
from isobit.models.feed_forward import Experts
from isobit.models.names import BESIDE
from isobit.quantizer.jobs import FLOATS, Job

# What may stand in front of a decoder's names: as transformers has them now, as it had them, and as a model for text.
_MODEL = r"model\."
_FRONT = r"(model\.)?(language_model\.)?(model\.)?"
# Towers that have other names in some files than in transformers.
_ALSO = {"vit.": ("vision_tower.",), "vision_tower.": ("vit.",)}
_HEIGHT = 128  # rows of a block with one scale, at most


def jobs(found: Contents, policy: Policy) -> list[Job]:
    """A job for each of these tensors: it is copied, or cast where the scheme is a dtype for the whole checkpoint."""
    whole = policy.default if policy.default.dtype is not None else None
    infos = [found.ck.info(name) for name in found.beside if name in found.ck.tensors]
    return [Job(info, "other", whole if info.dtype in FLOATS else None) for info in infos]


def as_numbers(found: Contents) -> Contents:
    """The same with what is quantized of it as the numbers it stands for: nothing says afterwards how it was stored."""
    modules = [*_quantized(found)]
    if not modules:
        return found
    own = by_tensors(found.ck, modules)
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules:
        infos = layouts.infos_of(own.tensors, module)
        row = layouts.layout_of(infos)
        assert row is not None
        (rows, columns), height = row.describes(Parts(module, infos, None, own.config)).shape, _HEIGHT
        if columns < 0:  # of a packed weight that shows when it is read
            columns = read_linear(own, module, slice(0, min(height, rows))).numbers().shape[1]
        shapes[f"{module}.weight"] = (rows, columns)
    twin = copy.copy(found.ck)
    twin.store = widened(own, shapes).store
    gone = {name for name in found.beside if name not in twin.tensors}
    names = (*(name for name in found.beside if name not in gone), *(name for name in shapes if name in twin.tensors))
    return replace(found, ck=twin, beside=tuple(dict.fromkeys(names)))


def _quantized(found: Contents) -> Iterator[str]:
    """The modules beside the decoder whose weights are stored as codes."""
    tensors = found.ck.tensors
    for name in found.beside:
        module, part = layouts.split(name)
        row = layouts.layout_of(layouts.infos_of(tensors, module))
        if row is not None and row is not plain.LAYOUT and part == row.codes:
            yield module


def about(found: Contents) -> tuple[str, ...]:
    """What a person should know of them."""
    if not found.beside:
        return ()
    size = sum(found.ck.info(name).nbytes for name in found.beside if name in found.ck.tensors)
    fronts = ", ".join(f"{front}*" for front in _fronts(found))
    return (f"{len(found.beside)} tensors beside the decoder ({fronts}; {size:,} bytes) are kept as they are",)


def rendered(found: Contents, quantization: dict[str, Any]) -> dict[str, Any]:
    """A ``quantization_config`` whose names are those of files and of transformers' modules, and of nothing beside.

    A decoder's names differ between both in checkpoints of some ages, so that they are written as patterns.
    """
    if not quantization:
        return quantization
    quantization = quantization | {"ignore": [*quantization["ignore"], *_routers(found, quantization["ignore"])]}
    if not found.beside and not found.fronts:
        return quantization
    groups = {
        name: group | {"targets": [*_anywhere(group["targets"])]} for name, group in _groups(quantization).items()
    }
    towers = [f"{PATTERN}(model\\.)?{re.escape(front)}" for front in dict.fromkeys(_towers(found))]
    return quantization | {"config_groups": groups, "ignore": [*towers, *_anywhere(quantization["ignore"])]}


def _routers(found: Contents, ignored: list[str]) -> Iterator[str]:
    """Ignored routers under their names in transformers, where they are called otherwise in files.

    Phi-3.5-MoE's is a linear there, ``mlp.router``: with ``block_sparse_moe.gate`` alone it falls under ``Linear``.
    """
    mixtures = ((layer.mlp_name, layer.mlp.names) for layer in found.config.layers if isinstance(layer.mlp, Experts))
    pairs = {
        (ours[:-1], theirs[:-1]): None
        for place, names in mixtures
        for theirs, ours in names.also
        if ours == f"{place}.{names.router}."
    }
    for entry in ignored:
        for ours, theirs in pairs:
            for end, new in ((ours, theirs), (f"{re.escape(ours)}$", f"{re.escape(theirs)}$")):
                if entry.endswith(f".{end}"):
                    yield f"{entry.removesuffix(end)}{new}"


def _groups(quantization: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    found: Mapping[str, dict[str, Any]] = quantization["config_groups"]
    return found


def _anywhere(entries: list[str]) -> Iterator[str]:
    """Names and patterns of a decoder's modules, wherever the decoder stands in its model."""
    for entry in entries:
        pattern = entry.removeprefix(PATTERN) if entry.startswith(PATTERN) else f"{re.escape(entry)}$"
        if entry in ("Linear", "Embedding"):
            yield entry
            continue
        if entry == HEAD:  # vLLM looks for this very name
            yield entry
        yield f"{PATTERN}{_FRONT}{pattern.removeprefix(_MODEL)}"


def _fronts(found: Contents) -> list[str]:
    """How the names of these tensors begin."""
    starts = [name[: name.index(front) + len(front)] for name in found.beside for front in BESIDE
              if name.removeprefix("model.").startswith(front)]  # fmt: skip
    return [*dict.fromkeys(starts)]


def _towers(found: Contents) -> Iterator[str]:
    for front in _fronts(found):
        name = front.removeprefix("model.")
        yield name
        yield from _ALSO.get(name, ())
