"""Which linears of very many tokens run on ``triton/linear_tma.py``, and how it is compiled. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from isobit.kernels.gpu.tiles import Config, Constant, Tile, matrix_signature, overlaps
from isobit.kernels.gpu.variant import Requires, has_unit
from isobit.targets.spec import Target

_UNITS = ("IGMMA", "HGMMA")  # whose operands lie in shared memory, where TMA puts them
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
# 1285, 622. Stored by threads and not by TMA 597, 198, 1080, 507 (dev/LOG.md).
# float16 (int4's, behind its widening), sustained at the card's 700 W: 1296, 439, 2310, 1140, sum 5184, one program a
# multiprocessor. In 4 stages and quarters 1298, 427, 2349, 1160 (5233); 128 rows by 256 tokens, 4 stages 1312, 463,
# 2382, 1150 (5307); 128 by 128 in 4 warps, two programs 1351, 443, 2492, 1235 (5521); tiles that threads ask for 5591
# (in a whole model); cuBLAS 1269, 419, 2289, 1097 (5073). By 2048 tokens, in short bursts, qkv and down 337 and 297,
# cuBLAS 345 and 303. bfloat16, which is as wide: not measured.
_OF_16_BITS = _Walk(Tile(256, 128, 64, 8, 3), 32 << 10, 1)
_WALKS: Mapping[str, _Walk] = {
    "*i8": _Walk(Tile(128, 128, 128, 4, 3), 16 << 10, 2), "*fp16": _OF_16_BITS, "*bf16": _OF_16_BITS,
}  # fmt: skip
_BYTES = {"*i8": 1, "*fp16": 2, "*bf16": 2, "*fp32": 4}


def copies_tiles(dtype: str) -> Requires:
    """Where TMA feeds the matrix unit of a dtype, and tiles were compared: not on Blackwell."""

    def requires(target: Target) -> str | None:
        reason, unit = has_unit(dtype)(target), target.unit(dtype, dtype)
        if reason or unit is None or unit.instruction in _UNITS:
            return reason
        return f"{target.name} has no matrix unit that reads {dtype} where TMA puts it"

    return requires


def tiled(pointer: str, *, rounded: bool = True, widened: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_tma`` for weights with a scale a row.

    Args:
        pointer: to what is multiplied.
        rounded: whether tokens have scales.
        widened: whether the weight lies in a workspace, which the kernel before has written.
    """

    def config(target: Target) -> Config:
        walk = _WALKS[pointer]
        tile = walk.tile
        overlap = -int(overlaps(target)) if widened else overlaps(target)
        constants: dict[str, Constant] = {
            "HAS_TOKEN_SCALE": rounded, "HAS_BIAS": False, "AFTER": "", "OVERLAP": overlap,
            "BLOCK_N": tile.n, "BLOCK_M": tile.m, "BLOCK_K": tile.k, "BLOCK_Y": tile.n, "SWIZZLE": 8,
        }  # fmt: skip
        copied = {"x": ("BLOCK_M", "BLOCK_K"), "w": ("BLOCK_N", "BLOCK_K"), "y": ("BLOCK_M", "BLOCK_Y")}
        signature = matrix_signature(pointer, pointer)
        whole = Config(signature, constants, tile.warps, tile.stages, copied=copied, resident=walk.resident)
        return for_results(whole, pointer, signature["y"])

    return config


def for_results(config: Config, pointer: str, results: str) -> Config:
    """The same for results of a type: of wide ones, and of those with residuals beside them, fewer leave at once."""
    constants = config.constexprs
    rows, tokens = int(constants["BLOCK_N"] or 1), int(constants["BLOCK_M"] or 1)
    walk, fewest = _WALKS[pointer], rows // _PARTS
    beside = tokens * _BYTES[results] * (2 if constants["AFTER"] == "add" else 1)
    while rows * beside > walk.leaving and rows > fewest:
        rows //= 2
    types = {**config.signature, "y": results, "residual": results}
    return replace(config.with_constants(BLOCK_Y=rows), signature=types)


def misfit(pointer: str, n: int, k: int, aligned: bool) -> str | None:
    """Why TMA does not copy the tiles of a weight, of what is multiplied by it or of the results; or None."""
    for name, number, width in (("K", k, _BYTES[pointer]), ("N", n, _BYTES["*bf16"])):
        if number * width % _ALIGNED:
            return f"TMA copies rows of whole {_ALIGNED} bytes: {name} = {number} is no multiple of {_ALIGNED // width}"
    return None if aligned else f"the weights do not begin at a multiple of {_ALIGNED} bytes"
