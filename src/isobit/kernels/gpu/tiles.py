"""How each kernel is compiled for a target: tile sizes, warps, pipeline depth, from what the target can do.

Pure: nothing here imports torch or Triton. A comment at a constant says what was measured, always on an H200, in
microseconds: gpu_tune_one.csv (one token) and gpu_tune_many.csv (N = K = M = 4096) in benchmarks/results, where SPLIT_K
is SPLIT and SWIZZLE is BAND; "sm_86 on it" is that target's code on the same card. What was never timed says "not
measured": it is chosen to fit the shared memory and the registers of the target, which the proof checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from isobit.targets.spec import Target

Family = Literal["vector", "few", "many", "large", "quantize", "prepare"]
Constant = int | float | bool | str | None

# Tokens of the narrowest and the widest tile of the "few" family: `mma` has 8 columns, AMD's units have 16. Layers of a
# 7B at 2, 8 and 16 tokens (gpu_linear.csv): int4 53, 54, 64 us, blocks 79, 80, 76. Where "many" begins to pay: not
# measured.
NARROW = 8
FEW = 16
# Tokens up to which "many" take tiles for so many, and split K where those are too few for the machine. 64 tokens of a
# 7B's layer (gpu_tune_some.csv): e4m3 101 to 71 us, int8 198 to 71, int4 202 to 93; 128: 104 to 89, 202 to 87, 252 to
# 150. Others: not measured.
SOME, SOME_MORE = 64, 128
# int8 by int8 up to so many: 256 tokens of a 7B's layer, qkv, o, gate and up, down: 36, 15, 55 and 36 us; in tiles of
# 128 rows 32, 22, 59 and 57, and with K in two 52, 18, 83 and 33.
SOME_MOST = 256
# Tokens from which weights widened once per call are chosen. On an H200, K = N = 4096 (gpu_linear.csv, crossover): 1024
# tokens of int4 take 71 us widened and 98 us decoded in registers, 512 tokens 67 and 50 us; its sm_86 lowering 104 and
# 136 us, 75 and 70 us. 8-bit weights by bfloat16 gain from 512 on (63 and 76 us). For an RTX A6000 1024 was computed:
# widening takes it 4 ps per weight, decoding in registers about 4 fs per weight and token.
LARGE = 1024
# Tokens from which PyTorch's products are chosen, which need no workspace. Same measurement: float8 takes 13.5 us for
# 256 tokens (ours 15.7 us) and 13.3 us for 128 (ours 11.8 us); bfloat16 10.6 us for 17 tokens (ours 47 us).
LIBRARY_FLOAT8_FROM, LIBRARY_FLOATS_FROM = 256, FEW + 1
# Targets where PyTorch's own products were measured: full sums within 1.5e-4 of float64, and faster than our kernels
# (float8 1253 to 1345 against 843 to 891, bfloat16 768 to 784 against 660 to 687 TFLOP/s; gpu_linear.csv).
LIBRARY_MEASURED = ("sm_90",)
BLOCK = 128  # rows and columns of a block of weights, and activations of a group beside it: the only size with kernels
# CUDA architecture from which there is programmatic dependent launch (PDL): a kernel may start before its predecessor
# has ended. Gains 2 to 7 % at one token (dev/LOG.md, 2026-11-23).
DEPENDENT_LAUNCH_ARCH = 90
# Split-K, one token on an H200 (gpu_tune_one.csv): int4 at 4096x11008 takes 19.3, 14.4 and 10.6 us in 2, 4 and 8
# splits, at 22016x4096 20.3, 20.4 and 26.8; without splits 4096 rows take 8.4 us instead of 6.8 (dev/LOG.md,
# 2026-11-23). More than 8: not measured.
MOST_SPLITS = 8


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled for one target.

    Attributes:
        signature: argument -> type, as Triton writes it.
        constexprs: the constants, ELEMENT and the like.
        num_warps, num_stages: warps of a program; depth of the software pipeline.
        divisible: integer arguments that are multiples of 16.
        between: pointers that are not; the others are.
        copied: pointers to matrices whose blocks TMA copies, which the kernel takes as descriptors: names of the
            constants that are the rows and the columns of a block.
        resident: programs of a multiprocessor that stay there and walk over all tiles; 0 where each tile has its own.
        swizzled: bytes of a block's row that are swizzled together in shared memory, for kernels in Gluon, which are
            told so; 0 for others, for which Triton decides it.
    """

    signature: Mapping[str, str]
    constexprs: Mapping[str, Constant]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ("N", "K")
    between: tuple[str, ...] = ()
    copied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    resident: int = 0
    swizzled: int = 0

    def block_of(self, name: str) -> tuple[int, int]:
        """Rows and columns of a block of a matrix that TMA copies."""
        rows, columns = (int(self.constexprs[constant] or 0) for constant in self.copied[name])
        return rows, columns

    def with_constants(self, **constants: Constant) -> Config:
        """The same with some constants replaced or added."""
        return replace(self, constexprs={**self.constexprs, **constants})


