"""How the kernels that route tokens to experts are compiled: blocks, warps. Pure. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.kernels.gpu.layer_tiles import POINTERS
from isobit.kernels.gpu.tiles import Config, Constant, is_cuda, overlaps
from isobit.targets.spec import Target

# Pairs of tokens and experts that a program goes over at a time; values of a token; of those that are added up.
PAIRS_AT_ONCE, VALUES_AT_ONCE, ADDED_AT_ONCE = 1024, 1024, 512
# Of inputs that are sorted: places of a program, and words of each. One place of 1024 words: 118 us for 65536 pairs of
# 512 words on an H200, whose bytes are 35.
PLACES_AT_ONCE, WORDS_AT_ONCE = 8, 256


@dataclass(frozen=True)
class RouterShape:
    """What a compiled router depends on.

    Attributes:
        dtype: of the activations, as torch calls it.
        experts, active: how many there are, and of a token.
        scores, groups, active_groups, by_two, renormalize: see ``choose_experts``.
        bias, corrected: whether logits have one; whether scores are corrected for the choice.
    """

    dtype: str
    experts: int
    active: int
    scores: str = "softmax"
    groups: int = 1
    active_groups: int = 1
    by_two: bool = False
    renormalize: bool = True
    bias: bool = False
    corrected: bool = False


@dataclass(frozen=True)
class PlacesShape:
    """What compiled kernels of pairs depend on: experts, tokens of a tile."""

    experts: int
    tile: int


@dataclass(frozen=True)
class SumShape:
    """What adding experts, or weighing inputs, depends on: dtype, experts of a token, whether they are weighted, and
    whether a residual is added."""

    dtype: str
    active: int
    weighted: bool = True
    adds: bool = False


def power_of_two(size: int) -> int:
    """The least power of two that is no less."""
    return 1 << (max(1, size) - 1).bit_length()


def router_many(shape: RouterShape, target: Target) -> Config:
    """Configuration of ``router_many``."""
    unit = target.unit("float16", "float16") is not None
    types = {"x": POINTERS[shape.dtype], **dict.fromkeys(("weight", "bias", "logits"), "*fp32"), "K": "i32", "M": "i32"}
    constants: dict[str, Constant] = {
        "EXPERTS": shape.experts, "HAS_BIAS": shape.bias, "OVERLAP": overlaps(target),
        "BLOCK_N": 32 if unit else 16, "BLOCK_M": 16, "BLOCK_K": 64 if unit else 16,
        "PRECISION": "tf32x3" if is_cuda(target) and unit else "ieee",
    }  # fmt: skip
    return Config(types, constants, 4, 2 if unit else 1, divisible=("K",))


def choose_experts(shape: RouterShape, target: Target) -> Config:
    """Configuration of ``choose_experts``."""
    types = {
        **dict.fromkeys(("logits", "correction", "weights"), "*fp32"), "ids": "*i32", "least_sum": "fp32",
        "scale": "fp32", "tolerance": "fp32",
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "EXPERTS": shape.experts, "WIDTH": power_of_two(shape.experts), "ACTIVE": shape.active,
        "SLOTS": power_of_two(shape.active), "SCORES": shape.scores, "CORRECTED": shape.corrected,
        "GROUPS": shape.groups, "BEST_GROUPS": shape.active_groups, "BY_TWO": shape.by_two,
        "GROUP_PAD": power_of_two(shape.groups), "RENORMALIZE": shape.renormalize, "OVERLAP": overlaps(target),
    }  # fmt: skip
    return Config(types, constants, 1 if shape.experts <= 256 else 4, 1, divisible=())


def count_pairs(shape: PlacesShape, target: Target) -> Config:
    """Configuration of ``count_pairs``."""
    constants: dict[str, Constant] = {"BLOCK": PAIRS_AT_ONCE, "OVERLAP": overlaps(target)}
    return Config({"ids": "*i32", "counts": "*i32", "pairs": "i32"}, constants, 4, 1, divisible=())


def place_pairs(shape: PlacesShape, target: Target) -> Config:
    """Configuration of ``place_pairs``."""
    types = {**dict.fromkeys(("ids", "counts", "order", "experts"), "*i32"), "pairs": "i32", "tiles": "i32"}
    constants: dict[str, Constant] = {
        "EXPERTS": shape.experts, "WIDTH": power_of_two(shape.experts), "TILE": shape.tile, "BLOCK": PAIRS_AT_ONCE,
        "OVERLAP": overlaps(target),
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=())


def add_experts(shape: SumShape, target: Target) -> Config:
    """Configuration of ``add_experts``."""
    y = POINTERS[shape.dtype]
    types = {"results": "*fp32", "weights": "*fp32", "residual": y, "y": y, "K": "i32"}
    constants: dict[str, Constant] = {
        "ACTIVE": shape.active, "WEIGHTED": shape.weighted, "ADD": shape.adds, "BLOCK_K": ADDED_AT_ONCE,
        "OVERLAP": overlaps(target),
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=("K",))


def weigh_inputs(shape: SumShape, target: Target) -> Config:
    """Configuration of ``weigh_inputs``."""
    pointer = POINTERS[shape.dtype]
    constants: dict[str, Constant] = {"ACTIVE": shape.active, "BLOCK_K": VALUES_AT_ONCE, "OVERLAP": overlaps(target)}
    return Config({"x": pointer, "weights": "*fp32", "y": pointer, "K": "i32"}, constants, 4, 1, divisible=("K",))


def take_rows(share: int, target: Target) -> Config:
    """Configuration of ``take_rows``, for pairs of which so many have one input."""
    types = {**dict.fromkeys(("x", "order", "y"), "*i32"), "PAIRS": "i32", "K": "i32"}
    constants: dict[str, Constant] = {
        "SHARE": share, "ROWS": PLACES_AT_ONCE, "BLOCK_K": WORDS_AT_ONCE, "OVERLAP": overlaps(target)
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=("K",))


def gate_by(dtype: str, target: Target) -> Config:
    """Configuration of ``gate_by``, for activations of a dtype."""
    types = {**dict.fromkeys(("x", "y", "out"), POINTERS[dtype]), "weight": "*fp32", "K": "i32", "N": "i32"}
    constants: dict[str, Constant] = {"BLOCK_K": VALUES_AT_ONCE, "OVERLAP": overlaps(target)}
    return Config(types, constants, 4, 1, divisible=("K", "N"))
