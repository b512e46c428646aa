"""How the kernels of a layer's parts beside its linears are compiled: tiles, warps, depth of the pipeline. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from isobit.kernels.gpu.before_tiles import by_instructions
from isobit.kernels.gpu.grouped_tiles import codes_of, groups_of, is_grouped, without_groups
from isobit.kernels.gpu.tiles import Config, Constant, is_cuda, overlaps
from isobit.targets.spec import Target

NormOf = Literal["none", "head", "head-behind", "width"]
POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
_LARGE_SHARED, _MIDDLE_SHARED = 200 << 10, 80 << 10

# Keys of a part in the attention of few new tokens, and the most parts of a sequence, from which on parts are longer.
# On an H200 (dev/LOG.md, 2026-11-29) 4040 tokens of 8 heads with four queries each took 7.6 us a layer more than 100 do
# with parts of 128 and three stages, 12.2 with parts of 256 and four; 8 and 64 sequences of 1000 26.7 for 29.1 and
# 136.1 for 137.3. What suits the batch is not taken: a token's bits would depend on its neighbours.
# A sequence of up to ONE_PART keys is one part all the same: it needs no merging.
PART, ONE_PART, MOST_PARTS = 128, 512, 32
_MOST_NEW, _TILE_ROWS = 4, 16  # tokens that are few; rows of the smallest tile of a matrix unit
_PROGRAMS_EACH = 8  # of a multiprocessor: with more sequences and heads than that, programs take several parts
LARGEST_HEAD = 256
HEADS_AT_ONCE = 16  # of a program that rotates


@dataclass(frozen=True)
class AttentionShape:
    """What a compiled attention depends on.

    Attributes:
        dtype: of queries, keys and values, as torch calls it.
        heads, kv_heads, dim: see ``kernels.heads.AttentionSpec``.
        window, softcap: whether there is one.
        block: tokens of a block of the cache.
        columns: blocks of a sequence at most.
        alike: whether a token's bits are the same as one of few and as one of many: no sequence is one of few.
        element: element format that keys and values are cached as, or the name of a format whose groups share scales
            (``CacheFormat.kv``); empty for ``dtype``.
        chunk, sinks: whether there are any.
        fused: whether a sequence of one new token has a kernel that rotates and stores it, too; those of a few then go
            with those of many.
    """

    dtype: str
    heads: int
    kv_heads: int
    dim: int
    window: bool = False
    softcap: bool = False
    block: int = 256
    columns: int = 16
    alike: bool = False
    element: str = ""
    chunk: bool = False
    sinks: bool = False
    fused: bool = False

    @property
    def cached(self) -> str:
        """What keys and values are to Triton."""
        return codes_of(self.element) if self.element else POINTERS[self.dtype]

    @property
    def key_bytes(self) -> int:
        """Of a key's numbers as they are multiplied."""
        return self.width * _SIZES[self.dtype]

    @property
    def group(self) -> int:
        """Query heads of one head of keys."""
        return self.heads // self.kv_heads

    @property
    def few(self) -> int:
        """New tokens up to which a sequence is one of few."""
        if self.alike:
            return 0
        return 1 if self.fused else min(_MOST_NEW, max(1, _TILE_ROWS // self.group))

    @property
    def width(self) -> int:
        """The head's width as tiles have it."""
        return power_of_two(self.dim)


@dataclass(frozen=True)
class RopeShape:
    """What a compiled rotation depends on; ``table`` is the dtype of cosines and sines, ``late`` as of ``RowShape``,
    ``element`` as of ``AttentionShape``."""

    dtype: str
    heads: int
    kv_heads: int
    dim: int
    norm: bool = False
    table: str = ""
    late: bool = False
    element: str = ""


@dataclass(frozen=True)
class RareRope:
    """What a compiled rotation depends on that few families ask for.

    Attributes:
        plain: the rest.
        norm: which norm there is, if any, and where (``rope_append_any``).
        rotated: dimensions of a head that are rotated.
        interleaved: whether neighbours are rotated with each other.
        scaled: whether queries are multiplied by numbers of their tokens.
    """

    plain: RopeShape
    norm: NormOf
    rotated: int
    interleaved: bool = False
    scaled: bool = False


def power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _precision(target: Target, dtype: str) -> str:
    return "tf32x3" if dtype == "float32" and is_cuda(target) and target.unit("float16", "float16") else "ieee"


# ---------------------------------------------------------------------- attention


@dataclass(frozen=True)
class _Tile:
    """Queries and keys of a step; warps; depth of the pipeline."""

    m: int
    n: int
    warps: int
    stages: int


def _attention(shape: AttentionShape, target: Target, tile: _Tile, signature: dict[str, str]) -> Config:
    pointer, groups = POINTERS[shape.dtype], groups_of(shape.element, "key_groups", "value_groups")
    types = {
        **dict.fromkeys(("q", "out"), pointer), **dict.fromkeys(("keys", "values"), shape.cached),
        **dict.fromkeys(("key_scales", "value_scales", "sinks"), "*fp32"),
        **dict.fromkeys(("starts", "lengths", "table"), "*i32"), **signature,
        **dict.fromkeys(("columns", "block", "window"), "i32"), "gain": "fp32", "factor": "fp32", **groups.types,
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "HEADS": shape.heads, "KV_HEADS": shape.kv_heads, "DIM": shape.dim, "WIDTH": shape.width, "NEW": shape.few,
        "BLOCK_N": tile.n, "WHOLE": shape.block % tile.n == 0 or shape.columns == 1, "WINDOW": shape.window,
        "CHUNK": shape.chunk, "SINKS": shape.sinks, "SOFTCAP": shape.softcap,
        "PRECISION": _precision(target, shape.dtype), "ELEMENT": shape.element,
        "ASM": is_cuda(target), "OVERLAP": overlaps(target), **groups.constants,
    }  # fmt: skip
    return Config(types, constants, tile.warps, tile.stages, divisible=())


def attention_few(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_few``."""
    rows = max(_TILE_ROWS, power_of_two(shape.group * shape.few))
    config = _attention(
        shape, target, _few_tile(shape, target, rows),
        {"work": "*fp32", "stats": "*fp32", "room": "i32", "queries": "i32"},
    )  # fmt: skip
    return config.with_constants(ROWS=rows, PART=PART, ONE=ONE_PART, MOST=MOST_PARTS)


def attention_merge(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_merge``."""
    few = attention_few(shape, target)
    wanted = (
        "HEADS", "KV_HEADS", "DIM", "WIDTH", "NEW", "BLOCK_N", "PART", "ONE", "MOST", "WINDOW", "CHUNK", "SINKS",
        "OVERLAP",
    )  # fmt: skip
    signature = without_groups(few.signature)
    return Config(signature, {name: few.constexprs[name] for name in wanted}, 4, 1, divisible=())


def _few_tile(shape: AttentionShape, target: Target, rows: int) -> _Tile:
    """Keys of a step: what a multiprocessor has several of at once."""
    size = shape.width * _SIZES[shape.dtype]
    if _without_unit(shape, target):
        return _Tile(rows, 16, warps_of(target), 1)
    if target.shared_memory < _MIDDLE_SHARED:
        return _Tile(rows, 16 if _few_registers(target) else 32, warps_of(target), 1)
    if target.shared_memory <= _LARGE_SHARED:
        return _Tile(rows, 64 if size <= 256 else 32, 4, 2)
    # With three stages an H200's multiprocessor has three programs at once, with four two: see PART.
    return _Tile(rows, 64 if size <= 256 else 32, 4, 3)


def _without_unit(shape: AttentionShape, target: Target) -> bool:
    """Whether products are ordinary arithmetic: a thread then holds what it multiplies in registers."""
    if shape.dtype == "float32" and not is_cuda(target):
        return _few_registers(target)
    return target.unit("float16", "float16") is None


def _few_registers(target: Target) -> bool:
    """A thread of RDNA has half of CDNA's registers: twice the threads share a tile."""
    return not is_cuda(target) and target.registers <= 256


def warps_of(target: Target) -> int:
    return 8 if _few_registers(target) else 4


def attention_many(shape: AttentionShape, target: Target) -> Config:
    """Configuration of ``attention_many``."""
    tile = _many_tile(shape, target)
    return _attention(shape, target, tile, {"sequences": "i32"}).with_constants(BLOCK_M=tile.m)


def _many_tile(shape: AttentionShape, target: Target) -> _Tile:
    """An H200 took 547 us for a prompt of 4096 (7B) with 64 by 64 and four warps, 587 with 128 by 128 and eight."""
    size = shape.width * _SIZES[shape.dtype]
    if _without_unit(shape, target):
        return _Tile(16, 16, warps_of(target), 1)
    if target.shared_memory < _MIDDLE_SHARED:
        keys = 16 if _few_registers(target) else 32
        wide = size <= 256 and not (shape.element and _few_registers(target))
        tall = 64 if wide else 16 if _few_registers(target) and size > 256 else 32
        return _Tile(tall, keys, warps_of(target), 1)
    if shape.dtype == "float32":
        return _Tile(32, 32, 8, 2)
    if target.shared_memory > _LARGE_SHARED:
        return _Tile(64, 64, 4, 3) if size <= 256 else _Tile(64, 32, 4, 2)
    if is_grouped(shape.element):  # in larger tiles registers spill (``isobit compile``)
        if size <= 256:
            return _Tile(32, 32, 4, 2)
        return _Tile(32, 32, 8, 2) if is_cuda(target) else _Tile(32, 16, 8, 2)
    return _Tile(64, 32, 4, 2) if size <= 256 else _Tile(32, 32, 4, 2)


def parts_of(most: int, parts: int = MOST_PARTS, part: int = PART) -> int:
    """Parts of a sequence of up to ``most`` tokens that there must be room for: ``parts`` at most, of ``part`` keys."""
    return 1 if most <= ONE_PART else min(parts, max(1, -(-most // part)))


def programs_of(parts: int, others: int, multiprocessors: int) -> int:
    """Programs for the parts of each sequence and head, of which there are ``others``: enough to fill the machine."""
    return max(1, min(parts, -(-_PROGRAMS_EACH * multiprocessors // max(1, others))))


# ---------------------------------------------------------------------- rows


def rope_append(shape: RopeShape, target: Target) -> Config:
    """Configuration of ``rope_append``."""
    pointer, table = POINTERS[shape.dtype], POINTERS[shape.table or shape.dtype]
    types = {
        **dict.fromkeys(("q", "k", "v", "rotated"), pointer), "cos": table, "sin": table,
        **dict.fromkeys(("keys", "values"), codes_of(shape.element) if shape.element else pointer),
        **dict.fromkeys(("key_scales", "value_scales"), "*fp32"),
        "q_norm": "*fp32", "k_norm": "*fp32", "slots": "*i64",
        **dict.fromkeys(("stride_q", "stride_k", "stride_v", "block"), "i32"), "eps": "fp32",
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "HEADS": shape.heads, "KV_HEADS": shape.kv_heads, "DIM": shape.dim, "HALF": power_of_two(shape.dim // 2),
        "BATCH": HEADS_AT_ONCE, "NORM": shape.norm, "ELEMENT": shape.element, "OVERLAP": overlaps(target),
        "LATE": shape.late, **by_instructions(shape.element, target),
    }  # fmt: skip
    # With four warps two registers spill on NVIDIA's targets up to sm_90, in 40 (``isobit compile``).
    return Config(types, constants, 8, 1, divisible=("stride_q", "stride_k", "stride_v"))


def rope_append_any(shape: RareRope, target: Target) -> Config:
    """Configuration of ``rope_append_any``."""
    plain, groups = rope_append(shape.plain, target), groups_of(shape.plain.element, "key_groups", "value_groups")
    constants = {name: value for name, value in plain.constexprs.items() if name != "HALF"}
    constants |= groups.constants
    constants |= {
        "WIDTH": power_of_two(shape.plain.dim), "NORM": shape.norm, "ROTATED": shape.rotated,
        "INTERLEAVED": shape.interleaved, "SCALED": shape.scaled,
    }  # fmt: skip
    return replace(plain, signature={**plain.signature, "q_scale": "*fp32", **groups.types}, constexprs=constants)


def late(tokens: int, *, alike: bool = False) -> bool:
    """Whether what stands between linears lets the next start late (``pdl.wait``): linears of one token have thousands
    of small programs, which find their places whenever they start; those of several have few large ones, and so has one
    where its bits must be those beside others (alike)."""
    return alike or tokens > 1
