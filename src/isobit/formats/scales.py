"""How scales themselves are stored: in a float dtype, or in few bits, with or without one more scale above them.

No torch here; ``qtensor`` decodes by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isobit.errors import SchemeError
from isobit.formats.spec import Element
from isobit.formats.table import element

FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class ScaleSpec:
    """The format of the scales of a weight.

    The scale that multiplies a code is ``s`` (exact in float32), or, with ``over``, ``s`` times or divided by the one
    float32 number that the whole weight has besides, rounded once to float32.

    Attributes:
        element: ``float32``, ``bfloat16``, ``float16``, or an element format such as ``e8m0`` or ``e4m3fn``.
        over: how the scale of the whole weight stands above these: ``multiplies`` (ModelOpt's ``weight_scale_2``) or
            ``divides`` (``weight_global_scale`` of compressed-tensors); None when there is none.

    Raises:
        SchemeError: scales cannot be stored so.
    """

    element: str
    over: Literal["multiplies", "divides"] | None = None

    def __post_init__(self) -> None:
        row = self.codes
        if row is not None and (row.kind != "float" or row.bits != 8):
            raise SchemeError(f"scales are stored in {', '.join(FLOAT_BITS)} or in floats of 8 bits, not in {row.name}")
        if self.over not in (None, "multiplies", "divides"):
            raise SchemeError(f"a scale above others multiplies or divides them; {self.over!r} is neither")

    @property
    def codes(self) -> Element | None:
        """The element format whose codes these scales are; None for those of a float dtype."""
        return None if self.element in FLOAT_BITS else element(self.element)

    @property
    def bits(self) -> int:
        """Bits of one scale."""
        row = self.codes
        return FLOAT_BITS[self.element] if row is None else row.bits

    @property
    def powers(self) -> bool:
        """Whether scales are powers of two and nothing else (MX)."""
        row = self.codes
        return row is not None and row.specials == "scale" and self.over is None

    def __str__(self) -> str:
        return self.element if self.over is None else f"{self.element} under one of float32"


POWERS = ScaleSpec("e8m0")  # OCP Microscaling (MX) 1.0
UNDER_ONE = ScaleSpec("e4m3fn", "divides")  # NVFP4, as compressed-tensors stores it
