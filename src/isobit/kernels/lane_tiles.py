"""How the kernels of ``triton/linear_lanes.py`` are compiled, and where they are chosen. Pure, as ``tiles.py`` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from isobit.kernels.tiles import Config, Constant, matrix_signature, overlaps, unit_of_nibbles
from isobit.targets.spec import Target

# CUDA architecture from which on there is mma.m16n8k16. On an H200 linear_lanes.py was the fastest for one token in the
# lowerings of sm_86, sm_89 and sm_90 (gpu_linear.csv); for the others it is taken to be.
LANES_ARCH = 80


@dataclass(frozen=True)
class LaneTile:
    """Rows and warps of a program of linear_lanes.py, each with 128 words of a step, and steps in its loop's body."""

    n: int
    warps: int
    unroll: int


LANE_WORDS = 128  # of a warp: four for each lane
_WIDE_ROWS = 8192  # from which there are programs enough to give each but one warp
# Measured on an H200 (gpu_tune_lanes.csv): below and from _WIDE_ROWS on. What takes many instructions to decode wants
# few warps that wait for each other; the others want much of K in flight.
_LANE_TILES: Mapping[str, tuple[LaneTile, LaneTile]] = {
    "f16": (LaneTile(4, 4, 1), LaneTile(4, 4, 1)), "bf16": (LaneTile(4, 4, 1), LaneTile(4, 4, 1)),
    "hardware": (LaneTile(4, 4, 2), LaneTile(4, 4, 2)), "e5m2": (LaneTile(4, 4, 2), LaneTile(4, 4, 2)),
    "e4m3fn": (LaneTile(4, 2, 1), LaneTile(4, 1, 1)), "nibbles": (LaneTile(4, 2, 2), LaneTile(4, 1, 1)),
}  # fmt: skip


def for_rows(config: Config, n: int) -> Config:
    """A configuration of linear_lanes.py for a weight of ``n`` rows."""
    tile = _LANE_TILES[str(config.constexprs.get("ELEMENT", "nibbles"))][n >= _WIDE_ROWS]
    changed = config.with_constants(BLOCK_N=tile.n, BLOCK_K=LANE_WORDS * tile.warps, UNROLL=tile.unroll)
    return replace(changed, num_warps=tile.warps)


def lanes(element: str, *, scaled: bool = True, rounded: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_lanes``; ``element`` as there."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "ELEMENT": element, "HAS_TOKEN_SCALE": rounded, "HAS_SCALE": scaled, "HAS_BIAS": False, "EVEN_K": True,
            "ASM": True, "OVERLAP": int(overlaps(target)), "AHEAD": True, "BLOCK_N": 4, "BLOCK_K": 256,
            "UNROLL": 1,
        }  # fmt: skip
        return for_rows(Config(matrix_signature("*i32", "*i32"), constants, 2, 1), 1)

    return config


def lanes_nibbles(dtype: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_lanes_nibbles``, for groups of 128."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "GROUP": 128, "UNIT": unit_of_nibbles(target, False), "DTYPE": dtype, "HAS_BIAS": False, "EVEN_K": True,
            "ASM": True, "OVERLAP": int(overlaps(target)), "AHEAD": True, "BLOCK_N": 4, "BLOCK_K": 256,
            "UNROLL": 1,
        }  # fmt: skip
        return for_rows(Config(matrix_signature("*i32", "*i32", "*bf16"), constants, 2, 1), 1)

    return config
