"""How the attention of batch-invariant models is compiled (``triton/attention_alike.py``), and where it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.grouped_tiles import is_grouped, without_groups
from isobit.kernels.gpu.layer_tiles import AttentionShape
from isobit.kernels.gpu.tiles import Config, is_cuda
from isobit.targets.spec import Target

PART = 256  # keys of the first parts
_GROWS_AFTER, _FACTOR = 32, 4  # parts of a size (and of all smaller ones), and how much longer the next ones are
_AT_ONCE = 8  # parts that a merge reads at once
_FIRST_ARCH = 80  # from which on ``mma.m16n8k16`` multiplies 16 bits
_UNITS = ("HMMA", "HGMMA")  # whose sums were compared, on an H200; those of tcgen05 were not
_PLAIN_KEYS = 256  # bytes


@dataclass(frozen=True)
class _Tile:
    """Queries of many new tokens, and keys of a step; warps and depth of the pipeline of both kernels."""

    m: int
    n: int
    warps: int
    stages: int


def few_of(shape: AttentionShape, target: Target) -> int:
    """New tokens up to which a sequence is one of few, whose keys programs share; 0: no sequence is.

    That both kernels give the same bits is a property of the matrix unit.
    """
    unit = target.unit("float16", "float16")
    if not is_cuda(target) or target.backend is None or int(target.backend[1]) < _FIRST_ARCH:
        return 0
    if shape.dtype == "float32" or unit is None or unit.instruction not in _UNITS:
        return 0
    return replace(shape, alike=False).few


def parts_of(most: int) -> int:
    """Parts of a sequence of up to ``most`` tokens."""
    count, begin, size = 0, 0, PART
    while begin < most:
        end = PART * _GROWS_AFTER * (size // PART)
        last = min(most, end) if size < PART * _FACTOR**3 else most
        count += -(-(last - begin) // size)
        begin, size = last, size * _FACTOR
    return max(1, count)


def _tile(shape: AttentionShape, target: Target) -> _Tile:
    """Two sums of a tile are in registers: what does not spill them (``isobit compile``).

    On an H200 a prompt of 2048 (32 heads, bf16) takes 226 us in tiles of 128, 445 in tiles of 64 and eight warps.
    """
    unit = target.unit("float16", "float16")
    large = unit is not None and unit.instruction == "HGMMA"
    small = large or shape.dtype == "float16" or is_grouped(shape.element)
    if shape.key_bytes > _PLAIN_KEYS or (shape.element and small):
        return _Tile(32, 32, 8, 2)
    if not large:
        return _Tile(64, 32, 8, 2)
    return _Tile(128 if shape.dtype == "bfloat16" and shape.dim == shape.width else 64, 64, 8, 3)


def _common(shape: AttentionShape, target: Target) -> Config:
    config, tile = tiles.attention_many(replace(shape, alike=True), target), _tile(shape, target)
    whole = shape.block % tile.n == 0 or shape.columns == 1
    constants = {"NEW": few_of(shape, target), "PART": PART, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "WHOLE": whole}
    return replace(config.with_constants(**constants), num_warps=tile.warps, num_stages=tile.stages)


def attention_alike_many(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_alike_many``."""
    return _common(shape, target)


def attention_alike_few(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_alike_few``: steps of as many keys as for many tokens."""
    many = _common(shape, target)
    constants = {name: value for name, value in many.constexprs.items() if name != "BLOCK_M"}
    constants["ROWS"] = max(16, 1 << (shape.group * max(1, few_of(shape, target)) - 1).bit_length())
    extra = {"work": "*fp32", "stats": "*fp32", "room": "i32", "queries": "i32"}
    types = {name: kind for name, kind in many.signature.items() if name != "sequences"} | extra
    return Config(types, constants, 4, many.num_stages, divisible=())


def attention_alike_merge(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_alike_merge``."""
    few = attention_alike_few(shape, target)
    wanted = (
        "HEADS", "KV_HEADS", "DIM", "WIDTH", "NEW", "BLOCK_N", "PART", "WINDOW", "CHUNK", "SINKS", "OVERLAP",
    )  # fmt: skip
    constants = {name: few.constexprs[name] for name in wanted} | {"AT_ONCE": _AT_ONCE}
    return Config(without_groups(few.signature), constants, 1, 1, divisible=())
