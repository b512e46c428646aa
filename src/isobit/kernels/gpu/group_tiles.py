"""How kernels of e2m1 and of 8-bit codes in groups along K are compiled. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from isobit.kernels.gpu.tiles import FEW, Config, Family, block_scaled, matrix_signature, nibbles
from isobit.targets.spec import Target

LEAST, MOST = 16, 128  # of K in a step: what a matrix unit multiplies at once; a step of blocks


def grouped(family: Family, w: str, x: str, element: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_groups``, for groups of 32: tiles of blocks, whose sums are kept apart, too."""
    blocks = block_scaled(family, w, x, element)

    def config(target: Target) -> Config:
        found = blocks(target)
        constants = {key: value for key, value in found.constexprs.items() if key != "IMPRECISE"}
        return replace(
            found, signature=matrix_signature(x, w, "*bf16"), constexprs={**constants, **steps(32)}
        )  # fmt: skip

    return config


def halves(family: Family, x: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_halves``: that of other codes of 4 bits, but where registers would spill."""
    usual = nibbles(family, x, False)

    def config(target: Target) -> Config:
        found = usual(target)
        narrow = (
            family == "many" and target.registers == 256 and x == "*bf16"
        )  # RDNA: 80 instructions of gfx1100's loop
        return found.with_constants(BLOCK_M=FEW) if narrow else found

    return config


def steps(group: int) -> dict[str, int]:
    """The constants that a group decides."""
    return {"GROUP": group, "BLOCK_K": min(group, MOST)}


def misfit(group: int) -> str | None:
    """Why groups do not suit the kernel; None if they do."""
    if group >= LEAST and group & (group - 1) == 0:
        return None
    return f"groups of {group} are no powers of two from {LEAST} on"
