"""What a machine can do, as frozen rows: the target (an instruction set) and the board (a product that has it).

Kernels and rules ask a target for capabilities, never for its name. Numbers of a product (memory, bandwidth, rates) are
on its board. Number formats are spelled as in ``isobit.formats`` (``e4m3fn``), and as torch dtypes (``float16``) else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from isobit.errors import UsageError
from isobit.formats.table import ELEMENTS

Vendor = Literal["nvidia", "amd", "cpu"]

FLOAT32_MANTISSA = 23
_PLAIN = {"float32": "f32", "float16": "f16", "bfloat16": "f16"}


def rate_class(dtype: str) -> str:
    """Which of a board's rates holds for operands of ``dtype``: ``f32``, ``f16``, ``f8``, ``i8``, ``i4``, ``f4``, ...

    bfloat16 runs at the rate of float16 wherever there is a unit for it, and all 8-bit floats share one rate.
    """
    row = ELEMENTS.get(dtype)
    return _PLAIN[dtype] if row is None else f"{row.kind[0]}{row.bits}"


@dataclass(frozen=True)
class MatrixUnit:
    """One kind of product that the hardware adds up by itself: tensor cores, matrix cores, CPU dot instructions.

    Attributes:
        a, b: formats of the operands.
        accumulator: dtype of the sums.
        instruction: the mnemonic family in machine code, e.g. ``HMMA``, ``QGMMA``, ``v_mfma``, ``vpdpbusd``.
        accumulator_mantissa: mantissa bits that the unit keeps while it adds up. Below 23 partial sums must be moved
            to float32 every :attr:`promote_every` products, or the numerics contract breaks.
        flushes_subnormals: whether subnormal operands count as zero.
        unreachable: why none of our kernels can use it although the hardware has it; empty when they can.
        note: what a user of it should know.
        scales: element format of scales of groups of both operands that it applies itself; empty where it has none.
    """

    a: str
    b: str
    accumulator: str
    instruction: str
    accumulator_mantissa: int = FLOAT32_MANTISSA
    flushes_subnormals: bool = False
    unreachable: str = ""
    note: str = ""
    scales: str = ""

    @property
    def promote_every(self) -> int | None:
        """After how many products along K the sums move to float32; None when the unit adds up in full."""
        return 128 if self.accumulator == "float32" and self.accumulator_mantissa < FLOAT32_MANTISSA else None


@dataclass(frozen=True)
class Target:
    """An instruction set that models are planned and kernels are compiled for.

    Attributes:
        name: ``sm_86``, ``gfx942``, ``cpu-avx2``, ...
        vendor: ``nvidia``, ``amd`` or ``cpu``.
        title: the generation, for people.
        backend: what Triton compiles for: (backend, architecture, threads per warp); None where it does not.
        matrix: what the matrix units multiply.
        conversions: (from, to) that one instruction converts; to a narrow format it rounds to nearest even and
            saturates, from a narrow format it is exact.
        shared_memory: bytes of on-chip memory that one block of threads can use (for CPUs: of level-2 cache per core).
        registers: 32-bit registers that one thread can use (for CPUs: vector registers).
        source: where the facts of this row are written down.
        notes: what a user of this target should know.
    """

    name: str
    vendor: Vendor
    title: str
    backend: tuple[str, int | str, int] | None
    matrix: tuple[MatrixUnit, ...]
    conversions: frozenset[tuple[str, str]]
    shared_memory: int
    registers: int
    source: str
    notes: tuple[str, ...] = ()

    def unit(self, a: str, b: str, scales: str = "") -> MatrixUnit | None:
        """The matrix unit for operands of ``a`` and ``b`` that our kernels can use, if there is one.

        Args:
            a, b: their formats.
            scales: the format of scales of groups that it is to apply; empty for a plain product.
        """
        return next((row for row in self._units(a, b, scales) if not row.unreachable), None)

    def hardware_unit(self, a: str, b: str, scales: str = "") -> MatrixUnit | None:
        """The matrix unit for operands of ``a`` and ``b``, whether or not our kernels can use it."""
        return self.unit(a, b, scales) or next(self._units(a, b, scales), None)

    def _units(self, a: str, b: str, scales: str) -> Iterator[MatrixUnit]:
        return (row for row in self.matrix if (row.a, row.b, row.scales) == (a, b, scales))

    def converts(self, a: str, b: str) -> bool:
        """Whether one instruction converts ``a`` to ``b``."""
        return (a, b) in self.conversions

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.vendor != "cpu"


@dataclass(frozen=True)
class Board:
    """A product: a target with memory, bandwidth and rates.

    Attributes:
        name: what it is sold as.
        target: name of its target.
        memory: bytes that programs see.
        bandwidth: bytes per second, by its data sheet.
        rates: (rate class, dense tera-operations per second with float32 or int32 accumulation); see `rate_class`.
            ``f32`` is the rate outside the matrix units.
        power: watts, by its data sheet; None where it has no single figure.
        source: where the figures are written down.
        aliases: other names, lower case, without spaces.
        estimated: whether its figures are guesses from what can be seen of the machine.
        here: whether it is a device of this machine.
        machine: of a CPU of which only some cores are used, what it is called with all of them; else as ``name``.
    """

    name: str
    target: str
    memory: int
    bandwidth: float
    rates: tuple[tuple[str, float], ...]
    power: int | None
    source: str
    aliases: tuple[str, ...] = ()
    estimated: bool = False
    here: bool = False
    machine: str = ""

    def __post_init__(self) -> None:
        if "f32" not in dict(self.rates):
            raise UsageError(f"board {self.name}: its rates lack f32, the rate outside the matrix units")

    def tops(self, dtype: str, *, matrix: bool = True) -> float | None:
        """Dense tera-operations per second on operands of ``dtype``, in the matrix units or not; None if unknown."""
        return dict(self.rates).get(rate_class(dtype) if matrix else "f32")
