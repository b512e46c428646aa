"""What transformers makes of the experts of a mixture: it holds those of a layer as one plain tensor.

Their codes become floats when they are loaded, and all of them by one config group: the first of whose patterns one
names ``experts``, else the first with a name or class, else the first of all. What another group has is read as if it
were of this one. Who loads what was run (transformers 5.23.0 with compressed-tensors 0.20.0); docs/interop.md has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from isobit.checkpoint.ctrender import compression_format, weight_args
from isobit.checkpoint.cttargets import PATTERN, is_routed
from isobit.checkpoint.verdicts import DIFFERS, GARBAGE, REFUSES, SOME
from isobit.formats.schemes import Scheme

RANDOM = frozenset(("gpt_oss", "granitemoe", "qwen3_vl_moe"))  # whose experts it does not look for one by one
LINEARS = frozenset(("llama4", "llama4_text"))  # whose experts it loads as linears
_LAST = ("down_proj", "w2")  # a layer's second tensor of experts, of one matrix each; the first is of two
NOT_RUN = "which mixtures of experts it loads depends on family and scheme, and this one was not run"

Experts = Mapping[str, Scheme | None]
Shapes = Mapping[str, tuple[int, ...]]
Found = Iterator[tuple[str, str]]


def experts_there(family: str, assigned: Experts, quantization: Mapping[str, Any], shapes: Shapes) -> Found:
    """Verdicts on experts, with their reasons; nothing where it does as isobit does.

    Args:
        family: one whose checkpoints were loaded there.
        assigned: every module with its scheme; None for those that are kept.
        quantization: the ``quantization_config`` that is written for them.
        shapes: rows and columns of modules, where they are known.
    """
    experts = {module: _quantized(chosen) for module, chosen in assigned.items() if is_routed(module)}
    kept = [module for module, chosen in experts.items() if chosen is None]
    if family in RANDOM:
        if len(kept) < len(experts):
            yield GARBAGE, "it makes experts up at random, and a warning says so"
    elif family in LINEARS:
        if kept:
            yield GARBAGE, "it makes experts that are kept up at random, and a warning says so"
    elif experts and (taken := _taken(assigned, quantization)) is not None:
        yield from _by_one_group(experts, taken, shapes)


def _quantized(chosen: Scheme | None) -> Scheme | None:
    return chosen if chosen is not None and chosen.weights is not None else None


def _taken(assigned: Experts, quantization: Mapping[str, Any]) -> Scheme | None:
    """The scheme that all experts are read by."""
    groups: list[Mapping[str, Any]] = list(quantization.get("config_groups", {}).values())
    if not groups:
        return None
    named = (one for one in groups if any(to.startswith(PATTERN) and "experts" in to for to in one["targets"]))
    plain = (one for one in groups if any(not to.startswith(PATTERN) for to in one["targets"]))
    group = next(named, None) or next(plain, None) or groups[0]
    for chosen in map(_quantized, assigned.values()):
        if chosen is not None and chosen.weights is not None and weight_args(chosen.weights) == group["weights"]:
            return chosen
    return None


def _by_one_group(experts: Experts, taken: Scheme, shapes: Shapes) -> Found:
    rounded: dict[str, None] = {}
    found: dict[tuple[str, str], dict[str, None]] = {}
    for module, chosen in experts.items():
        fate = _kept(module, taken) if chosen is None else _read(module, chosen, taken, shapes.get(module, (0, 0)))
        if fate is not None:
            found.setdefault(fate, {})[chosen.name if chosen else "experts that are kept"] = None
        elif chosen is not None and chosen.activations is not None:
            rounded[chosen.name] = None
    yield from ((verdict, words.format(", ".join(names))) for (verdict, words), names in found.items())
    if rounded:
        yield DIFFERS, f"it does not round the inputs of experts in {', '.join(rounded)}, which become plain floats"


def _stored(chosen: Scheme) -> str:
    assert chosen.weights is not None
    return compression_format(chosen.weights, chosen.activations)


def _kept(module: str, taken: Scheme) -> tuple[str, str] | None:
    """What becomes of a matrix of an expert that is kept."""
    how = _stored(taken)
    if how in ("float-quantized", "mxfp8-quantized"):
        return None
    if how != "int-quantized" and module.rpartition(".")[2] in _LAST:
        return GARBAGE, f"it reads all experts as {taken.name}, and makes {{}} up at random"
    return REFUSES, f"it reads all experts as {taken.name}, and {{}} are not (quantize them, or use fp8 for the rest)"


def _read(module: str, chosen: Scheme, taken: Scheme, shape: tuple[int, ...]) -> tuple[str, str] | None:
    """What becomes of a matrix of an expert in a scheme, where all are read by another, or by the same."""
    own, one = chosen.weights, taken.weights
    assert own is not None and one is not None
    how, stored = _stored(taken), _stored(chosen)
    if stored == "int-quantized":
        return REFUSES, "its conversion of experts in {} fails (use int4 or fp8)"
    in_one = own.block is not None and 0 < shape[0] <= own.block[0] and shape[1] <= own.block[1]  # a scale for all
    if (own.granularity == "block" and not in_one) or stored == "mxfp8-quantized":
        return REFUSES, "its conversion of experts in {} fails (use fp8)"
    if how != stored:
        return _of_another_kind(module, stored, taken)
    if own.scale is not None and own.scale.over is not None:
        return GARBAGE, "it leaves out one of the two scales of experts in {}: they are thousands of times too large"
    if how == "float-quantized" or weight_args(own) == weight_args(one):
        return None
    if own.element != one.element:
        return SOME, f"it reads all experts as {taken.name}: those in {{}} become garbage, or it refuses them"
    if None in (own.group, one.group):
        return SOME, NOT_RUN
    assert one.group is not None
    if own.group == shape[1] and shape[1] % one.group == 0:
        return None  # a scale for a row: the same for each of the other's groups
    return REFUSES, f"it reads all experts by the groups of {taken.name}, and {{}} has others (use one group size)"


def _of_another_kind(module: str, stored: str, taken: Scheme) -> tuple[str, str]:
    if stored == "float-quantized" and _stored(taken) == "pack-quantized" and module.rpartition(".")[2] in _LAST:
        return GARBAGE, f"it reads all experts as {taken.name}, and makes those in {{}} up at random"
    return REFUSES, f"it reads all experts as {taken.name}, and those in {{}} are stored otherwise (use one scheme)"
