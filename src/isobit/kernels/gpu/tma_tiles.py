"""Which linears of very many tokens run on ``triton/linear_tma.py``, and how it is compiled. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from isobit.kernels.gpu.tiles import Config, Constant, Tile, matrix_signature, overlaps
from isobit.kernels.gpu.variant import Requires, has_unit
from isobit.targets.spec import Target

_UNITS = ("HGMMA", "QGMMA", "IGMMA")  # whose operands lie in shared memory, where TMA puts them
_ALIGNED = 16  # bytes of which addresses and rows of a matrix are multiples
_PARTS = 4  # in which results of a tile leave at most


@dataclass(frozen=True)
class _Walk:
    """Tiles; bytes of results that leave at once, unless they are ``_PARTS``; programs of a multiprocessor."""

    tile: Tile
    leaving: int
    resident: int


# On an H200, linears of a 7B's layer by 8192 tokens (qkv, o, gate and up, down), us. int8: 568, 191, 1014, 490; where
# each tile has its own program, whose threads ask for it, 664, 220, 1178, 568. Results that leave whole, or tiles of
# 128 by 256 or 256 by 128 in 8 warps, let no second program onto the multiprocessor: 886, 308, 1660, 830 and 735, 236,
# 1285, 622. Stored by threads and not by TMA 597, 198, 1080, 507. Of float16 nothing was measured (dev/LOG.md).
_WALKS: Mapping[str, _Walk] = {
    "*i8": _Walk(Tile(128, 128, 128, 4, 3), 16 << 10, 2),
}
BYTES = {"*fp8e4nv": 1, "*fp8e5": 1, "*i8": 1, "*fp16": 2, "*bf16": 2, "*fp32": 4}


def copies_tiles(dtype: str) -> Requires:
    """Where TMA feeds the matrix unit of a dtype, and tiles were compared: not on Blackwell."""

    def requires(target: Target) -> str | None:
        reason, unit = has_unit(dtype)(target), target.unit(dtype, dtype)
        if reason or unit is None or unit.instruction in _UNITS:
            return reason
        return f"{target.name} has no matrix unit that reads {dtype} where TMA puts it"

    return requires


def tiled(pointer: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_tma`` for weights with a scale a row, and rounded tokens.

    Args:
        pointer: to what is multiplied.
    """

    def config(target: Target) -> Config:
        walk = _WALKS[pointer]
        tile = walk.tile
        constants: dict[str, Constant] = {
            "HAS_BIAS": False, "AFTER": "", "OVERLAP": overlaps(target), "BLOCK_N": tile.n, "BLOCK_M": tile.m,
            "BLOCK_K": tile.k, "BLOCK_Y": tile.n, "SWIZZLE": 8,
        }  # fmt: skip
        copied = {"x": ("BLOCK_M", "BLOCK_K"), "w": ("BLOCK_N", "BLOCK_K"), "y": ("BLOCK_M", "BLOCK_Y")}
        signature = matrix_signature(pointer, pointer)
        whole = Config(signature, constants, tile.warps, tile.stages, copied=copied, resident=walk.resident)
        return for_results(whole, pointer, "*bf16")

    return config


def for_results(config: Config, pointer: str, results: str) -> Config:
    """The same for results of a type: of wide ones, and of those with residuals beside them, fewer leave at once."""
    constants = config.constexprs
    rows, tokens = int(constants["BLOCK_N"] or 1), int(constants["BLOCK_M"] or 1)
    walk, fewest = _WALKS[pointer], rows // _PARTS
    beside = tokens * BYTES[results] * (2 if constants["AFTER"] == "add" else 1)
    while rows * beside > walk.leaving and rows > fewest:
        rows //= 2
    types = {**config.signature, "y": results, "residual": results}
    return replace(config.with_constants(BLOCK_Y=rows), signature=types)


def misfit(pointer: str, n: int | None, k: int, aligned: bool) -> str | None:
    """Why TMA does not copy the tiles of a weight, of what is multiplied by it or of the results; or None.

    ``n`` is None where it copies no results.
    """
    for name, number, width in (("K", k, BYTES[pointer]), ("N", n or 0, BYTES["*bf16"])):
        if number * width % _ALIGNED:
            return f"TMA copies rows of whole {_ALIGNED} bytes: {name} = {number} is no multiple of {_ALIGNED // width}"
    return None if aligned else f"the weights do not begin at a multiple of {_ALIGNED} bytes"
