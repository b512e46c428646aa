"""Targets and ignore lists of compressed-tensors configs: matching module names, and writing short lists of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from isobit.errors import CheckpointError
from isobit.formats.patterns import PatternError, compiled_all
from isobit.formats.schemes import Scheme

PATTERN = "re:"

# Layers that engines fuse into one matrix, and which must therefore be quantized alike to load there.
FUSED = (("q_proj", "k_proj", "v_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj"), ("w1", "w3"))


def module_class(module: str) -> str:
    """The torch class name that targets use for a module of this name: ``Embedding`` or ``Linear``."""
    return "Embedding" if "embed" in module.rpartition(".")[2] else "Linear"


def is_routed(module: str) -> bool:
    """Whether a module of this name is in one of a mixture's experts that a router chooses among."""
    return ".experts." in module


def classes(module: str) -> tuple[str, ...]:
    """The class names that reach a module: its class and what that is derived from, in the order of their letters."""
    return (module_class(module), "Module")


class Lookup:
    """Which entry of a list of targets or ignored modules is about a module, as compressed-tensors 0.20 decides it.

    A name comes before patterns, a pattern before classes; of several patterns the first in the order of their letters,
    wherever they stand in the file. A pattern must match the beginning of the name.

    Args:
        entries: names, ``re:`` patterns and class names, in the order of the file.
        what: the list, for errors.

    Raises:
        CheckpointError: a pattern is no regular expression, or all of them are too much work.
    """

    def __init__(self, entries: Iterable[str], what: str) -> None:
        places = {entry: place for place, entry in reversed(list(enumerate(dict.fromkeys(entries))))}
        self._places = {entry: place for entry, place in places.items() if not entry.startswith(PATTERN)}
        listed = [entry for entry in places if entry.startswith(PATTERN)]
        try:
            patterns = compiled_all([entry.removeprefix(PATTERN) for entry in listed])
        except PatternError as error:
            raise CheckpointError(f"{what}: {error}") from None
        found = [(entry, pattern, places[entry]) for entry, pattern in zip(listed, patterns, strict=True)]
        self._by_letters = sorted(found, key=lambda one: one[0])
        self._by_place = sorted(found, key=lambda one: one[2])

    def find(self, *names: str) -> str | None:
        """The entry that decides about a module; None if none is about it.

        Args:
            names: what the module may be called: its name in the file first, which gives its class.
        """
        exact = next((name for name in names if name in self._places), None)
        if exact is not None:
            return exact
        for entry, pattern, _ in self._by_letters:
            if any(pattern.found_in(name) for name in names):
                return entry
        return next((name for name in classes(names[0]) if name in self._places), None)

    def first(self, *names: str) -> str | None:
        """What vLLM takes: of names and patterns the first in the file, then a class. Takes what :meth:`find` does."""
        exact = min((name for name in names if name in self._places), key=self._places.__getitem__, default=None)
        for entry, pattern, where in self._by_place:
            if exact is not None and where > self._places[exact]:
                break
            if any(pattern.found_in(name) for name in names):
                return entry
        return exact or next((name for name in classes(names[0]) if name in self._places), None)

    def idle(self, modules: Iterable[str]) -> list[str]:
        """The names and patterns that are about none of these modules; class names are left out."""
        known = list(modules)
        names = set(known)
        found = [entry for entry in self._places if entry not in names]
        return found + [e for e, pattern, _ in self._by_place if not any(pattern.found_in(name) for name in known)]


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
            result.append(f"{PATTERN}{family}$")
        else:
            result.extend(chosen)
    return result


def _family(module: str) -> str:
    """A pattern for all modules whose names differ from this one in their numbers only."""
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in module.split("."))


# ---------------------------------------------------------------------- fused layers


class Conflict(NamedTuple):
    """Layers that engines fuse and that are not quantized alike.

    Attributes:
        parents: the modules that have them; all alike.
        schemes: each layer's last name with its scheme; None where it is not quantized.
    """

    parents: tuple[str, ...]
    schemes: tuple[tuple[str, str | None], ...]

    def __str__(self) -> str:
        more = f" and {len(self.parents) - 1} more" if len(self.parents) > 1 else ""
        parts = ", ".join(f"{part} {'not quantized' if name is None else name}" for part, name in self.schemes)
        return f"{self.parents[0]}{more}: {parts}"

    @property
    def consequence(self) -> str:
        """What becomes of it in vLLM 0.32, as it was seen there."""
        if any(name is None for _, name in self.schemes):
            return "vLLM fuses these layers and refuses to load them"
        return (
            f"vLLM fuses these layers and gives all of them the scheme of {self.schemes[0][0]} without a word: what it "
            "computes is wrong, up to garbage, or it stops while loading where one is packed and another not; isobit "
            "and transformers compute what is stored"
        )


def fused_conflicts(schemes: Mapping[str, str | None]) -> list[Conflict]:
    """What engines fuse but is not quantized alike.

    Args:
        schemes: modules with the names of their schemes; None where a module is not quantized.
    """
    found: dict[tuple[tuple[str, str | None], ...], list[str]] = {}
    for module in schemes:
        parent, _, last = module.rpartition(".")
        for parts in FUSED:
            if last != parts[0]:
                continue
            siblings = {part: f"{parent}.{part}" if parent else part for part in parts}
            chosen = tuple((part, schemes[name]) for part, name in siblings.items() if name in schemes)
            if len({name for _, name in chosen}) > 1:
                found.setdefault(chosen, []).append(parent)
    return [Conflict(tuple(parents), chosen) for chosen, parents in found.items()]
