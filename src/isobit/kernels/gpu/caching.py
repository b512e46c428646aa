"""What attention kernels are told of a layer's cache, and that it is what they take (``triton/grouped.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.pack import code_dtype
from isobit.formats.table import element
from isobit.kernels.cached import Cached


def stored_as(held: Cached) -> str:
    """What shapes of kernels (``layer_tiles.AttentionShape.element``) call the format; empty for plain numbers."""
    return held.form.kv if held.form.element else ""


def arguments(held: Cached, names: tuple[str, str], none: Tensor) -> dict[str, Tensor]:
    """The arguments of a kernel that say what a cache holds.

    Args:
        names: what the kernel calls both parts, in the plural.
        none: stands for scales that there are not.
    """
    given: dict[str, Tensor] = {}
    for name, part in zip(names, held.parts, strict=True):
        one = name.removesuffix("s")
        given |= {name: part.numbers, f"{one}_scales": none if part.scales is None else part.scales}
        if part.groups is not None:
            given[f"{one}_groups"] = part.groups
    return given


def check(held: Cached, shapes: tuple[tuple[int, ...], tuple[int, ...]], names: tuple[str, str]) -> None:
    """That a cache holds numbers of these shapes, ``[blocks, kv_heads, block, dim]`` each, as its format says.

    Raises:
        FormatError: it does not.
    """
    form = held.form
    for part, shape, name in zip(held.parts, shapes, names, strict=True):
        wanted = (*shape[:3], form.width(shape[3]))
        if tuple(part.numbers.shape) != wanted:
            raise FormatError(f"{name} of an attention: {list(wanted)}, not {list(part.numbers.shape)}")
        if form.one_scale and not _is(part.scales, shape[:3], torch.float32):
            raise FormatError(f"cached codes have float32 scales {list(shape[:3])}")
        groups = (*shape[:3], form.groups(shape[3]))
        if form.group and not _is(part.groups, groups, torch.uint8):
            raise FormatError(f"codes cached in {form.name} have scales of groups, uint8 {list(groups)}")
    if not all(part.is_contiguous() for part in held.tensors):
        raise FormatError("the cache of a layer is contiguous")


def dtype_of(held: Cached, activations: torch.dtype) -> torch.dtype:
    """The dtype of what is stored, beside activations in a dtype."""
    return code_dtype(element(held.form.element)) if held.form.element else activations


def _is(part: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return part is not None and tuple(part.shape) == shape and part.dtype == dtype
