"""What a GPU kernel is, as a row with fields: what it multiplies, for how many tokens, where it can run.

Nothing here imports torch or Triton. A row asks a target for capabilities (matrix units, shared memory), never for its
name, so a new target is a row elsewhere. Whatever decides is a field; a row's name is for people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from isobit.formats.scales import ScaleSpec
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import ELEMENTS
from isobit.kernels.gpu import lane_tiles
from isobit.kernels.gpu.tiles import Config, Family, is_cuda
from isobit.targets.spec import Target

Requires = Callable[[Target], str | None]
Granularity = Literal["row", "group", "block"]
DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
HALVES = ("float16", "bfloat16")
FLOATS = (*HALVES, "float32")

# How a kernel multiplies: in ordinary arithmetic; on tiles of matrix units, which the warps that multiply ask for, or
# one that does nothing else has TMA copy, for experts where their tokens lie sorted; on ``mma`` with what a lane has
# read itself; codes of any width as they are packed; by PyTorch. Or what is no product: it rounds activations, or
# prepares.
Way = Literal["scalar", "matrix", "tma", "sorted", "lanes", "stream", "library", "rounding", "prepare"]


@dataclass(frozen=True)
class Layout:
    """How a kernel reads a weight.

    Attributes:
        per_word: weights of an int32 word; 1 for kernels that read elements.
        units: whether it reads 4-bit codes in units (``layouts.interleave_nibbles``).
    """

    per_word: int = 1
    units: bool = False


ELEMENTWISE, UNITS = Layout(), Layout(units=True)
WORDS_OF_16_BITS, WORDS_OF_8_BITS, WORDS_OF_UNITS = Layout(2), Layout(4), Layout(8, units=True)


@dataclass(frozen=True)
class Variant:
    """One kernel for one kind of linear.

    Attributes:
        name: unique, for people: no code takes it apart.
        family: ``vector`` (a token at a time), ``few`` (1 to 16 tokens), ``many``, ``large`` (very many), ``quantize``,
            ``prepare`` (what runs before a ``large`` product).
        way: how it multiplies.
        entry: ``module:function`` of the Triton function; ``torch:function`` of a product of PyTorch's.
        weights: element format, or ``float`` for weights in the dtype of the activations; None for ``quantize``.
        granularity: what shares a weight scale: ``row`` (also tensor), ``group``, ``block``; None without scales.
        activations: element format that they are rounded to, or None.
        compute: dtype of the products: ``native`` (the formats themselves), ``f16``, ``bf16``, ``f32``, ``int8``.
        operand: dtype of ``x`` in memory, as Triton writes it.
        requires: why a target cannot run it, or None.
        config: how it is compiled for a target, before it is known for which weight (``configure.py``).
        tokens: the fewest and the most tokens of a call that it is asked for; no most if None.
        rank: the lowest that fits is taken.
        dtypes: dtypes of activations that it takes.
        without_units: further ones that it takes where there is no matrix unit for 16 bits.
        layout: how it reads the weight.
        promises: regular expressions of mnemonics, each of which the hot loop must show on that target.
        optional: whether it is only faster than others behind it: then that it cannot run is no reason for a refusal.
        widen: the ``prepare`` row that writes the weight into a workspace, as ``operand``; or None.
        wide: of a row that rounds: whether values of the codes leave, in 16 bits, and not the codes.
        narrow: the ``prepare`` row that turns bfloat16 activations into ``operand``; or None.
        scales: of a row that reads scales of groups as codes: formats of those of weights, and of activations beside
            them; of one that rounds to such, theirs; nothing where scales are floats.
        group: weights, and activations, that share a scale, where it takes no other number of them.
    """

    name: str
    family: Family
    way: Way
    entry: str
    weights: str | None
    granularity: Granularity | None
    activations: str | None
    compute: str
    operand: str
    requires: Requires
    config: Callable[[Target], Config]
    tokens: tuple[int, int | None] = (1, None)
    rank: int = 0
    dtypes: tuple[str, ...] = FLOATS
    without_units: tuple[str, ...] = ()
    layout: Layout = ELEMENTWISE
    promises: Callable[[Target], tuple[str, ...]] = field(default=lambda target: ())
    optional: bool = False
    wide: bool = False
    widen: Variant | None = None
    narrow: Variant | None = None
    scales: tuple[tuple[str, ScaleSpec], ...] = ()
    group: int | None = None

    @property
    def library(self) -> bool:
        """Whether it is a product of PyTorch's, which isobit does not compile."""
        return self.way == "library"

    @property
    def of_experts(self) -> bool:
        """Whether it multiplies the weights of experts alone."""
        return self.way == "sorted"

    def takes(
        self, weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target
    ) -> bool:
        """Whether it is asked for a linear of these formats; ``requires`` and ``fits`` say whether it can run."""
        first, last = self.tokens
        dtypes = self.dtypes if has_halves(target) else (*self.dtypes, *self.without_units)
        return (
            self.way not in ("rounding", "prepare")
            and first <= tokens
            and (last is None or tokens <= last)
            and dtype in dtypes
            and self.weights == ("float" if weights is None else weights.element)
            and self.granularity == scales_by(weights)
            and self.activations == (None if activations is None else activations.element)
            and self._takes_scales(weights, activations)
        )

    def _takes_scales(self, weights: WeightSpec | None, activations: ActSpec | None) -> bool:
        stored = None if weights is None else weights.scale
        rounded = None if activations is None else activations.scale
        if stored is None or rounded is None or weights is None or activations is None:
            return not self.scales and stored is rounded is None
        alike = self.group is None or self.group == weights.group == activations.group
        return alike and (stored.element, rounded) in self.scales


