"""What a checkpoint says about its quantization, whatever method it uses: which modules, how stored, how rounded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from typing import Literal, NamedTuple

from isobit.checkpoint.cttargets import Lookup
from isobit.formats.patterns import PatternError, compiled
from isobit.formats.schemes import ActSpec, WeightSpec


@dataclass(frozen=True)
class Integers:
    """How other tools store integers with zero points, several in a word.

    Attributes:
        bits: of one code, 1 to 8.
        group: weights along K that share a scale; None for a whole row.
        symmetric: whether every zero point is the middle of the codes.
        zeros: what is stored of a zero point: itself; one less, field by field; or one less, a word at a time, so that
            what a field cannot hold goes on into the next.
        ordered: whether groups are of inputs in an order of their own, which a tensor then tells.
    """

    bits: int
    group: int | None
    symmetric: bool
    zeros: Literal["itself", "one less", "one less, by words"] = "itself"
    ordered: bool = False

    @property
    def spec(self) -> WeightSpec | None:
        """The format that holds the same numbers in isobit; None where there is none, and they are widened.

        Codes of 2 and 3 bits with zero points are held as 4-bit ones, which kernels take.
        """
        if not self.symmetric and self.bits > 4:
            return None
        name = f"int{self.bits}" if self.symmetric else "uint4"
        granularity: Literal["channel", "group"] = "channel" if self.group is None else "group"
        return WeightSpec(name, granularity, self.group, symmetric=self.symmetric)

    def __str__(self) -> str:
        zeros = "" if self.symmetric else " with zero points"
        return f"{self.bits}-bit integers{zeros}, a scale per {self.group or 'row'}"


class Group(NamedTuple):
    """One config group.

    Attributes:
        targets: module names, ``re:`` patterns of names, or class names (``Linear``, ``Embedding``).
        weights: how the weights are stored; None when they are not quantized.
        activations: how activations are rounded before the linear; None when they are not.
        inputs_only: whether it rounds the inputs of modules whose weights it leaves alone (attention's, say).
        outputs: whether it rounds outputs (of k_proj and v_proj, that is, keys and values).
        integers: how codes are packed, in layouts that leave that to the config.
        widened: the name of a format that isobit has no kernel for, whose numbers are held as plain floats.
    """

    targets: tuple[str, ...]
    weights: WeightSpec | None
    activations: ActSpec | None
    inputs_only: bool = False
    outputs: bool = False
    integers: Integers | None = None
    widened: str = ""

    def stored(self, k: int) -> tuple[WeightSpec | None, ActSpec | None]:
        """How a weight of ``k`` inputs is held in memory, and its inputs are rounded.

        Where a group of another tool's does not divide ``k``, its last one is shorter: the weight is held in the
        largest groups that divide both, so that each of them lies in one of the tool's.
        """
        spec = self.weights
        if spec is not None and self.integers is not None and spec.group is not None and k % spec.group:
            spec = replace(spec, group=gcd(spec.group, k))
        return spec, self.activations


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says about its quantization.

    Attributes:
        groups: the config groups.
        ignore: modules that are not quantized although a group targets them; names, ``re:`` patterns, class names.
        method: what ``quant_method`` says, e.g. ``compressed-tensors`` or ``fp8``.
        format: the compression format, e.g. ``pack-quantized``.
        notes: what people should know: what the checkpoint asks for and isobit, or another engine, does otherwise.
        stored: modules whose tensors have other names in their file, with their names there, which the config may use.
        ignores_parts: whether ``ignore`` also means parts and ends of names, as transformers reads the lists of modules
            of its own methods; otherwise its entries are as those of targets.
        plain_experts: whether experts are made plain floats when they are read, whatever their groups say.
        in_float32: modules whose weights are made float32 when they are read, whatever the model's dtype.
        scales: dtype of the scales of modules where it is known and may be another than the model's.
    """

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    method: str
    format: str
    notes: tuple[str, ...] = ()
    stored: Mapping[str, str] = field(default_factory=dict, hash=False)
    ignores_parts: bool = False
    in_float32: frozenset[str] = frozenset()
    scales: Mapping[str, str] = field(default_factory=dict, hash=False)
    plain_experts: bool = False

    def prepared(self) -> Quantization:
        """This one, its patterns read.

        Raises:
            CheckpointError: a pattern cannot be read.
        """
        _ = self.targets, self._skip_patterns if self.ignores_parts else self._ignored
        return self

    def names(self, module: str) -> tuple[str, ...]:
        """What the config may call a module: its name in the file, and a model's own name for it."""
        stored = self.stored.get(module, module)
        return (module,) if stored == module else (stored, module)

    def group_for(self, module: str) -> Group | None:
        """The group of a module by its name (``model.layers.0.mlp.up_proj``); None if it is not quantized.

        Exact names come before patterns, patterns before class names, and patterns in the order of their letters; of
        groups with the same target the last has it. All of this as in compressed-tensors 0.20.
        """
        if module not in self._found:
            target = None if self.ignores(module) else self.targets.find(*self.names(module))
            self._found[module] = None if target is None else self.owner[target]
        return self._found[module]

    def ignores(self, module: str) -> bool:
        """Whether the config says that a module is not quantized."""
        if self.ignores_parts:
            return any(self._skips(name) for name in self.names(module))
        return self._ignored.find(*self.names(module)) is not None

    @cached_property
    def targets(self) -> Lookup:
        """The targets of all groups, in the order of the file."""
        return Lookup((target for group in self.groups for target in group.targets), "targets of config_groups")

    @cached_property
    def owner(self) -> dict[str, Group]:
        """The group of each target."""
        return {target: group for group in self.groups for target in group.targets}

    @cached_property
    def _found(self) -> dict[str, Group | None]:
        return {}

    @cached_property
    def _ignored(self) -> Lookup:
        return Lookup(self.ignore, "ignore")

    @cached_property
    def _skipped(self) -> frozenset[str]:
        return frozenset(self.ignore)

    @cached_property
    def _skip_patterns(self) -> Lookup:
        """Entries that are patterns; they end where a part of a name ends, as in transformers."""
        texts = (entry.removeprefix("re:") for entry in self.ignore)
        special = [entry for entry in texts if re.search(r"[][(){}*+?|^$\\]", entry) and _is_pattern(entry)]
        return Lookup((f"re:(?:{entry})(?:(?<=\\.)|(?=\\.|$))" for entry in special), "modules_to_not_convert")

    def _skips(self, module: str) -> bool:
        """The rule of transformers: names, parts of names between dots, ends of names; patterns."""
        if not self.ignore:
            return False
        parts = module.split(".")
        inner = (".".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1))
        ends = (module[begin:] for begin in range(len(module)))
        if any(name in self._skipped for name in (*inner, *ends)):
            return True
        return self._skip_patterns.find(module) is not None


def _is_pattern(entry: str) -> bool:
    try:
        compiled(entry)
    except PatternError:
        return False
    return True
