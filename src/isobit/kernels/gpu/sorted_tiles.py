"""Linears of experts whose tokens lie sorted by expert: where they run, and how they are compiled. Pure.

One kernel, ``triton/linear_experts.py``: TMA copies tiles of tokens and of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isobit.kernels.gpu.tiles import SOME_MORE, Config, Constant, overlaps
from isobit.kernels.gpu.tma_tiles import BYTES
from isobit.targets.spec import Target

# From more pairs an expert than fill a tile of so many tokens on average: ``expert_tiles.width_of``.
WIDTH = SOME_MORE
# Values of a row from which that pays, of both linears. An H200, fp8 by 8192 tokens, whole layers: Mixtral's (4096 and
# 14336) take 7.7 ms and 9.8 otherwise, Qwen3-30B-A3B's (2048 and 768) the same 2.1; between those: not measured.
SHORTEST = 1024
GATES = ("silu", "gelu_tanh", "gelu")  # that it applies before it stores
_ROWS = 128  # of weights, of a tile
_STEP = 128  # bytes of a row that a tile has: what TMA swizzles at once
# An H200, Mixtral's gate and up in e4m3 by 8192 tokens: 3537 us in a ring of 4 slots with 16 tiles side by side, 3840
# in one of 6 with 8; where results are turned takes 16 KiB of shared memory beside it.
_DEPTH, _BESIDE = 4, 16


def sorted_tokens(pointer: str, *, rounded: bool, scaled: bool, promoted: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_experts``.

    Args:
        pointer: to what is multiplied.
        rounded: whether tokens have scales.
        scaled: whether rows have.
        promoted: whether the matrix unit rounds its sums, which are added up outside of it then.
    """

    def config(target: Target) -> Config:
        types = {
            "x": pointer, "w": pointer, **dict.fromkeys(("token_scale", "scale", "bias"), "*fp32"), "y": "*bf16",
            **dict.fromkeys(("experts", "order"), "*i32"), **dict.fromkeys(("M", "PAIRS", "N", "K"), "i32"),
            "gain": "fp32",
        }  # fmt: skip
        constants: dict[str, Constant] = {
            "HAS_TOKEN_SCALE": rounded, "HAS_SCALE": scaled, "HAS_BIAS": False, "AFTER": "", "PROMOTE": promoted,
            "SORTED": False, "SHARE": 0, "OVERLAP": overlaps(target), "BLOCK_N": _ROWS, "BLOCK_M": WIDTH,
            "BLOCK_K": _STEP // BYTES[pointer], "DEPTH": _DEPTH, "SWIZZLE": _BESIDE,
        }  # fmt: skip
        copied: Mapping[str, tuple[str, str]] = {"x": ("BLOCK_M", "BLOCK_K"), "w": ("BLOCK_N", "BLOCK_K")}
        return Config(types, constants, 4, 1, copied=copied, resident=1, swizzled=_STEP)

    return config
