"""How routers and the choice of experts are compiled, and for which tokens. Pure, as ``tiles.py`` is."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.kernels.gpu.before_tiles import by_instructions
from isobit.kernels.gpu.layer_tiles import POINTERS
from isobit.kernels.gpu.routing_tiles import RouterShape, power_of_two
from isobit.kernels.gpu.tiles import Config, Constant, is_cuda, overlaps
from isobit.targets.spec import Target

TOKEN_MOST = 16  # tokens up to which each program of the router has one of them
_AT_ONCE = 4096  # tokens times experts of a program that chooses
_WEIGHTS_AHEAD = 4096  # weights that a program of the router reads while the kernel in front still runs
_ROUND_MOST = 8192  # values of a token that a program of the router rounds


@dataclass(frozen=True)
class Rounds:
    """How a router rounds its input for the experts: format, pointer of the codes, whether a scale is given, K."""

    element: str = ""
    codes: str = "*u8"
    static: bool = False
    k: int = 0


@dataclass(frozen=True)
class LogitsShape:
    """What a compiled router depends on.

    Attributes:
        router: which.
        k: values of a token.
        narrow: whether its weights are of the dtype of the activations.
        rounds: what else it does.
        tile: of tokens, experts and splits of K; None for one token a program.
    """

    router: RouterShape
    k: int
    narrow: bool
    rounds: Rounds = Rounds()
    tile: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ChoiceShape:
    """What a compiled choice depends on.

    Attributes:
        router: which; its dtype and bias play no part.
        splits: parts of the logits.
        tokens: of a program.
        width: tokens of a tile of the experts' linears; 0 where pairs go into none.
        whole: whether one program has all tokens.
    """

    router: RouterShape
    splits: int
    tokens: int
    width: int
    whole: bool


def rounds(k: int) -> bool:
    """Whether a router can round tokens of so many values."""
    return power_of_two(k) <= _ROUND_MOST


def tile_of(tokens: int) -> tuple[int, int, int] | None:
    """Tokens, experts and splits of K of a router's program, so that there are programs for most multiprocessors."""
    if tokens <= TOKEN_MOST:
        return None
    return next((tile for most, tile in ((64, (16, 16, 4)), (512, (32, 32, 4))) if tokens <= most), (64, 32, 1))


