"""How kernels of codes under scales of few bits (MX, NVFP4) are compiled, and what they take. Pure; not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from isobit.formats.schemes import ActSpec
from isobit.formats.table import ELEMENTS
from isobit.kernels.gpu.before_tiles import by_instructions
from isobit.kernels.gpu.group_tiles import halves
from isobit.kernels.gpu.tiles import (
    NO_EXPERTS,
    Config,
    Constant,
    Family,
    block_scaled,
    is_cuda,
    matrix_signature,
    overlaps,
)
from isobit.targets.spec import MatrixUnit, Target

# Of K in a step, the largest that divides it: widened in registers (of e2m1 a unit of activations, too); without matrix
# units, and on RDNA, whose registers would spill (``isobit compile``); in block-scaled units, as they are.
_WIDENED = {"e2m1": (256, 128, 64), "e4m3fn": (128, 64, 32)}
_SHORT = {"e2m1": (64,), "e4m3fn": (32,)}
_SCALED = {"e2m1": (256, 128), "e4m3fn": (128,)}
_SMALLEST_GROUP = 8
_RDNA = 256  # registers of a thread
_ROWS = 32  # groups that a program rounds
SCALED_GROUPS = {"e8m0": 32, "e4m3fn": 16}  # values that share a scale in block-scaled units
_CALLED = {"e4m3fn": "e4m3"}  # by Triton


def step(element: str, k: int, target: Target, *, scaled: bool = False) -> int | None:
    """Values of K in a step; None where none divides it."""
    widened = _SHORT if target.unit("float16", "float16") is None or target.registers == _RDNA else _WIDENED
    return next((size for size in (_SCALED if scaled else widened)[element] if k % size == 0), None)


def misfit(element: str, k: int, group: int, target: Target, *, scaled: bool = False) -> str | None:
    """Why a weight does not suit these kernels; None if it does."""
    found = step(element, k, target, scaled=scaled)
    if found is None:
        return f"K = {k} is not a multiple of {(_SCALED if scaled else _WIDENED)[element][-1]}"
    if group < _SMALLEST_GROUP or found % group or group & (group - 1):
        return f"groups of {group} are no powers of two from {_SMALLEST_GROUP} to {found}"
    return None


def widened(family: Family, element: str, scale: str, group: int, x: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_micro``: tiles of other codes of 4 bits in groups, or of blocks of 8 bits."""
    usual = halves(family, x) if element == "e2m1" else block_scaled(family, "*u8", x, element)

    def config(target: Target) -> Config:
        found = usual(target)
        known = {
            name: found.constexprs[name] for name in ("ASM", "OVERLAP", "BLOCK_N", "BLOCK_M", "SPLIT_K", "SWIZZLE")
        }
        constants: dict[str, Constant] = {
            **known, "ELEMENT": element, "SCALE": scale, "GROUP": group, "HAS_BIAS": False, "LATE": False, "AFTER": "",
            **NO_EXPERTS, "BLOCK_K": step(element, 4096, target),
        }  # fmt: skip
        return replace(
            found, signature=_signature(x, "*i16" if element == "e2m1" else "*u8", "*fp32"), constexprs=constants
        )  # fmt: skip

    return config


def scaled(element: str, scale: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_scaled``: 128 rows, without which tcgen05 has no such products."""

    def config(target: Target) -> Config:
        unit = target.unit(element, element, scale)
        promote = unit is not None and unit.promote_every is not None
        constants: dict[str, Constant] = {
            "ELEMENT": _CALLED.get(element, element), "INPUT": _CALLED.get(element, element), "ASM": is_cuda(target),
            "GROUP": SCALED_GROUPS[scale], "HAS_BIAS": False, "OVERLAP": int(overlaps(target)), "LATE": False,
            "PROMOTE": promote, "AFTER": "", **NO_EXPERTS, "BLOCK_N": 128, "BLOCK_M": 128,
            "BLOCK_K": _step_of(unit, element, 4096, target), "SPLIT_K": 1, "SWIZZLE": 8,
        }  # fmt: skip
        return Config(_signature("*u8", "*u8", "*u8"), constants, 8, 3 if is_cuda(target) else 2)

    return config


def _step_of(unit: MatrixUnit | None, element: str, k: int, target: Target) -> int | None:
    """The step along K of a block-scaled unit, which may have to hand its sums on."""
    found, most = step(element, k, target, scaled=True), None if unit is None else unit.promote_every
    return found if found is None or most is None else min(found, most)


def of_weight(element: str, scale: str, k: int, group: int, target: Target, *, scaled: bool) -> dict[str, Constant]:
    """The constants that a weight decides."""
    if not scaled:
        return {"GROUP": group, "SCALE": scale, "BLOCK_K": step(element, k, target)}
    return {"GROUP": group, "BLOCK_K": _step_of(target.unit(element, element, scale), element, k, target)}


def _signature(x: str, w: str, token_scale: str) -> dict[str, str]:
    return {**matrix_signature(x, w), "token_scale": token_scale, "groups": "*u8", "y": "*bf16", "residual": "*bf16"}


def rounding(element: str, scale: str, *, wide: bool) -> Callable[[Target], Config]:
    """Configuration of ``quantize_micro``, for bfloat16."""

    def config(target: Target) -> Config:
        signature = {
            "x": "*bf16", "codes": "*bf16" if wide else "*u8", "scales": "*u8", "over": "*fp32", "groups": "i32",
            "qmax": "fp32",
        }  # fmt: skip
        constants: dict[str, Constant] = {
            "ELEMENT": element, "SCALE": scale, "TOP": _top(element), "VALUES": wide,
            "UNIT": (step("e2m1", 4096, target) or 0) if wide and element == "e2m1" else 0,
            "OVERLAP": overlaps(target), "GROUP": SCALED_GROUPS[scale], "ROWS": _ROWS,
            **by_instructions(element, target),
        }  # fmt: skip
        return Config(signature, constants, 4, 1, divisible=())

    return config


def rounded(config: Config, spec: ActSpec, x: str, codes: str, unit: int) -> Config:
    """The configuration of ``quantize_micro`` for activations of a dtype, and a kernel that wants them in units."""
    assert spec.group is not None
    found = config.with_constants(GROUP=spec.group, UNIT=unit, ROWS=max(1, _ROWS * 32 // spec.group))
    return replace(found, signature={**config.signature, "x": x, "codes": codes})


def _top(element: str) -> int:
    """The exponent of the largest number of a format."""
    return int(ELEMENTS[element].max).bit_length() - 1
