"""From the rows of ``kernels/gpu/rows.py`` to what must be compiled and checked. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from isobit.errors import UsageError
from isobit.kernels.gpu.compile.request import specialize
from isobit.kernels.gpu.rows import Variant
from isobit.proof.matrix import Claim
from isobit.proof.operands import precise
from isobit.targets.spec import Target

_COMPUTE = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}  # what is multiplied; else the weights' own format


def claims(variants: Iterable[Variant], targets: Iterable[Target]) -> list[Claim]:
    """Every pair that the rows say can run, target by target; PyTorch's products, which are not ours, left out."""
    variants = tuple(one for one in variants if not one.library)
    return [claim(one, target) for target in targets for one in variants if one.requires(target) is None]


def claim(variant: Variant, target: Target) -> Claim:
    """What a row says about one target that it can run on."""
    config = variant.config(target)
    pointers = tuple(name for name, kind in config.signature.items() if kind.startswith("*"))
    whole = tuple(name for name in config.divisible if name in config.signature)
    request = specialize(variant.entry, config, target, (*pointers, *whole))
    operand = _COMPUTE.get(variant.compute, variant.weights)
    promises = tuple(precise(promise, operand) for promise in variant.promises(target))
    return Claim(variant.name, target.name, request, promises, target.shared_memory)


def select(variants: Sequence[Variant], pattern: str | None) -> tuple[Variant, ...]:
    """The variants whose names match a pattern with ``*`` and ``?``; a name without those matches what contains it.

    Raises:
        UsageError: none does; lists the names.
    """
    if pattern is None:
        return tuple(variants)
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = tuple(one for one in variants if fnmatch.fnmatchcase(one.name, glob))
    if not found:
        names = ", ".join(one.name for one in variants)
        raise UsageError(f"--variant {pattern}: no kernel's name matches; there are: {names}")
    return found
