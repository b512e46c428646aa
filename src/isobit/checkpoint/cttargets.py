"""Targets and ignore lists of compressed-tensors configs: matching module names, and writing short lists of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from isobit.formats.schemes import Scheme

# Layers that engines fuse into one matrix, and which must therefore be quantized alike to load there.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def module_class(module: str) -> str:
    """The torch class name that targets use for a module of this name: ``Embedding`` or ``Linear``."""
    return "Embedding" if "embed" in module.rpartition(".")[2] else "Linear"


def matches(target: str, module: str, exactness: str) -> bool:
    """Whether a target or ignore entry is about a module.

    Args:
        target: a module name, ``re:`` and a pattern that the beginning of the name must match, or a class name.
        module: a module name.
        exactness: which of the three to consider: ``name``, ``pattern`` or ``class``.
    """
    if exactness == "pattern":
        return target.startswith("re:") and _compiled(target[3:]).match(module) is not None
    if exactness == "class":
        return target == module_class(module)
    return target == module


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def compact(modules: Iterable[str], assignments: Mapping[str, Scheme | None]) -> list[str]:
    """A short list of names and ``re:`` patterns that matches exactly ``modules`` among all of ``assignments``.

    Names that differ in numbers only (the layers of a model, its experts) become one pattern if all of them are meant.
    """
    wanted = set(modules)
    families: dict[str, list[str]] = {}
    for module in assignments:
        families.setdefault(_family(module), []).append(module)
    result = []
    for family, members in families.items():
        chosen = [module for module in members if module in wanted]
        if len(members) > 1 and len(chosen) == len(members):
            result.append(f"re:{family}$")
        else:
            result.extend(chosen)
    return result


def _family(module: str) -> str:
    """A pattern for all modules whose names differ from this one in their numbers only."""
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in module.split("."))


def fused_conflicts(assignments: Mapping[str, Scheme | None]) -> list[str]:
    """Sentences about layers that vLLM fuses (q/k/v, gate/up) but that are not quantized alike: it refuses those."""
    found = []
    for module in assignments:
        parent, _, last = module.rpartition(".")
        for parts in FUSED:
            if last != parts[0]:
                continue
            siblings = {part: assignments[f"{parent}.{part}"] for part in parts if f"{parent}.{part}" in assignments}
            formats = {None if chosen is None else (chosen.weights, chosen.activations) for chosen in siblings.values()}
            if len(formats) > 1:
                names = ", ".join(f"{part} {'keep' if s is None else s.name}" for part, s in siblings.items())
                found.append(f"{parent}: {names}; vLLM fuses these layers and refuses different schemes for them")
    return found
