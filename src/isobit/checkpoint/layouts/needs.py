"""Which tensors a weight takes, with their dtypes and shapes: headers held against that before anything is read.

Reading checks the same, and numbers besides; what headers alone show is said here, so that a plan says it, too, and all
of a checkpoint at once. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from isobit.checkpoint.layouts.parts import INPUT_OVER, INPUT_SCALES, OPEN_SCALES, SCALE_DTYPES
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo
from isobit.checkpoint.shown import listed
from isobit.formats.schemes import ActSpec, WeightSpec

OPEN = tuple(dtype for dtype, name in SCALE_DTYPES.items() if name in OPEN_SCALES)  # of scales of no format said
_MISSING = "is missing from this checkpoint"


@dataclass(frozen=True)
class Need:
    """A tensor that belongs to a weight.

    Attributes:
        part: its name behind that of the module.
        dtypes: safetensors dtypes that it may have; empty: any.
        shapes: that it may have; empty: any.
        numel: how many numbers it has; None: as many as its shape says.
        optional: whether it may be left out.
        why: what is said where it is missing.
    """

    part: str
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    numel: int | None = None
    optional: bool = False
    why: str = _MISSING

    def misfit(self, info: TensorInfo | None) -> str | None:
        """What is wrong with a tensor; None if it is what it should be."""
        if info is None:
            return None if self.optional else self.why
        if self.dtypes and not info.numel:
            return f"is {info.dtype} {listed(info.shape)}: it is empty"
        fits = not self.dtypes or info.dtype in self.dtypes
        sizes = (not self.shapes or info.shape in self.shapes) and self.numel in (None, info.numel)
        return None if fits and sizes else f"is {info.dtype} {listed(info.shape)}; it should be {self}"

    def __str__(self) -> str:
        sizes = " or ".join(str([*shape]) for shape in self.shapes[:2])
        if self.numel is not None:
            sizes = "one number" if self.numel == 1 else f"{self.numel} numbers"
        return f"{' or '.join(self.dtypes)} {sizes}".strip()


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a part whatever its header says of it."""

    part: str
    why: str


Needs = Iterable[Need | Wrong]


def scale_shapes(spec: WeightSpec, n: int, k: int) -> tuple[tuple[int, ...], ...]:
    """The shapes that scales of a weight ``[n, k]`` may have: QTensor's first, then those of other tools."""
    expected = spec.scale_shape(n, k)
    found: list[tuple[int, ...]] = [expected]
    if spec.granularity == "tensor":
        found += [(), (1, 1)]
    if spec.granularity == "channel":
        found.append((n,))
    if spec.granularity == "block":  # of ModelOpt: an axis of one behind each, and none at all of a single block
        rows, columns = expected
        found += [(rows, 1, columns, 1), *([()] if rows == columns == 1 else [])]
    return tuple(found)


def scale_dtypes(spec: WeightSpec) -> tuple[str, ...]:
    """The safetensors dtypes that scales of a weight may have."""
    if spec.scale is None:
        return OPEN
    codes = spec.scale.codes
    name = spec.scale.element if codes is None else codes.name
    return (*(dtype for dtype, known in SCALE_DTYPES.items() if known == name), *(("U8",) if codes is not None else ()))


def scales(part: str, spec: WeightSpec, n: int, k: int) -> Iterator[Need | Wrong]:
    """The scales of a weight ``[n, k]``."""
    if spec.group is not None and k % spec.group:
        yield Wrong(part, f"the group size {spec.group} of quantization_config does not divide K = {k}")
        return
    yield Need(
        part, scale_dtypes(spec), scale_shapes(spec, n, k), why="is missing: the values of the codes are unknown"
    )


def inputs(
    activations: ActSpec | None, infos: Mapping[str, TensorInfo], over: tuple[str, ...] = (INPUT_OVER,)
) -> Iterator[Need]:
    """The calibrated scale of inputs, where they have one; ``over`` is its name above others."""
    if activations is None or not activations.calibrated:
        return
    possible = INPUT_SCALES if activations.scale is None else over
    part = next((part for part in possible if part in infos), possible[0])
    why = "is missing, but quantization_config says activations have a static scale"
    yield Need(part, PLAIN_DTYPES, numel=1, why=why)
    yield Need("input_zero_point", optional=True)
