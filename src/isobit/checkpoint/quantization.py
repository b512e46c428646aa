"""What a checkpoint says about its quantization, whatever method it uses: which modules, how stored, how rounded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from isobit.checkpoint.cttargets import Lookup
from isobit.formats.patterns import PatternError, compiled
from isobit.formats.schemes import ActSpec, WeightSpec


class Group(NamedTuple):
    """One config group.

    Attributes:
        targets: module names, ``re:`` patterns of names, or class names (``Linear``, ``Embedding``).
        weights: how the weights are stored; None when they are not quantized.
        activations: how activations are rounded before the linear; None when they are not.
        inputs_only: whether it rounds the inputs of modules whose weights it leaves alone (attention's, say).
        outputs: whether it rounds outputs (of k_proj and v_proj, that is, keys and values).
    """

    targets: tuple[str, ...]
    weights: WeightSpec | None
    activations: ActSpec | None
    inputs_only: bool = False
    outputs: bool = False


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
    """

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    method: str
    format: str
    notes: tuple[str, ...] = ()
    stored: Mapping[str, str] = field(default_factory=dict, hash=False)
    ignores_parts: bool = False

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
