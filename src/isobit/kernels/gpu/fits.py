"""Whether a weight's shape and groups suit a GPU kernel: one answer for plans and for binding. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.formats.schemes import WeightSpec
from isobit.kernels.gpu import group_tiles, micro_tiles, tma_tiles
from isobit.kernels.gpu.lane_tiles import LANE_WORDS
from isobit.kernels.gpu.tiles import unit_of_nibbles
from isobit.kernels.gpu.variant import Variant
from isobit.targets.spec import Target

_UNITS = (256, 128, 64)
_FLOAT8_MULTIPLE = 16  # of N and K, that PyTorch's float8 product asks for


@dataclass(frozen=True)
class Matrix:
    """A weight ``[n, k]`` as kernels see it.

    Attributes:
        n, k: outputs and inputs.
        spec: how it is quantized; None when it is not.
        bias: whether one is added.
        foldable: whether codes times scales are float16 numbers (``layouts.folding_scales``).
        aligned: whether it begins at a multiple of 16 bytes.
        scale: dtype of its scales, as torch calls it.
        library: (entry of a row, why PyTorch's product cannot run here).
        positive: whether no scale that is a code has a sign: block-scaled units read none.
    """

    n: int
    k: int
    spec: WeightSpec | None
    bias: bool = False
    foldable: bool = True
    aligned: bool = True
    scale: str = "bfloat16"
    library: tuple[tuple[str, str], ...] = ()
    positive: bool = True

    @property
    def group(self) -> int:
        """Weights along K that share a scale; K itself for channels and tensors."""
        return (self.spec.group if self.spec is not None else None) or self.k


def unit(row: Variant, matrix: Matrix, target: Target) -> int | None:
    """Codes of one step of a kernel of nibbles; None where no step fits, and for all other kernels."""
    if not row.layout.units or matrix.spec is None:
        return None
    largest = unit_of_nibbles(target, not matrix.spec.symmetric)
    for size in _UNITS:
        whole = matrix.k % size == 0 and matrix.group % (size // 4) == 0
        if size <= largest and whole and (matrix.spec.symmetric or matrix.group % size == 0):
            return size
    return None


def misfit(row: Variant, matrix: Matrix, target: Target) -> str | None:
    """Why a weight does not suit a variant that the target can run, or None."""
    if row.library:
        return _misfit_of_library(row, matrix)
    if (narrow := narrow_block(matrix.spec, matrix.k)) is not None:
        return narrow
    if row.layout.units and not unit(row, matrix, target):
        return f"groups of {matrix.group} do not make up its units of K = {matrix.k}"
    if row.widen and row.layout.units and not matrix.foldable:
        return "codes times scales are not all float16 numbers"
    if row.scales:
        scaled = row.compute == "native"
        if scaled and not matrix.positive:
            return "scales have signs, which block-scaled units do not read"
        return micro_tiles.misfit(str(row.weights), matrix.k, matrix.group, target, scaled=scaled)
    if row.way == "matrix" and row.granularity == "group" and not row.layout.units and not row.widen:
        return group_tiles.misfit(matrix.group)
    if row.way == "lanes":
        return _misfit_of_lanes(row, matrix)
    if row.way == "tma":
        return tma_tiles.misfit(row.operand, matrix.n, matrix.k, matrix.aligned)
    if row.way == "sorted":
        return tma_tiles.misfit(row.operand, None, matrix.k, matrix.aligned)
    if matrix.k % row.layout.per_word:
        return f"K = {matrix.k} is not a multiple of {row.layout.per_word}"
    return None


def narrow_block(spec: WeightSpec | None, k: int) -> str | None:
    """Why no GPU kernel takes a weight whose last block of columns is narrower than the others; None if it is not."""
    width = spec.block[1] if spec is not None and spec.block is not None else 1
    return f"K = {k} is not a multiple of the block width {width}" if k % width else None


def _misfit_of_library(row: Variant, matrix: Matrix) -> str | None:
    if matrix.bias:
        return "PyTorch rounds a bias to the dtype of the result"
    if row.weights != "float" and (matrix.n % _FLOAT8_MULTIPLE or matrix.k % _FLOAT8_MULTIPLE):
        return (
            f"PyTorch multiplies float8 only where N = {matrix.n} and K = {matrix.k} are multiples of"
            f" {_FLOAT8_MULTIPLE}"
        )
    return dict(matrix.library).get(row.entry)


def _misfit_of_lanes(row: Variant, matrix: Matrix) -> str | None:
    """Lanes read 16 bytes of a row each, and a step of a warp begins with a group."""
    step = 16 * row.layout.per_word
    if matrix.k % step:
        return f"K = {matrix.k} is not a multiple of {step}"
    if not matrix.aligned:
        return "the weights do not begin at a multiple of 16 bytes"
    if row.layout.units:
        width = row.layout.per_word * LANE_WORDS
        if width % matrix.group:
            return f"groups of {matrix.group} are not parts of its steps of {width}"
    return None
