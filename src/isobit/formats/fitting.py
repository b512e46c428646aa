"""Schemes on shapes: what one cannot store, what a weight gets instead, and how to say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from isobit.errors import SchemeError
from isobit.formats.schemes import GROUP_STEP, GROUPED, SCHEMES, ActSpec, Scheme, WeightSpec, name_of, scheme
from isobit.formats.table import element

COMMON_GROUPS = (128, 64, 32)  # what other engines have kernels for
_LARGEST_SUGGESTED_GROUP = 256
_LISTED = 3


def group_sizes_that_divide(k: int) -> tuple[int, ...]:
    """Group sizes up to 256 that divide ``k`` weights, ascending."""
    return tuple(size for size in range(GROUP_STEP, _LARGEST_SUGGESTED_GROUP + 1, GROUP_STEP) if k % size == 0)


def check_shape(spec: WeightSpec, n: int, k: int, module: str, activations: ActSpec | None = None) -> None:
    """Checks that an ``[n, k]`` weight can be stored as ``spec`` says.

    ``activations`` is how its inputs are rounded: schemes are named for both.

    N need not be a multiple of a block's rows: the last block is smaller, as compressed-tensors and vLLM have it.

    Raises:
        SchemeError: it cannot; names ``module``, the group sizes that would do, and a scheme that works: with a
            group size that other engines know, if one divides K.
    """
    if n < 1 or k < 1:
        raise SchemeError(f"{module}: a weight of shape [{n}, {k}] is empty")
    if spec.block is not None and k % spec.block[1]:
        raise SchemeError(
            f"{module}: K = {k} is not a multiple of the block width {spec.block[1]};"
            " use a scheme with a scale per channel instead, for example fp8"
        )
    if spec.group is None or k % spec.group == 0:
        return
    sizes = group_sizes_that_divide(k)
    if spec.scale is not None:
        other = "fp8" if element(spec.element).bits > 4 else "int4" if sizes else "int8-w8a16"
        raise SchemeError(
            f"{module}: K = {k} is not a multiple of {name_of(spec, activations)}'s groups of {spec.group}, which are"
            f" part of the format; keep this module (--rule NAME=keep) or give it another scheme, for example {other}"
        )
    if not sizes:
        raise SchemeError(
            f"{module}: K = {k} is not a multiple of the group size {spec.group}, and no multiple of {GROUP_STEP}"
            " divides it; keep this module or use a scheme with a scale per channel, for example"
            f" {'int8-w8a16' if activations is None else 'int8'}"
        )
    common = [size for size in COMMON_GROUPS if k % size == 0]
    nearest = max((size for size in common or sizes if size <= spec.group), default=min(common or sizes))
    raise SchemeError(
        f"{module}: K = {k} is not a multiple of the group size {spec.group}; sizes that divide it:"
        f" {', '.join(map(str, sizes))}. Use {_grouped_name(spec, activations, nearest)} instead"
    )


def _grouped_name(spec: WeightSpec, activations: ActSpec | None, group: int) -> str:
    """Name of the scheme with this spec's element, groups of ``group`` and these activations."""
    wanted = replace(spec, group=group)
    for candidate in (scheme(f"{name}-g{group}") for name in GROUPED):
        if candidate.weights == wanted and candidate.activations == activations:
            return candidate.name
    return f"a group size of {group}"


def fitted(row: Scheme, k: int) -> Scheme:
    """The scheme that a weight of ``k`` inputs gets where ``row`` is asked for.

    A group that does not divide them becomes the largest of 64 and 32 that does and is no larger, or the largest
    multiple of 8 below it; blocks become channels, and their activations tokens. compressed-tensors has a group size
    for each module, and its loaders take these; none of them takes a group that is not whole. What nothing fits stays
    as it is, to be refused.

    Args:
        row: the scheme asked for.
        k: inputs of the weight.
    """
    spec = row.weights
    if spec is None:
        return row
    if spec.block is not None:
        return row if k % spec.block[1] == 0 else _by_channel(row, spec)
    if spec.group is None or k % spec.group == 0:
        return row
    group, sizes = spec.group, group_sizes_that_divide(k)
    below = [size for size in (*COMMON_GROUPS, *reversed(sizes)) if size <= group and k % size == 0]
    names = (f"{name}-g{below[0]}" for name in GROUPED) if below else ()
    wanted = replace(spec, group=below[0]) if below else spec
    found = (scheme(name) for name in names)
    return next((one for one in found if (one.weights, one.activations) == (wanted, row.activations)), row)


def refitted(row: Scheme, widths: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """What to say of the weights that get another scheme than ``row``, one sentence for each that they get.

    Args:
        row: the scheme asked for.
        widths: names of weights and their inputs.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for name, k in widths:
        chosen = fitted(row, k)
        if chosen != row:
            found.setdefault((chosen.name, k), []).append(name)
    return tuple(_sentence(row, instead, k, names) for (instead, k), names in found.items())


def _sentence(row: Scheme, instead: str, k: int, names: list[str]) -> str:
    assert row.weights is not None
    block = row.weights.block
    what = f"groups of {row.weights.group}" if block is None else f"blocks {block[1]} wide"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{row.name}: {what} do not divide {k} inputs: {instead} for {', '.join(names[:_LISTED])}{more}"


def _by_channel(row: Scheme, spec: WeightSpec) -> Scheme:
    wanted = replace(spec, granularity="channel", block=None)
    return next(
        (
            one
            for one in SCHEMES.values()
            if one.weights == wanted
            and (one.activations is None) == (row.activations is None)
            and (
                row.activations is None or one.activations == replace(row.activations, granularity="token", group=None)
            )
        ),
        row,
    )
