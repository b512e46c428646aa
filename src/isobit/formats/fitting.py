"""Schemes on widths that their groups or blocks do not divide: what a weight gets instead, and how to say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from isobit.formats.schemes import GROUPED, SCHEMES, Scheme, WeightSpec, group_sizes_that_divide, scheme

COMMON_GROUPS = (128, 64, 32)  # what other engines have kernels for
_LISTED = 3


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