def scales_by(weights: WeightSpec | None) -> Granularity | None:
    """What shares a weight scale, to kernels: those of codes below 8 bits call the whole of a row a group."""
    if weights is None:
        return None
    if weights.granularity == "block":
        return "block"
    return "row" if ELEMENTS[weights.element].bits == 8 and weights.granularity != "group" else "group"


# ---------------------------------------------------------------------- capabilities


def has_halves(target: Target) -> bool:
    """Whether there is a matrix unit for 16 bits."""
    return target.unit("float16", "float16") is not None


def compiles(target: Target) -> str | None:
    return None if target.backend is not None else f"Triton does not compile for {target.name}"


def has_bf16(target: Target) -> str | None:
    reason = compiles(target)
    if reason or not is_cuda(target) or target.unit("bfloat16", "bfloat16"):
        return reason
    return f"{target.name} has no bfloat16 arithmetic"


def has_unit(dtype: str) -> Requires:
    def requires(target: Target) -> str | None:
        reason = compiles(target)
        if reason or target.unit(dtype, dtype):
            return reason
        hardware = target.hardware_unit(dtype, dtype)
        return hardware.unreachable if hardware else f"{target.name} has no matrix unit for {dtype}"

    return requires


def has_bf16_for_powers(target: Target) -> str | None:
    """Codes times powers of two: float16 ends before they do."""
    reason = has_bf16(target)
    return (
        f"{reason}, and float16 ends at 65504: activations from 57344 on are 65536 under powers of two"
        if reason
        else None
    )


def lacks_bf16(target: Target) -> str | None:
    """For what float16 holds as well."""
    return compiles(target) or ("bfloat16 holds every value" if has_bf16(target) is None else None)


def has_scaled_unit(element: str, scales: str) -> Requires:
    """A matrix unit that applies the scales of groups of both operands itself."""

    def requires(target: Target) -> str | None:
        reason = compiles(target)
        if reason or target.unit(element, element, scales):
            return reason
        return f"{target.name} has no matrix unit for {element} under scales in {scales}"

    return requires


def has_no_unit(target: Target) -> str | None:
    """Where there are matrix units, one token goes to them: this is not compiled for such targets."""
    return compiles(target) or (f"{target.name} has matrix units" if has_halves(target) else None)


def has_dp4a_or_no_unit(target: Target) -> str | None:
    """One token of int8: NVIDIA's four products an instruction are as fast as memory, matrix units or not."""
    return compiles(target) if target.vendor == "nvidia" else has_no_unit(target)


def keeps_small_codes(element: str) -> Requires:
    """Float16 holds e4m3fn codes as numbers times 2**-8, and e5m2 as they are: some are subnormal there."""

    def requires(target: Target) -> str | None:
        reason = compiles(target)
        unit = target.unit("float16", "float16")
        if reason or element == "int8" or unit is None or not unit.flushes_subnormals:
            return reason
        return f"{target.name}'s float16 matrix unit flushes subnormal numbers, which {element} codes are there"

    return requires


def flushes_small_codes(target: Target) -> str | None:
    """Products in bfloat16 of rounded activations are there for those targets alone."""
    reason = has_bf16(target)
    if reason or keeps_small_codes("e4m3fn")(target):
        return reason
    return "float16 holds every code"


def has_lanes(dtype: str) -> Requires:
    """One token on ``mma.m16n8k16``, whose operands the lanes of a warp hold as NVIDIA documents it."""

    def requires(target: Target) -> str | None:
        reason = compiles(target)
        if reason or (
            is_cuda(target) and target.backend is not None and int(target.backend[1]) >= lane_tiles.LANES_ARCH
        ):
            return reason or has_unit(dtype)(target)
        return f"{target.name} has no mma.m16n8k16"

    return requires


def widens_first(dtype: str) -> Requires:
    """Measured on NVIDIA GPUs only; what is written must not be flushed when it is multiplied."""

    def requires(target: Target) -> str | None:
        reason = has_unit(dtype)(target)
        if reason or is_cuda(target):
            return reason
        return "widening weights once per call is not done on GPUs other than NVIDIA's"

    return requires


def shows_unit(dtype: str, scales: str = "") -> Callable[[Target], tuple[str, ...]]:
    def promises(target: Target) -> tuple[str, ...]:
        unit = target.unit(dtype, dtype, scales)
        return (unit.instruction,) if unit else ()

    return promises
