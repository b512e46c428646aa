"""How the kernels of ``triton/linear_lanes*.py`` are compiled, and where they are chosen. Pure, as ``tiles.py`` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from isobit.kernels.gpu.tiles import BLOCK, NO_EXPERTS, Config, Constant, matrix_signature, overlaps, unit_of_nibbles
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


# Words of a warp's step: four for each lane, which reads 16 bytes, and the warp 512 in a row. Lanes that read 64 bytes
# of each of 16 rows reached 46 % of the bandwidth (dev/LOG.md 2026-11-23, gpu_tune_one_fragment.csv), these 79 %
# (e4m3).
LANE_WORDS = 128
# Rows from which there are programs enough to give each but one warp: int4 with one and two warps takes 13.9 and 15.0
# us at 22016 rows, 9.0 and 8.7 at 12288, 5.2 and 4.0 at 4096. Between 4096 and 12288: not measured.
WIDE_ROWS = 8192
# Below and from WIDE_ROWS on, out of 18 to 39 tiles a shape (gpu_tune_lanes.csv: one token, four shapes, an H200; of
# sm_86 e4m3, blocks, int4 and e4m3 by float16 on it). What takes many instructions to decode wants few warps that wait
# for each other; the others want much of K in flight.
# Key: format of the codes; dtype of activations that are not rounded; what is particular about the scales.
_LANE_TILES: Mapping[tuple[str, str, str], tuple[LaneTile, LaneTile]] = {
    ("f16", "", ""): (LaneTile(4, 4, 1), LaneTile(4, 4, 1)), ("bf16", "", ""): (LaneTile(4, 4, 1), LaneTile(4, 4, 1)),
    ("hardware", "", ""): (LaneTile(4, 4, 2), LaneTile(4, 4, 2)),
    ("e5m2", "", ""): (LaneTile(4, 4, 2), LaneTile(4, 4, 2)),
    ("e4m3fn", "", ""): (LaneTile(4, 2, 1), LaneTile(4, 1, 1)),
    ("hardware", "f16", ""): (LaneTile(4, 4, 1), LaneTile(4, 2, 1)),
    ("e4m3fn", "f16", ""): (LaneTile(4, 2, 1), LaneTile(4, 1, 4)),
    ("e4m3fn", "bf16", ""): (LaneTile(8, 4, 1), LaneTile(4, 4, 1)),
    ("int8", "f16", ""): (LaneTile(8, 4, 1), LaneTile(4, 4, 1)),
    ("int8", "bf16", ""): (LaneTile(8, 4, 1), LaneTile(4, 4, 1)),
    ("nibbles", "", ""): (LaneTile(4, 2, 2), LaneTile(4, 1, 1)),
    ("nibbles", "", "groups of quarters"): (LaneTile(4, 2, 1), LaneTile(8, 1, 1)),
    ("nibbles", "", "zero points"): (LaneTile(4, 2, 1), LaneTile(8, 2, 1)),
    ("hardware", "", "blocks"): (LaneTile(8, 4, 1), LaneTile(4, 2, 2)),
    ("e4m3fn", "", "blocks"): (LaneTile(8, 4, 1), LaneTile(4, 2, 2)),
}  # fmt: skip


def _kind(constants: Mapping[str, Constant]) -> tuple[str, str, str]:
    """Which of ``_LANE_TILES`` is for a configuration."""
    if "UNIT" in constants:
        if constants["HAS_ZERO"]:
            return "nibbles", "", "zero points"
        quarters = int(constants["GROUP"] or 0) % (int(constants["UNIT"] or 0) // 2)
        return "nibbles", "", "groups of quarters" if quarters else ""
    blocks = "blocks" if "GROUP" in constants else ""
    return str(constants["ELEMENT"]), str(constants.get("X", "")), blocks


def for_rows(config: Config, n: int) -> Config:
    """A configuration of the lanes' kernels for a weight of ``n`` rows."""
    tile = _LANE_TILES[_kind(config.constexprs)][n >= WIDE_ROWS]
    changed = config.with_constants(BLOCK_N=tile.n, BLOCK_K=LANE_WORDS * tile.warps, UNROLL=tile.unroll)
    return replace(changed, num_warps=tile.warps)


def for_experts(config: Config, words: int, n: int) -> Config:
    """The same for ``n`` rows of ``words`` words of many experts, of which a token goes to a few: often short ones.

    Eight experts of one token, us of gate and up (2048 values a row) and of down (768) on an H200: e4m3 in (8 rows, 1
    warp) 9.7 and 6.9, in (4, 4) 10.9 and 9.5, in (8, 4) and (8, 2) 11.4 and 7.6; int4 in (8, 1) 7.7 and 6.3, in (4, 1)
    8.7 and 6.8, down in (16, 1) 5.5, whose registers spill elsewhere. Rows of 4096 and more (Mixtral's): five tiles
    within 3 %. Other formats: not measured.
    """
    if words > 4 * LANE_WORDS:
        return for_rows(config, n)
    return replace(config.with_constants(BLOCK_N=8, BLOCK_K=LANE_WORDS, UNROLL=1), num_warps=1)


def _config(target: Target, constants: Mapping[str, Constant], scale: str = "*fp32") -> Config:
    """What all have in common; rows, steps and warps of a program come from its tile."""
    known: dict[str, Constant] = {
        "HAS_BIAS": False, "EVEN_K": True, "ASM": True, "OVERLAP": int(overlaps(target)), "AFTER": "", **NO_EXPERTS
    }  # fmt: skip
    return for_rows(Config(matrix_signature("*i32", "*i32", scale), {**known, **constants}, 2, 1), 1)


def lanes(element: str, *, scaled: bool = True, rounded: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_lanes`` for activations of the weights' format; ``element`` as there."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "ELEMENT": element, "X": "", "HAS_TOKEN_SCALE": rounded, "HAS_SCALE": scaled
        }  # fmt: skip
        return _config(target, constants)

    return config


def lanes_by_floats(element: str, dtype: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_lanes`` for codes by activations as they are."""

    def config(target: Target) -> Config:
        converts = dtype == "f16" and element == "e4m3fn" and target.unit("e4m3fn", "e4m3fn") is not None
        constants: dict[str, Constant] = {
            "ELEMENT": "hardware" if converts else element, "X": dtype, "HAS_TOKEN_SCALE": False, "HAS_SCALE": True
        }  # fmt: skip
        return _config(target, constants)

    return config


def lanes_block(element: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_lanes_block``."""
    return lambda target: _config(target, {"ELEMENT": element, "GROUP": BLOCK})


def lanes_nibbles(dtype: str, zero: bool) -> Callable[[Target], Config]:
    """Configuration of ``linear_lanes_nibbles``, for groups of 128."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "GROUP": 128, "UNIT": unit_of_nibbles(target, zero), "DTYPE": dtype, "HAS_ZERO": zero
        }  # fmt: skip
        return _config(target, constants, "*bf16")

    return config