def is_cuda(target: Target) -> bool:
    """Whether NVIDIA's inline assembly can be used."""
    return target.backend is not None and target.backend[0] == "cuda"


def overlaps(target: Target) -> bool:
    """Whether a kernel can start before its predecessor has ended (programmatic dependent launch)."""
    return is_cuda(target) and target.backend is not None and int(target.backend[1]) >= DEPENDENT_LAUNCH_ARCH


# ---------------------------------------------------------------------- tiles

POINTERS = {"f16": "*fp16", "bf16": "*bf16", "f32": "*fp32"}
NATIVE = {"e4m3fn": "*fp8e4nv", "e5m2": "*fp8e5", "int8": "*i8"}
CODES = {"e4m3fn": "*u8", "e5m2": "*u8", "int8": "*i8"}
# Bytes of shared memory that part the targets: 227 KiB (sm_90, sm_100), 99 to 163 KiB (sm_80 to sm_89, sm_120), 64 KiB.
_LARGE_SHARED, _MIDDLE_SHARED = 200 << 10, 80 << 10


@dataclass(frozen=True)
class Tile:
    """BLOCK_N (rows of weights), BLOCK_M (tokens), BLOCK_K (K of one step); warps; depth of the software pipeline."""

    n: int
    m: int
    k: int
    warps: int
    stages: int


NO_EXPERTS: Mapping[str, Constant] = {"EXPERTS": 0, "SHARE": 0}
_WHOLE_STEP = None  # sums of one step along K stay in the matrix unit

# Without matrix units a thread holds what it multiplies in registers. Not measured.
_SCALAR_TILE = Tile(32, FEW, 16, 4, 1)


