"""How the kernels of latent attention are compiled: rows and keys of a tile, warps, depth of the pipeline. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.kernels.gpu.before_tiles import by_instructions
from isobit.kernels.gpu.grouped_tiles import codes_of, groups_of, is_grouped, unread_latents
from isobit.kernels.gpu.layer_tiles import HEADS_AT_ONCE, POINTERS
from isobit.kernels.gpu.tiles import Config, Constant, is_cuda, overlaps
from isobit.kernels.gpu.variant import compiles
from isobit.targets.spec import Target

# Keys that are not worth more than one part of a sequence with one new token; the most parts, and the most of all
# heads: each leaves a latent's numbers in float32. Parts follow from lengths and heads alone (see layer_tiles.PART).
ONE_PART, MOST_PARTS, MOST_OF_HEADS = 256, 32, 2048
FEW_HEADS = 32  # of more, tiles of heads fill the machine, too: parts are longer
MERGED_AT_ONCE = 4  # parts that a program adds up at a time
FEW_TOKENS = 16  # of a narrow tile of a product
LARGEST_RANK, LARGEST_TURN = 512, 128
_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
_LARGE_SHARED, _MIDDLE_SHARED = 200 << 10, 80 << 10
_ONE_TILE = 101 << 10  # bytes that hold no two tiles of 32 latents in 8 bits
_PROGRAMS_EACH = 8  # of a multiprocessor, see layer_tiles


@dataclass(frozen=True)
class LatentShape:
    """What a compiled latent attention depends on.

    Attributes:
        dtype: of the activations, as torch calls it.
        heads, plain, rotated, value, rank, interleaved: see ``kernels.latent.LatentSpec``.
        block: tokens of a block of the cache.
        columns: blocks of a sequence at most.
        alike: whether a token's bits are the same as one of few and as one of many: all are then of many.
        element: as of ``layer_tiles.AttentionShape``.
        table: dtype of cosines and sines; empty for ``dtype``.
        weights: dtype of the heads' matrices; empty for ``dtype``.
        late: see ``layer_tiles.late``.
    """

    dtype: str
    heads: int
    plain: int = 128
    rotated: int = 64
    value: int = 128
    rank: int = 512
    interleaved: bool = True
    block: int = 64
    columns: int = 16
    alike: bool = False
    element: str = ""
    table: str = ""
    weights: str = ""
    late: bool = False

    @property
    def cached(self) -> str:
        """What latents and keys of the cache are to Triton."""
        return codes_of(self.element) if self.element else POINTERS[self.dtype]

    @property
    def width(self) -> int:
        """The latent's width as tiles have it: two halves."""
        return max(32, _power_of_two(self.rank))

    @property
    def turn(self) -> int:
        """The same of the rotated part."""
        return _power_of_two(self.rotated)

    @property
    def few(self) -> int:
        """New tokens up to which a sequence's keys are split among programs."""
        return 0 if self.alike else 1


@dataclass(frozen=True)
class ProductShape:
    """What a compiled product of the heads' matrices depends on.

    Attributes:
        of: the attention.
        back: from the latents to the heads' values, and not from queries to the latents.
        many: whether there are more tokens than a narrow tile has.
    """

    of: LatentShape
    back: bool
    many: bool


@dataclass(frozen=True)
class Tile:
    """Rows (heads of tokens) and keys of a step; warps; depth of the pipeline; whether two programs share the sums."""

    m: int
    n: int
    warps: int
    stages: int
    apart: bool = False


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


def _precision(target: Target, dtype: str) -> str:
    return "tf32x3" if dtype == "float32" and is_cuda(target) and target.unit("float16", "float16") else "ieee"


def requires(target: Target) -> str | None:
    """Why a target cannot run them: a row's sums are 512 numbers beside a query of 576, in registers."""
    if target.unit("float16", "float16") is None:
        return "latent attention needs a matrix unit for float16 or bfloat16"
    if not is_cuda(target) and target.registers <= 256:
        return "a tile of latents does not fit the registers of RDNA"
    return compiles(target)


def unsupported(rotated: int, rank: int, dtype: str, target: Target, element: str = "") -> str | None:
    """Why the kernels do not run a latent attention of such sizes in a dtype on a target, or None; ``element``: as of
    ``layer_tiles.AttentionShape``."""
    if dtype == "float32":
        return "computes latent attention in bfloat16 and float16, not in float32"
    if why := requires(target):
        return why
    if rank > LARGEST_RANK:
        return f"has latents of up to {LARGEST_RANK} dimensions, not {rank}"
    if rotated > LARGEST_TURN or rotated % 2 or rotated < 2:
        return f"has an even number of up to {LARGEST_TURN} rotated dimensions, not {rotated}"
    return unread_latents(element, rank, rotated, target)


