"""Tiles of the linears of experts: how many tokens they have, and how they are compiled. Pure, as ``tiles.py`` is.

Measured on an H200 with random choices, us of gate and up, and of down (benchmarks/gpu_tune_experts.py): Qwen3-30B-A3B
(128 experts, 2048 by 768) and Mixtral-8x7B (8 experts, 4096 by 14336).
"""

from __future__ import annotations

from dataclasses import replace

from isobit.kernels.gpu.tiles import FEW, NARROW, SOME, SOME_MORE, Config, overlaps
from isobit.targets.spec import Target

MIDDLE = 32
_LONG = 4096  # values of a row; between 2048 and that: not measured
_MEDIUM = 2048  # between 768 and that: not measured
_LARGE_SHARED = 200 << 10
_CACHED = 4 << 20  # bytes of an expert's rows that run side by side
# Pairs that an expert has on average, up to which tiles of a width are taken. e4m3, Qwen, 4 an expert: tiles of 8 take
# 94 and 52, of 16 97 and 53. Mixtral, 16 an expert: of 16 250 and 128, of 32 225 and 117, of 64 232 and 141. Qwen, 128
# an expert: of 64 190 and 143, of 128 197 and 171, which waste half of their rows there. Others: not measured.
_WIDTHS = ((NARROW, 4), (FEW, 12), (MIDDLE, 24), (SOME, 160))


def width_of(tokens: int, pairs: int, experts: int) -> int:
    """Tokens of a tile; 1 where pairs are computed one by one, because few of them have an expert in common."""
    if tokens == 1 or 8 * pairs <= experts:
        return 1
    each = -(-pairs // experts)
    return next((width for width, most in _WIDTHS if each <= most), SOME_MORE)


def for_experts(config: Config, target: Target, width: int, k: int, element: str = "") -> Config:
    """The configuration of a tile of ``width`` tokens and rows of ``k`` values, of one that suits a linear of so many.

    ``element`` is the weights' format.

    8-bit codes by rounded activations (e4m3): up to 8 tokens 64 rows by 256 of K in 4 stages (8 tokens: Qwen 42.8 and
    23.8, Mixtral 186 and 102; in 3 stages Mixtral 187 and 120; 128 rows by 128 of K in 4 stages 48 and 26, 196 and 122)
    and of short rows 32 in two warps and 3 stages (Qwen 41.4 and 23.4). From 32 on 128 rows in four warps. Nibbles: six
    to eight other tiles are not faster; bf16: three to five neither (184 and 97 for 64 tokens).

    8192 tokens of Qwen, 512 pairs an expert: 128 rows by 64 tokens in four warps and 3 stages 571 and 439, 64 by 128 in
    4 stages 581 and 509, 128 by 128 in eight warps 579 and 541, 64 by 256 771 and 674. All tiles along N side by side
    instead of eight: 64 by 128 557 and 478, nibbles 1153 and 838 of 1164 and 850. Nibbles in 64 rows, four warps and 2
    stages 1086 and 909 (2048 tokens: 328 and 274 of 344 and 255), in 128 by 128 1225 and 823.
    """
    if target.shared_memory <= _LARGE_SHARED or not overlaps(target):
        return config
    tiled = _tiled(config, target, width, k, element)
    if tiled.constexprs.get("SWIZZLE", 1) == 1:
        return tiled
    return tiled.with_constants(SWIZZLE=_beside(tiled, k))


def _tiled(config: Config, target: Target, width: int, k: int, element: str) -> Config:
    nibbles = element == "int4" and "UNIT" in config.constexprs and not config.constexprs["HAS_ZERO"]
    if nibbles and width >= SOME and k >= _MEDIUM:
        return replace(config.with_constants(BLOCK_N=64), num_warps=4, num_stages=2)
    if "GROUP" in config.constexprs or config.constexprs.get("ELEMENT") != "native":
        return config
    if config.signature["x"] in ("*fp16", "*bf16", "*fp32"):
        return config
    if width <= NARROW:
        short = replace(config.with_constants(BLOCK_N=32), num_warps=2, num_stages=3)
        return short if k < _LONG and _in_float16(config, target) else replace(config, num_stages=4)
    if width > SOME and config.constexprs.get("IMPRECISE"):  # two sums of a tile are in registers
        config, width = config.with_constants(BLOCK_M=SOME), SOME
    if width <= FEW or width > SOME:
        return config
    return replace(config.with_constants(BLOCK_N=128), num_warps=4, num_stages=5 if width <= MIDDLE else 3)


def _beside(config: Config, k: int) -> int:
    """Tiles along N that run side by side: eight, or more where those are little of the level-2 cache.

    An expert's rows are then read from there for all of its tokens, and tokens once for all rows.
    """
    bits = 4 if "UNIT" in config.constexprs else {"*fp16": 16, "*bf16": 16}.get(config.signature["w"], 8)
    return max(8, _CACHED // (int(config.constexprs["BLOCK_N"] or 1) * k * bits // 8))


def _in_float16(config: Config, target: Target) -> bool:
    """Whether few tokens of float8 are multiplied in float16, which needs no four warps: the unit rounds its sums."""
    unit = target.unit("e4m3fn", "e4m3fn")
    return config.signature["x"] in ("*fp8e4nv", "*fp8e5") and unit is not None and unit.instruction == "QGMMA"