def _few_tile(target: Target, bytes_x: int, bytes_w: int) -> Tile:
    """Measured at one token, in tiles for 8, with K in 2 to 8 splits; at 2 to 16 tokens not, nor for other formats."""
    if target.unit("float16", "float16") is None:
        return _SCALAR_TILE
    if target.shared_memory < _MIDDLE_SHARED:  # not measured
        return Tile(64, FEW, 128 // bytes_x, 4, 2)
    if target.shared_memory < _LARGE_SHARED:
        # sm_86 on it, e4m3, 36 tiles a shape: the fastest at 4096x4096 (8.20), 12288x4096 (16.71) and 22016x4096
        # (25.44), 15.44 of 15.36 at 4096x11008. 16-bit weights: not measured.
        return Tile(32, FEW, 256 if bytes_w == 1 else 128, 2, 3 if bytes_w == 1 else 4)
    # "a of b": this tile and the fastest. int4: 5.85 of 5.85 at 4096x4096, 20.28 of 18.76 at 22016x4096; e4m3: 7.94 of
    # 6.84 (with steps of 512 along K), 26.35 of 26.32; bf16 in 3 and 5 stages: 12.2 and 11.5 of 10.1 (4: not measured).
    return Tile(64, FEW, 256 if bytes_w == 1 else 128, 4, 3 if bytes_w == 1 else 4)


def takes_narrow_tiles(target: Target) -> bool:
    """Whether kernels for a few tokens have tiles for ``NARROW`` of them.

    AMD's matrix units take 16 tokens or, on some, a slow 4; for 8 the compiler leaves them out altogether.
    """
    return is_cuda(target)


def stages_that_fit(config: Config) -> int:
    """The depth of the pipeline of a configuration whose K is split as it will be.

    Two warps that decode e5m2 for 16 tokens along the whole of K spill 4 registers in three stages (sm_86 and sm_89,
    ``isobit compile``), and none in two.
    """
    constants = config.constexprs
    spills = constants.get("ELEMENT") == "e5m2" and config.num_warps == 2 and constants.get("SPLIT_K") == 1
    return 2 if spills and constants["BLOCK_M"] == FEW else config.num_stages


def _many_tile(target: Target, bytes_x: int, bytes_w: int) -> Tile:
    if target.unit("float16", "float16") is None:  # not measured
        return replace(_SCALAR_TILE, m=32)
    if bytes_x == 4:  # not measured
        return Tile(64, 32, 32, 4, 2)
    if target.shared_memory > _LARGE_SHARED:
        # bf16 201.7, the fastest of 8 (128 tokens, 4 warps: 238.6).
        # 8-bit codes widened to 16 bits: not measured.
        return Tile(128, 256 if bytes_x == bytes_w else 128, 128 // bytes_x, 8, 3)
    if target.shared_memory > _MIDDLE_SHARED:
        if bytes_x == 1:  # not measured
            return Tile(128, 128, 128, 8, 3)
        if bytes_w == 1:  # sm_86 on it: 432.7, the fastest of 20 (128 by 128 in 4 stages: 438.3)
            return Tile(64, 256, 32, 4, 3)
        # sm_86 on it: 332.9, the fastest of 10 (8 warps: 403.0). Where prefetching takes registers, 8: not measured.
        return Tile(128, 128, 64, 8 if overlaps(target) else 4, 3)
    # A thread of RDNA has half of CDNA's registers: twice the threads share the tile. Not measured.
    return Tile(128, 64, 64 // bytes_x, 4 if target.registers > 256 else 8, 2)


def for_few(config: Config, target: Target, rows: int, multiprocessors: int) -> tuple[Config, int]:
    """The configuration of "few" for a weight of so many rows, and the most splits of K; whatever the number of tokens.

    Weights of the products' own format by 8 tokens (gpu_tune_some.csv; bf16, e4m3): gate and up in tiles of 128 rows
    with half a step 45.6 and 25.9 us (64 rows 53.8 and 27.3), q, k and v not split 27.3 and 16.4 (in two 29.4 and
    17.6), down in four 25.4 and 15.4 (e4m3 in eight 17.2); 16-bit weights in 3 stages (in 4 o 12.2, down 27.2).
    """
    codes = "GROUP" not in config.constexprs and config.constexprs.get("ELEMENT") == "native"
    if not codes or target.shared_memory <= _LARGE_SHARED or not overlaps(target):
        return config, MOST_SPLITS
    tiles, step = -(-rows // int(config.constexprs["BLOCK_N"] or 1)), int(config.constexprs["BLOCK_K"] or 1)
    if tiles > 2 * multiprocessors:
        return replace(config.with_constants(BLOCK_N=128, BLOCK_K=step // 2), num_stages=4), 1
    return replace(config, num_stages=3), 1 if tiles > multiprocessors else 4


def for_some(
    config: Config, target: Target, tiles_in_a_wave: Callable[[Config], int], rows: int, tokens: int
) -> Config:  # fmt: skip
    """The configuration of "many" for ``SOME``, ``SOME_MORE`` or ``SOME_MOST`` tokens.

    Codes: 6 stages where one wave holds all tiles (o 10.1, down 21.6 us; in 4: 11.6, 28.2), else 4 (gate and up 26.7;
    in 6: 29.9). Nibbles: 128 rows in 8 warps and 3 stages (o 10.5 us; 64 rows in 4 warps 11.4).

    Args:
        config: the row's.
        target: what it is for.
        tiles_in_a_wave: programs of a configuration that the machine runs at once.
        rows, tokens: of the weight; that are multiplied.
    """
    config = config.with_constants(BLOCK_M=min(tokens, int(config.constexprs["BLOCK_M"] or tokens)))
    if target.shared_memory <= _LARGE_SHARED or not overlaps(target):
        return config
    if _bytes(config.signature["x"]) == 1 and "GROUP" not in config.constexprs:
        deep = replace(config.with_constants(BLOCK_N=64), num_warps=4, num_stages=6)
        if tokens > SOME_MORE:
            return replace(deep, num_stages=4)
        return deep if -(-rows // 64) <= tiles_in_a_wave(deep) else replace(deep, num_stages=4)
    if "UNIT" in config.constexprs and not config.constexprs["HAS_ZERO"]:
        return replace(config.with_constants(BLOCK_N=128), num_warps=8, num_stages=3)
    return config


def _lines_ahead(target: Target) -> int:
    """Cache lines of each row of weights to prefetch while the kernel before still runs.

    One token, four formats by four shapes: 2 lines are the fastest or within 1 %; 8 cost up to 11 %, none 5 to 18 %.
    """
    return 2 if overlaps(target) else 0


def _tile_constants(target: Target, family: Family, tile: Tile) -> dict[str, Constant]:
    few = family == "few"
    return {
        "ASM": is_cuda(target), "OVERLAP": _lines_ahead(target), "BLOCK_N": tile.n, "BLOCK_M": tile.m,
        # For a few tokens `configure` decides how K is split. SWIZZLE: tiles along N that run side by side, for x in
        # the level-2 cache; measured were 4 and 16 (bf16 204.4 and 201.7, int8 130.9 and 131.1), not 8.
        "SPLIT_K": 4 if few else 1, "SWIZZLE": 1 if few else 8, "LATE": False,
    }  # fmt: skip


def matrix_signature(x: str, w: str, scale: str = "*fp32") -> dict[str, str]:
    y = x if x in POINTERS.values() else "*bf16"
    return {
        "x": x, "w": w, "token_scale": "*fp32", "scale": scale, "zero": "*u8", "bias": "*fp32", "residual": y,
        "y": y,
        "partials": "*i32" if x == "*i8" else "*fp32", "counters": "*i32",
        "experts": "*i32", "order": "*i32", "M": "i32", "N": "i32", "K": "i32",
        "stride_w": "i32", "stride_scale": "i32", "gain": "fp32",
    }  # fmt: skip


def _bytes(pointer: str) -> int:
    return {"*fp32": 4, "*fp16": 2, "*bf16": 2, "*i16": 2}.get(pointer, 1)


def _precision(target: Target) -> str:
    return "tf32x3" if is_cuda(target) and target.unit("float16", "float16") else "ieee"


def _promotion(target: Target, element: str) -> tuple[int, bool]:
    """(IMPRECISE, PROMOTE): how sums of a unit that rounds them reach float32."""
    unit = target.unit(element, element)
    if unit is None or unit.promote_every is None:
        return 0, False
    warp_groups = unit.instruction.startswith("QG")
    return (unit.promote_every, False) if warp_groups else (0, True)


# ---------------------------------------------------------------------- configurations


def row_scaled(
    family: Family, w: str, x: str, element: str, *, scaled: bool = True, rounded: bool = False, native: str = ""
) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix``; ``native`` is the float8 format that the unit multiplies, if one is."""

    def config(target: Target) -> Config:
        tile = (_few_tile if family == "few" else _many_tile)(target, _bytes(x), _bytes(w))
        imprecise, promote = _promotion(target, native) if native else (0, False)
        if family == "few" and imprecise:  # memory-bound: float16 products of the same codes add up in full
            imprecise = 0
        if promote or imprecise:
            tile = replace(tile, m=min(tile.m, 128), k=128)
        if imprecise:  # two sums of a tile are in registers: 142.9, the fastest of 18 (128 rows 149.9; 256 tokens 357)
            tile = replace(tile, n=64, warps=4, stages=4)
        unit = target.unit("int8", "int8") if x == "*i8" else None
        if unit is not None and unit.instruction == "IGMMA" and family == "many":
            # Two programs share a multiprocessor: one begins and ends while the other multiplies. 2048 tokens of a 7B,
            # us for qkv, o, gate and up, down: 162, 57, 297, 137; in tiles for 256 tokens 192, 68, 353, 160.
            tile = Tile(128, 128, 128, 4, 3)
        if unit is not None and unit.instruction == "IMMA":  # its sums are in registers, unlike those of newer units
            tile = replace(tile, m=min(tile.m, 128))
        constants = {
            **_tile_constants(target, family, tile), "ELEMENT": element, "HAS_TOKEN_SCALE": rounded,
            "HAS_SCALE": scaled, "HAS_BIAS": False, "AFTER": "", **NO_EXPERTS, "EVEN_K": True, "IMPRECISE": imprecise,
            "PROMOTE": promote, "PRECISION": _precision(target), "BLOCK_K": tile.k,
        }  # fmt: skip
        return Config(matrix_signature(x, w), constants, tile.warps, tile.stages)

    return config


def block_scaled(family: Family, w: str, x: str, element: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_block``, for blocks of 128 by 128."""

    def config(target: Target) -> Config:
        tile = (_few_tile if family == "few" else _many_tile)(target, _bytes(x), _bytes(w))
        if target.unit("float16", "float16") is None:  # two sums of a tile are in registers; not measured
            tile = replace(tile, m=FEW)
        if family == "many" and w == x and target.shared_memory > _LARGE_SHARED:
            tile = replace(tile, n=64, warps=4)  # 227.0 in 4 stages, the fastest of 8 (128 rows 308.2); 3: not measured
        constants: dict[str, Constant] = {
            # sm_86 on it, codes widened: 64 tokens 757.8 in 2 stages, the fastest of 6 (128: 809.5).
            **_tile_constants(target, family, replace(tile, m=min(tile.m, 128 if w == x else 64))),
            "ELEMENT": element, "HAS_BIAS": False, "AFTER": "", **NO_EXPERTS, "GROUP": BLOCK,
            "BLOCK_K": 128 if target.unit("float16", "float16") else tile.k,
            "IMPRECISE": _WHOLE_STEP if family == "many" and w == x else 0,
        }  # fmt: skip
        stages = tile.stages if target.shared_memory > _MIDDLE_SHARED else 1
        return Config(matrix_signature(x, w), constants, tile.warps, min(stages, 3))

    return config


def unit_of_nibbles(target: Target, zero: bool) -> int:
    """Codes of a unit: 256 were the best for one token, 128 for 4096 (296 against 349 us); one order of codes is kept.

    With zero points, which take registers, 128; without matrix units 64: not measured against others.
    """
    if target.unit("float16", "float16") is None:
        return 64
    return 128 if zero else 256


def nibbles(family: Family, x: str, zero: bool) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_nibbles``, for groups of 128."""

    def config(target: Target) -> Config:
        tile = (_few_tile if family == "few" else _many_tile)(target, 2, 1)
        if family == "many" and target.unit("float16", "float16") and target.shared_memory > _MIDDLE_SHARED:
            # A step has all four quarters of x. 128 by 128 took 349 and spilled, 128 by 64 with 4 warps and 3 stages
            # 739. 256 tokens of a 7B's layer, us: 65, 23, 129 and 57 in three stages, 89, 32, 166 and 82 in two.
            large = target.shared_memory > _LARGE_SHARED
            stages = 3 if large and overlaps(target) and not zero else 2
            tile = replace(tile, n=128 if large else 64, m=64, warps=8 if large else 4, stages=stages)
        if family == "many" and target.registers == 256:  # RDNA; not measured
            tile = replace(tile, m=min(tile.m, 32))
        constants: dict[str, Constant] = {
            **_tile_constants(target, family, replace(tile, m=min(tile.m, 128))),
            "GROUP": 128, "UNIT": unit_of_nibbles(target, zero), "HAS_ZERO": zero, "HAS_BIAS": False, "AFTER": "",
            **NO_EXPERTS,
        }  # fmt: skip
        small = target.shared_memory < _MIDDLE_SHARED
        return Config(matrix_signature(x, "*i16", "*bf16"), constants, tile.warps, 1 if small else tile.stages)

    return config


def stream(family: Family, bits: int, group: int, x: str, *, zero: bool = False) -> Callable[[Target], Config]:
    """Configuration of the packed integers that no tile of a matrix unit fits. Tiles not measured."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "BITS": bits, "GROUP": group, "HAS_ZERO": zero, "HAS_BIAS": False, "AFTER": "", **NO_EXPERTS, "BLOCK_N": 8,
            "BLOCK_K": 256 if zero else 512,  # zero points take registers too
        }  # fmt: skip
        if family == "many":
            constants |= {"PRECISION": _precision(target), "BLOCK_N": 64, "BLOCK_M": 32, "BLOCK_K": 32, "SWIZZLE": 8}
        return Config(matrix_signature(x, "*i32", "*bf16"), constants, 4, 2, divisible=())

    return config


def vector(w: str, x: str, element: str, *, scaled: bool = True, rounded: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_vector``.

    bf16, 108 tiles a shape: the fastest at 22016x4096 (43.6); 25.7 of 25.0, 23.5 of 22.9, 10.4 of 10.0 on the others,
    which want UNROLL 4. 8-bit weights and float32 activations: not measured.
    """

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "ELEMENT": element, "HAS_TOKEN_SCALE": rounded, "HAS_SCALE": scaled, "HAS_BIAS": False, "AFTER": "",
            **NO_EXPERTS, "EVEN_K": True, "ASM": is_cuda(target), "OVERLAP": _lines_ahead(target), "BLOCK_N": 4,
            "BLOCK_K": 1024 // _bytes(w), "UNROLL": 2,
        }  # fmt: skip
        return Config(matrix_signature(x, w), constants, 4 if _bytes(w) > 1 else 2, 1)

    return config


def vector_int8(target: Target) -> Config:
    """Configuration of ``linear_vector_int8``.

    36 tiles a shape: the fastest at 4096x4096 (5.54) and 22016x4096 (22.3); 12.6 of 12.6, 13.5 of 13.0 on the others.
    UNROLL 2 on AMD: not measured.
    """
    constants: dict[str, Constant] = {
        "HAS_BIAS": False, "AFTER": "", **NO_EXPERTS, "EVEN_K": True, "ASM": is_cuda(target),
        "OVERLAP": _lines_ahead(target), "BLOCK_N": 4, "BLOCK_K": 256, "UNROLL": 4 if is_cuda(target) else 2,
    }  # fmt: skip
    return Config(matrix_signature("*i32", "*i32"), constants, 2, 1)


def library(x: str) -> Callable[[Target], Config]:
    """PyTorch's products have no constants of ours."""
    return lambda target: Config(matrix_signature(x, x), {}, 1, 1)


def after_widening(pointer: str, *, rounded: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix`` for a weight that lies widened in a workspace."""

    def config(target: Target) -> Config:
        plain = row_scaled("large", pointer, pointer, "native", rounded=rounded)(target)
        # SWIZZLE 16 was as fast as 4 for bf16 by sm_86's code (333.6 and 332.9 us) and 1 % faster for sm_90's.
        plain = plain.with_constants(OVERLAP=-int(overlaps(target)), SWIZZLE=16)
        if target.shared_memory <= _LARGE_SHARED:
            return plain
        # On an H200 by a hair the fastest: 229 against 230 us for int4, 4096 cubed (gpu_tune_large.csv).
        return replace(plain.with_constants(BLOCK_N=256, BLOCK_M=128, SWIZZLE=8), num_stages=4)

    return config