def part_of(heads: int) -> int:
    """Keys of a part at least. 16 heads of one sequence of 4096 tokens took an H200 11.0 us in parts of 128, 16.3 of
    256; 64 sequences of 1024 took 50.5 and 46.2 (dev/LOG.md, 2026-11-28)."""
    return 128 if heads <= FEW_HEADS else 256


def most_parts(heads: int) -> int:
    """The most parts of a sequence: a power of two."""
    return min(MOST_PARTS, 1 << max(2, (MOST_OF_HEADS // heads).bit_length() - 1))


def parts_of(heads: int, most: int) -> int:
    """Parts of a sequence of up to ``most`` tokens that there must be room for."""
    return 1 if most <= ONE_PART else min(most_parts(heads), max(1, -(-most // part_of(heads))))


def arena(heads: int, rank: int, sequences: int, most: int) -> int:
    """Bytes of the parts of so many sequences of one new token and up to ``most`` tokens, until they are added up."""
    parts = parts_of(heads, most)
    return 4 * sequences * heads * parts * (max(32, _power_of_two(rank)) + 2) if parts > 1 else 0


def programs_of(parts: int, others: int, multiprocessors: int) -> int:
    """Programs for the parts of each sequence and tile of heads, of which there are ``others``."""
    return max(1, min(parts, -(-_PROGRAMS_EACH * multiprocessors // max(1, others))))


# ---------------------------------------------------------------------- configurations


def append(shape: LatentShape, target: Target) -> Config:
    """Configuration of ``latent_append``."""
    pointer, table = POINTERS[shape.dtype], POINTERS[shape.table or shape.dtype]
    groups = groups_of(shape.element, "latent_groups", "key_groups")
    types = {
        **dict.fromkeys(("q", "kv", "turned"), pointer), "cos": table, "sin": table, "weight": "*fp32",
        "slots": "*i64", **dict.fromkeys(("latents", "keys"), shape.cached),
        **dict.fromkeys(("latent_scales", "key_scales"), "*fp32"), "stride_q": "i32", "stride_kv": "i32",
        "eps": "fp32", "qmax": "fp32", **groups.types,
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "HEADS": shape.heads, "PLAIN": shape.plain, "ROTATED": shape.rotated, "RANK": shape.rank,
        "HALF": 1 << (shape.rotated // 2 - 1).bit_length(), "WIDTH": shape.width, "BATCH": HEADS_AT_ONCE,
        "INTERLEAVED": shape.interleaved, "ELEMENT": shape.element, "OVERLAP": overlaps(target), "LATE": shape.late,
        **by_instructions(shape.element, target), **groups.constants,
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=("stride_q", "stride_kv"))


def product(shape: ProductShape, target: Target) -> Config:
    """Configuration of ``latent_product``."""
    of = shape.of
    k, n = (of.rank, of.value) if shape.back else (of.plain, of.rank)
    tile_m, tile_n, tile_k, warps, stages = _product_tile(shape, target)
    tile_k = min(tile_k, _power_of_two(k))
    types = {
        "x": POINTERS[of.dtype], "w": POINTERS[of.weights or of.dtype], "y": POINTERS[of.dtype],
        **dict.fromkeys(("tokens", "stride_t", "stride_h", "stride_w"), "i32"),
    }  # fmt: skip
    even = k % tile_k == 0 and n % tile_n == 0
    line = 128 // _SIZES[of.weights or of.dtype]
    lines = max(1, k // line) if shape.back else max(1, tile_n // line)
    constants: dict[str, Constant] = {
        "HEADS": of.heads, "K": k, "N": n, "STRIDE": of.rank, "ROWS": shape.back, "BLOCK_M": tile_m,
        "BLOCK_N": tile_n, "BLOCK_K": tile_k, "EVEN": even, "LINES": 1 << (lines.bit_length() - 1),
        "PRECISION": _precision(target, of.dtype), "OVERLAP": overlaps(target),
    }  # fmt: skip
    return Config(types, constants, warps, stages, divisible=("stride_t", "stride_h", "stride_w"))


def _product_tile(shape: ProductShape, target: Target) -> tuple[int, int, int, int, int]:
    """Tokens, outputs and inputs of a tile; warps; stages. Tiles of one height where bits must be alike."""
    small = target.shared_memory < _MIDDLE_SHARED or shape.of.dtype == "float32"
    if target.unit("float16", "float16") is None:
        return 16, 32, 16, 4, 1
    if shape.many and not small and not shape.of.alike:
        return 64, 64, 64, 4, 3
    return (16, 32, 64, 4, 2) if small else (16, 32 if shape.back else 64, 128, 4, 3)


def _attention(shape: LatentShape, target: Target, tile: Tile, signature: dict[str, str]) -> Config:
    pointer, groups = POINTERS[shape.dtype], groups_of(shape.element, "latent_groups", "key_groups")
    types = {
        **dict.fromkeys(("q", "turned"), pointer), **dict.fromkeys(("latents", "keys"), shape.cached),
        **dict.fromkeys(("latent_scales", "key_scales"), "*fp32"),
        **dict.fromkeys(("starts", "lengths", "table"), "*i32"), "out": pointer, **signature,
        "columns": "i32", "block": "i32", "factor": "fp32", **groups.types,
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "HEADS": shape.heads, "RANK": shape.rank, "ROTATED": shape.rotated, "WIDTH": shape.width, "TURN": shape.turn,
        "ROWS": tile.m, "BLOCK_N": tile.n, "APART": tile.apart,
        "WHOLE": shape.block % tile.n == 0 or shape.columns == 1,
        "PRECISION": _precision(target, shape.dtype), "ELEMENT": shape.element, "ASM": is_cuda(target),
        "OVERLAP": overlaps(target), **groups.constants,
    }  # fmt: skip
    return Config(types, constants, tile.warps, tile.stages, divisible=())


def few(shape: LatentShape, target: Target) -> Config:
    """Configuration of ``latent_few``."""
    config = _attention(
        shape, target, few_tile(shape, target), {"work": "*fp32", "stats": "*fp32", "room": "i32"}
    )  # fmt: skip
    return config.with_constants(PART=part_of(shape.heads), ONE=ONE_PART, MOST=most_parts(shape.heads))


def merge(shape: LatentShape, target: Target) -> Config:
    """Configuration of ``latent_merge``."""
    types = {
        "starts": "*i32", "lengths": "*i32", "out": POINTERS[shape.dtype], "work": "*fp32", "stats": "*fp32",
        "room": "i32",
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "HEADS": shape.heads, "RANK": shape.rank, "WIDTH": shape.width, "PART": part_of(shape.heads),
        "ONE": ONE_PART, "MOST": most_parts(shape.heads), "AT_ONCE": MERGED_AT_ONCE, "OVERLAP": overlaps(target),
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=())


def many(shape: LatentShape, target: Target) -> Config:
    """Configuration of ``latent_many``."""
    config = _attention(shape, target, many_tile(shape, target), {"sequences": "i32"})
    return config.with_constants(NEW=shape.few)


def _grouped_tile(shape: LatentShape, target: Target) -> Tile | None:
    """Over caches whose groups share a scale, where the usual tiles don't fit (``isobit compile``). Not measured."""
    if not is_grouped(shape.element):
        return None
    if shape.dtype == "float16":  # a query is two numbers of bfloat16: registers spill
        return Tile(16, 16, 8, 1, apart=True)
    return Tile(16, 16, 8, 2) if shape.element == "mxfp8" and target.shared_memory <= _ONE_TILE else None


def few_tile(shape: LatentShape, target: Target) -> Tile:
    """Heads and keys of a step of one token.

    On an H200 (dev/LOG.md, 2026-11-28) 16 heads of 64 sequences of 1024 tokens took 46 us with four warps, 58 with
    eight; as e4m3fn, which is decoded in registers, 74 where two programs share the sums, 84 where they do not. 128
    heads took 284 us in tiles of 32 and 64 keys, 418 in tiles of 16, 286 in tiles of 64 and 32 keys that share sums.
    """
    if not is_cuda(target) or target.shared_memory < _MIDDLE_SHARED or shape.dtype == "float32":
        return Tile(16, 16, 8, 1)
    if tile := _grouped_tile(shape, target):
        return tile
    if target.shared_memory <= _LARGE_SHARED:
        return Tile(16, 32, 8, 2)
    if shape.element:
        return Tile(16, 32, 4, 2, apart=True)
    return Tile(16, 32, 4, 3) if shape.heads <= 16 else Tile(32, 64, 8, 2)


def many_tile(shape: LatentShape, target: Target) -> Tile:
    """Rows and keys of a step of a prompt.

    16 heads of 512 and of 2048 tokens took an H200 39 and 402 us in tiles of 64 whose programs share the sums, which
    the units of warp groups multiply; 38 and 445 with 32 keys, 51 and 369 in tiles of 128, 43 and 528 in tiles of 32.
    """
    if not is_cuda(target) or target.shared_memory < _MIDDLE_SHARED or shape.dtype == "float32":
        return Tile(16, 16, 4, 1)
    if tile := _grouped_tile(shape, target):
        return tile
    if shape.element:
        return Tile(16, 32, 8, 2)
    unit = target.unit(shape.dtype, shape.dtype)
    if unit is not None and unit.instruction == "HGMMA":
        return Tile(64, 64, 4, 2, apart=True)
    return Tile(32, 32, 8, 2) if target.shared_memory <= _LARGE_SHARED else Tile(32, 64, 8, 2)
