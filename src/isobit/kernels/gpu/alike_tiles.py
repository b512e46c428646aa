"""Tiles of linears whose bits do not depend on how many tokens there are. Pure, as ``tiles.py`` is.

What a token gives depends on the instruction that multiplies, on the order along K, on how K is split and on when sums
leave the unit; not on how many rows and columns a tile has. So a weight has one kernel, one step along K and one split
for any number of tokens, and tiles of several sizes.
"""

from __future__ import annotations

from dataclasses import replace

from isobit.kernels.gpu.tiles import FEW, MOST_SPLITS, NARROW, SOME, Config, for_few
from isobit.kernels.gpu.variant import Variant, has_halves
from isobit.targets.spec import Target

# Rows that are launched at once where K is split, which bounds the memory of the sums. Not measured.
ROWS = 512
_WIDE, _WIDEST = 64, 128  # columns of tiles of more than FEW tokens


def sizes(target: Target) -> tuple[int, ...]:
    """Numbers of tokens up to which tiles have one size; the last one stands for any more."""
    return (NARROW, FEW, SOME, ROWS) if warp_groups(target) else (FEW, ROWS)


def size_class(tokens: int, target: Target) -> int:
    """The one of ``sizes`` that a number of tokens belongs to."""
    known = sizes(target)
    return next((size for size in known if tokens <= size), known[-1])


def exact(row: Variant) -> bool:
    """Whether its sums have no rounding, so that all such rows give the same bits: those of integers."""
    return not row.library and row.weights == row.activations == "int8" and row.compute in ("native", "int8")


def warp_groups(target: Target) -> bool:
    """Where tiles of all sizes were compared: with the instructions of sm_90, on an H200."""
    unit = target.unit("float16", "float16")
    return unit is not None and unit.instruction == "HGMMA"


def for_any(row: Variant, config: Config, target: Target, rows: int, multiprocessors: int) -> tuple[Config, int]:
    """What tiles of all sizes have in common, and the most splits of K.

    Args:
        row: one for a few tokens.
        config: the row's.
        target: what it is for.
        rows: of the weight.
        multiprocessors: of the machine.
    """
    if _takes_narrow(row, target):
        return config, 1 if -(-rows // 64) > multiprocessors else MOST_SPLITS
    unit = target.unit(row.weights or "", row.activations or "") if row.compute == "native" else None
    if unit is None or unit.instruction != "QGMMA":
        return for_few(config, target, rows, multiprocessors)
    # Elsewhere a few tokens are multiplied in float16, for which many pay: 64 tokens take 119 us of a 7B's linears of a
    # layer, 74 in float8, and 73 as usual; one takes 76, 65 and 57 (an H200, dev/LOG.md).
    if "GROUP" in config.constexprs:
        return config.with_constants(IMPRECISE=None), MOST_SPLITS
    tiles = -(-rows // 64)
    config = config.with_constants(BLOCK_N=64, BLOCK_K=128, IMPRECISE=unit.promote_every)
    return replace(config, num_stages=6 if tiles <= 2 * multiprocessors else 4), 1 if tiles > multiprocessors else 4


def _takes_narrow(row: Variant, target: Target) -> bool:
    """Whether tiles of 8 columns, and of 16 rows, have the bits of larger ones.

    8-bit codes are taken in another order for them, and codes with zero points had other bits. float16: not compared.
    """
    return warp_groups(target) and row.weights == "int4" and row.compute == "bf16"


def of_size(row: Variant, config: Config, target: Target, tokens: int) -> Config:
    """The tiles for one of ``sizes``.

    Args:
        row, target: as for ``for_any``.
        config: what they have in common, K split as it will be.
        tokens: the size.
    """
    if tokens <= NARROW and _takes_narrow(row, target):
        config = config.with_constants(BLOCK_M=NARROW)
        if config.constexprs["SPLIT_K"] == 1:
            return replace(config.with_constants(BLOCK_N=16), num_warps=1, num_stages=4)
        return config
    if tokens <= FEW or not has_halves(target):
        return config.with_constants(BLOCK_M=FEW)
    config = config.with_constants(BLOCK_M=_WIDE)
    return _wide(config, tokens > SOME) if warp_groups(target) else config


def _wide(config: Config, many: bool) -> Config:
    """Tiles of more than ``FEW`` tokens, as other rows have them for as many (``tiles.py``)."""
    constants = config.constexprs
    if many:
        config = config.with_constants(SWIZZLE=8)
    if "UNIT" in constants:
        return replace(config.with_constants(BLOCK_N=128), num_warps=8)
    if constants.get("ELEMENT") != "native" or not many:
        return config
    if config.signature["x"] in ("*fp16", "*bf16"):
        return replace(config.with_constants(BLOCK_N=128, BLOCK_M=_WIDEST), num_warps=8)
    return replace(config.with_constants(BLOCK_M=_WIDEST), num_stages=min(config.num_stages, 4))