def tokens_at_once(tokens: int, experts: int) -> int:
    """Tokens for which a program chooses; as many as there are, or more, where they are few.

    Routers of 128 experts of which a token goes to 8, us of logits, choice and places together: 64 tokens in programs
    of 64 18.3, of 16 10.6, of 8 10.4; 256 of 32 15.4, of 16 13.4; 2048 of 16 44, of 32 27 to 29, of 64 33.
    """
    most = max(1, _AT_ONCE // power_of_two(experts))
    return min(most, next((size for size, last in ((1, 1), (8, 8), (16, 512)) if tokens <= last), 32))


def _logits(shape: LogitsShape, target: Target) -> tuple[dict[str, str], dict[str, Constant]]:
    router, rounding = shape.router, shape.rounds
    types = {
        "x": POINTERS[router.dtype], "weight": POINTERS[router.dtype] if shape.narrow else "*fp32", "bias": "*fp32",
        "logits": "*fp32", "codes": rounding.codes, "scales": "*fp32", "static_scale": "*fp32", "K": "i32",
        "qmax": "fp32",
    }  # fmt: skip
    constants: dict[str, Constant] = {
        "EXPERTS": router.experts, "HAS_BIAS": router.bias, "ELEMENT": rounding.element,
        "WIDE": rounding.codes in ("*fp16", "*bf16"), "STATIC": rounding.static, "ROUND_K": power_of_two(rounding.k),
        **by_instructions(rounding.element, target),
    }  # fmt: skip
    return types, constants


def router_token(shape: LogitsShape, target: Target) -> Config:
    """Configuration of ``router_token``."""
    types, constants = _logits(shape, target)
    ahead = min(power_of_two(shape.k), _WEIGHTS_AHEAD)
    constants |= {"BLOCK_N": max(1, min(2, _WEIGHTS_AHEAD // ahead)), "BLOCK_K": ahead, "OVERLAP": overlaps(target)}
    # Of four warps a register of the loop spills on sm_86 to sm_89 (``isobit compile``); sm_90 was measured with four.
    return Config(types, constants, 4 if overlaps(target) else 8, 1, divisible=("K",))


def router_tiles(shape: LogitsShape, target: Target) -> Config:
    """Configuration of ``router_tiles``."""
    assert shape.tile is not None
    types, constants = _logits(shape, target)
    m, n, splits = shape.tile
    unit = target.unit("float16", "float16")
    step = (128 if shape.narrow and shape.router.dtype != "float32" else 64) if unit else 16
    if unit is not None and unit.instruction == "UTCHMMA" and not shape.narrow and m >= 64:
        step = 32  # of 64 two registers of the loop spill on sm_100 and sm_103 (``isobit compile``)
    few = not is_cuda(target) and target.registers <= 256  # RDNA: of 64 by 32 and four warps registers spill
    if few and not shape.narrow:
        step = 16
    constants |= {
        "BLOCK_M": m if unit else 16, "BLOCK_N": n if unit else 16, "BLOCK_K": step, "SPLITS": splits,
        "PRECISION": "tf32x3" if is_cuda(target) and unit else "ieee", "OVERLAP": 4 if overlaps(target) else 0,
    }  # fmt: skip
    stages = 3 if overlaps(target) else 2 if unit else 1
    return Config({**types, "M": "i32"}, constants, 8 if few else 4, stages, divisible=("K",))


def _warps(values: int, target: Target) -> int:
    """Of a program that holds so many values: 16 for each of NVIDIA's threads, or 8.

    128 experts, us of routing (logits and choice): 8 tokens with 8 of them 6.6, with 16 7.5, with 4 7.1; 64 tokens
    10.8, 10.3 and 11.6; 2048 32, 27, and with 32 33.
    """
    threads = target.backend[2] if target.backend is not None else 32
    return max(1, min(values // (256 if values <= 1024 else 512), 512 // threads))


def choose_pairs(shape: ChoiceShape, target: Target) -> Config:
    """Configuration of ``choose_pairs``."""
    router = shape.router
    types = {
        **dict.fromkeys(("logits", "correction", "weights"), "*fp32"), "least_sum": "fp32", "scale": "fp32",
        "tolerance": "fp32",
        **dict.fromkeys(("ids", "ranks", "counts", "order", "experts"), "*i32"), "tokens": "i32", "tiles": "i32",
    }  # fmt: skip
    width = power_of_two(router.experts)
    constants: dict[str, Constant] = {
        "EXPERTS": router.experts, "WIDTH": width, "ACTIVE": router.active,
        "SCORES": router.scores, "CORRECTED": router.corrected,
        "GROUPS": router.groups, "BEST_GROUPS": router.active_groups, "BY_TWO": router.by_two,
        "GROUP_PAD": power_of_two(router.groups), "RENORMALIZE": router.renormalize, "SPLITS": shape.splits,
        "BLOCK_T": shape.tokens, "TILE": shape.width, "ALL": shape.whole, "OVERLAP": overlaps(target),
    }  # fmt: skip
    return Config(types, constants, _warps(shape.tokens * width, target), 1, divisible=())


def place_ranked(shape: ChoiceShape, target: Target) -> Config:
    """Configuration of ``place_ranked``."""
    names = ("ids", "ranks", "counts", "bases", "order", "experts")
    constants: dict[str, Constant] = {
        "EXPERTS": shape.router.experts, "WIDTH": power_of_two(shape.router.experts), "ACTIVE": shape.router.active,
        "BLOCK_T": shape.tokens, "PAIRS": power_of_two(shape.tokens * shape.router.active), "TILE": shape.width,
        "OVERLAP": overlaps(target),
    }  # fmt: skip
    types = {**dict.fromkeys(names, "*i32"), "tokens": "i32", "tiles": "i32"}
    return Config(types, constants, 4, 1, divisible=())
