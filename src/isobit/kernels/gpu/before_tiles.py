"""How the kernels before a product are compiled: widening, folding, narrowing, rounding. Pure, as ``tiles.py`` is."""

from __future__ import annotations

from collections.abc import Callable

from isobit.kernels.gpu.grouped_tiles import is_grouped
from isobit.kernels.gpu.tiles import BLOCK, Config, Constant, is_cuda, overlaps, unit_of_nibbles
from isobit.targets.spec import Target

# ELEMENT of what is not rounded but narrowed to float16, under a power of two for each token (``triton/law.py``).
RANGE = "range"


def widening(codes: str, values: str, element: str) -> Callable[[Target], Config]:
    """Configuration of ``widen_codes``. BLOCK and warps: not measured; the widening is 12 of 232 us at 4096 cubed."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "ELEMENT": element, "ASM": is_cuda(target), "OVERLAP": overlaps(target), "BLOCK": 2048
        }  # fmt: skip
        return Config({"codes": codes, "values": values, "K": "i32"}, constants, 4, 1)

    return config


def folding(target: Target) -> Config:
    """Configuration of ``fold_nibbles``; 8, 16 or 32 units, 4 or 8 warps: within 0.5 % (gpu_tune_large.csv)."""
    signature = {"words": "*i16", "scale": "*bf16", "power": "*fp32", "values": "*fp16", "N": "i32", "K": "i32"}
    unit = unit_of_nibbles(target, False)
    constants: dict[str, Constant] = {
        "GROUP": 128, "UNIT": unit, "ASM": is_cuda(target), "OVERLAP": overlaps(target), "UNITS": 16
    }  # fmt: skip
    return Config(signature, constants, 4, 1)


def narrowing(target: Target) -> Config:
    """Configuration of ``narrow_range``; whole tokens or parts of 2048 or 4096: within 0.7 % (gpu_tune_large.csv)."""
    constants: dict[str, Constant] = {"OVERLAP": overlaps(target), "ONCE": True, "BLOCK_K": 4096}
    return Config({"x": "*bf16", "values": "*fp16", "scales": "*fp32", "K": "i32"}, constants, 8, 1)


# Values of a token that a program holds in registers: 16 for each of 1024 threads. Reading a token of 11008 once and
# not twice gained 2 us of a layer's 66 (dev/LOG.md, 2026-11-23). Other limits: not measured.
_MOST_AT_ONCE = 16384


def whole_token(k: int, target: Target) -> tuple[int, bool, int]:
    """(BLOCK_K, ONCE, warps) of a kernel that reads a token of ``k`` values: 16 values a thread where they all fit."""
    block = min(1 << (k - 1).bit_length(), _MOST_AT_ONCE)
    threads = target.backend[2] if target.backend is not None else 32
    return block, k <= block, max(4, min(block // 512, 1024 // threads))


def by_instructions(element: str, target: Target) -> dict[str, Constant]:
    """By what a kernel computes the law of rounding to ``element``, if any; see ``triton/law.py``."""
    if is_grouped(element):  # scales of groups are divided by as they are
        return {"RECIPROCAL": False, "CONVERTS": is_cuda(target) and target.converts("float32", "e4m3fn")}
    if element == RANGE:
        return {"RECIPROCAL": False, "CONVERTS": is_cuda(target)}
    cuda = is_cuda(target) and element != ""
    return {"RECIPROCAL": cuda, "CONVERTS": cuda and (element == "int8" or target.converts("float32", element))}


def rounding(element: str, *, wide: bool) -> Callable[[Target], Config]:
    """Configuration of ``quantize_token``, for bfloat16; ``wide`` leaves values of the codes in 16 bits."""

    def config(target: Target) -> Config:
        codes = "*fp16" if wide else ("*i8" if element == "int8" else "*u8")
        signature = {
            "x": "*bf16", "codes": codes, "scales": "*fp32", "qmax": "fp32", "static_scale": "*fp32", "K": "i32"
        }  # fmt: skip
        constants: dict[str, Constant] = {
            "ELEMENT": element, "WIDE": wide, "OVERLAP": overlaps(target), "STATIC": False, "ONCE": True,
            "BLOCK_K": 4096, "LATE": False, **by_instructions(element, target),
        }  # fmt: skip
        return Config(signature, constants, 8, 1, divisible=("K",))

    return config


def rounding_group(*, wide: bool) -> Callable[[Target], Config]:
    """Configuration of ``quantize_group``, for bfloat16 in groups of 128. ROWS and warps: not measured."""

    def config(target: Target) -> Config:
        codes = "*fp16" if wide else "*u8"
        signature = {"x": "*bf16", "codes": codes, "scales": "*fp32", "qmax": "fp32", "groups": "i32"}
        constants: dict[str, Constant] = {
            "ELEMENT": "e4m3fn", "WIDE": wide, "OVERLAP": overlaps(target), "GROUP": BLOCK, "WIDTH": BLOCK, "ROWS": 8,
            **by_instructions("e4m3fn", target),
        }  # fmt: skip
        return Config(signature, constants, 4, 1, divisible=("K",))

    return config
