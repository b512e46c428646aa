"""Rows of GPU kernels of codes under scales of few bits (MX, NVFP4) by activations rounded under such. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.formats.scales import POWERS, UNDER_ONE, ScaleSpec
from isobit.kernels.gpu import micro_tiles, tiles
from isobit.kernels.gpu.tiles import Family
from isobit.kernels.gpu.variant import (
    DTYPES,
    Requires,
    Variant,
    compiles,
    has_bf16,
    has_bf16_for_powers,
    has_scaled_unit,
    lacks_bf16,
    shows_unit,
)

Tokens = tuple[int, int | None]
_MODULES = "isobit.kernels.gpu.triton"


def widened(family: Family, tokens: Tokens, rank: int) -> Iterator[Variant]:
    """Codes under scales of few bits by activations that are rounded under such, widened exactly to 16 bits."""
    powers, under_one = (("e8m0", POWERS), ("e4m3fn", POWERS)), (("e4m3fn", UNDER_ONE), ("e8m0", UNDER_ONE))
    kinds: tuple[tuple[str, str, str, str, tuple[tuple[str, ScaleSpec], ...], Requires], ...] = (
        ("mxfp4", "e2m1", "e2m1", "bf16", powers, has_bf16_for_powers),
        ("mxfp4-by-mxfp8", "e2m1", "e4m3fn", "bf16", powers, has_bf16_for_powers),
        ("mxfp8", "e4m3fn", "e4m3fn", "bf16", powers[:1], has_bf16_for_powers),
        ("nvfp4", "e2m1", "e2m1", "bf16", under_one, has_bf16),
        ("nvfp4-f16", "e2m1", "e2m1", "f16", under_one[:1], lacks_bf16),
    )
    for name, weights, activations, compute, scales, requires in kinds:
        pointer = tiles.POINTERS[compute]
        yield Variant(
            f"{family}-{name}", family, "matrix", f"{_MODULES}.linear_micro:linear_matrix_micro", weights, "group",
            activations, compute, pointer, requires,
            micro_tiles.widened(family, weights, scales[0][0], micro_tiles.SCALED_GROUPS[scales[0][0]], pointer),
            tokens, rank, promises=shows_unit(DTYPES[compute]), optional=compute == "f16", scales=scales,
        )  # fmt: skip


def scaled(tokens: Tokens, rank: int) -> Iterator[Variant]:
    """Many tokens in block-scaled matrix units."""
    for name, element, scale, of_inputs in (
        ("mxfp4", "e2m1", "e8m0", POWERS), ("mxfp8", "e4m3fn", "e8m0", POWERS), ("nvfp4", "e2m1", "e4m3fn", UNDER_ONE),
    ):  # fmt: skip
        yield Variant(
            f"many-{name}-native", "many", "matrix", f"{_MODULES}.linear_scaled:linear_matrix_scaled", element, "group",
            element, "native", "*u8", has_scaled_unit(element, scale), micro_tiles.scaled(element, scale),
            tokens, rank, promises=shows_unit(element, scale), optional=True,
            scales=((scale, of_inputs),), group=micro_tiles.SCALED_GROUPS[scale],
        )  # fmt: skip


def rounding() -> Iterator[Variant]:
    """The rounding of activations under scales of few bits: to numbers, and for block-scaled units to codes."""
    for name, element, scale, stored in (
        ("mxfp4", "e2m1", "e8m0", POWERS), ("mxfp8", "e4m3fn", "e8m0", POWERS), ("nvfp4", "e2m1", "e4m3fn", UNDER_ONE),
    ):  # fmt: skip
        needs = has_scaled_unit(element, scale), compiles if stored.over else has_bf16_for_powers
        for wide in (False, True):
            yield Variant(
                f"quantize-{name}" + ("-wide" if wide else ""), "quantize", "rounding",
                f"{_MODULES}.quantize_micro:quantize_micro", None, "group", element, "f32", "*bf16", needs[wide],
                micro_tiles.rounding(element, scale, wide=wide), wide=wide, scales=((scale, stored),),
                group=micro_tiles.SCALED_GROUPS[scale],
            )  # fmt: skip
