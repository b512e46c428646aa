"""Caches whose groups share a scale (``triton/grouped.py``): which of them kernels keep, and what these are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isobit.formats.caches import CACHE_FORMATS
from isobit.kernels.gpu.tiles import CODES, Constant, is_cuda
from isobit.kernels.gpu.variant import has_bf16
from isobit.targets.spec import Target


@dataclass(frozen=True)
class Groups:
    """What a kernel is told of scales of groups: types of arguments, where there are some, and else constants."""

    types: Mapping[str, str]
    constants: Mapping[str, Constant]


def is_grouped(element: str) -> bool:
    """Whether an ``element`` of ``layer_tiles.AttentionShape`` has scales of groups."""
    row = CACHE_FORMATS.get(element)
    return row is not None and row.group is not None


def codes_of(element: str) -> str:
    """What codes are to Triton."""
    return "*u8" if is_grouped(element) else CODES[element]


def groups_of(element: str, *names: str) -> Groups:
    """Of arguments with such names."""
    if is_grouped(element):
        return Groups(dict.fromkeys(names, "*u8"), {})
    return Groups({}, dict.fromkeys(names))


def without_groups(signature: Mapping[str, str]) -> Mapping[str, str]:
    """A signature of kernels that read no keys: one for caches of all codes."""
    return {name: kind for name, kind in signature.items() if not name.endswith("_groups")}


def unread(kv: str, dim: int, target: Target) -> str | None:
    """Why the kernels do not keep keys and values so on a target, or None.

    Args:
        kv: see ``CacheFormat.kv``.
        dim: how many numbers a head has.
    """
    row = CACHE_FORMATS.get(kv)
    if row is None or row.group is None:
        return None
    if has_bf16(target) is not None:
        return f"multiplies what a cache in {kv} holds as bfloat16 numbers, of which {target.name} has no products"
    if not is_cuda(target) and target.registers <= 256 and dim > 128:
        return f"reads a cache in {kv} in rows of up to 128 numbers on {target.name}, whose registers hold no more"
    if row.packed and (dim & (dim - 1) or dim < 2 * row.group):
        return f"reads a cache in {kv} in rows of a power of two of numbers from {2 * row.group} on, not of {dim}"
    if dim <= row.group // 2:
        return f"reads a cache in {kv} in rows of more than {row.group // 2} numbers, not of {dim}"
    return None


def unread_latents(kv: str, rank: int, rotated: int, target: Target) -> str | None:
    """The same of latents of ``rank`` numbers, each beside a rotated key."""
    row = CACHE_FORMATS.get(kv)
    if row is None or row.group is None:
        return None
    least = row.group * 2 if row.packed else row.group
    if rotated & (rotated - 1) or rotated < least or rank <= row.group:
        return (
            f"reads rotated keys in {kv} of {least} numbers or a multiple that is a power of two, beside more than"
            f" {row.group} of a latent, not {rotated} beside {rank}"
        )
    return unread(kv, rank, target)
