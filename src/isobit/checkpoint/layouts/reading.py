"""What every layout reads with: the tensors of one module, all of them or those of some rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from isobit.checkpoint.layouts.needs import scale_shapes
from isobit.checkpoint.layouts.parts import FACTOR, INPUT_OVER, INPUT_SCALES, OPEN_SCALES, SCALE_DTYPES
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo
from isobit.checkpoint.shown import listed
from isobit.checkpoint.small import read_vector
from isobit.checkpoint.store import Store
from isobit.errors import DamagedWeights, FormatError
from isobit.formats import codec, cuts
from isobit.formats.cuts import Cut
from isobit.formats.qtensor import QTensor
from isobit.formats.scales import ScaleSpec
from isobit.formats.schemes import ActSpec, WeightSpec


class Source(Store, Protocol):
    """A store whose checkpoint may say how it is quantized."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the tensors of the unquantized model, where it is known which one that is; else nothing."""
        ...

    @property
    def quantization(self) -> Quantization | None:
        """What its configuration says about quantization, or None."""
        ...


@dataclass(frozen=True)
class LinearWeight:
    """The weight of one linear layer or embedding, as it is stored.

    Attributes:
        weight: ``[N, K]``: a QTensor, or a tensor of a plain floating-point dtype.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]``, the calibrated scale of static activations, else None.
        bias: ``[N]``, or None.
        names: the tensors this was read from, for the check that every tensor of a checkpoint is used.
        order: which input each column of the weight belongs to, int64 ``[K]``; None where they are in order.
        factor: what inputs are multiplied by first, in a float dtype ``[K]``; None where they are not.
    """

    weight: QTensor | Tensor
    activations: ActSpec | None = None
    input_scale: Tensor | None = None
    bias: Tensor | None = None
    names: tuple[str, ...] = ()
    order: Tensor | None = None
    factor: Tensor | None = None

    def numbers(self) -> Tensor:
        """The weight in float32 and the order of the inputs, with what those are multiplied by: ``[N, K]``."""
        found = self.weight.dequantize() if isinstance(self.weight, QTensor) else self.weight.float()
        found = found if self.order is None else torch.empty_like(found).index_copy_(1, self.order, found)
        return found if self.factor is None else found * self.factor.float()

    @property
    def as_it_is(self) -> bool:
        """Whether inputs are taken as they come: neither put into another order nor multiplied."""
        return self.order is None and self.factor is None

    def in_order(self) -> LinearWeight:
        """The same with columns in the order of the inputs: where they are not, as plain numbers of the scales' dtype.

        Those are the numbers of the tools that have such an order. What inputs are multiplied by stays.
        """
        if self.order is None:
            return self
        dtype = self.weight.scale.dtype if isinstance(self.weight, QTensor) else self.weight.dtype
        return replace(self, weight=replace(self, factor=None).numbers().to(dtype), order=None)


class Reader:
    """Reads the tensors of one module; keeps count of those it used.

    Attributes:
        prefix: the module.
        infos: its tensors by part.
        used: names of the tensors that were read.
    """

    def __init__(
        self,
        source: Source,
        prefix: str,
        infos: Mapping[str, TensorInfo],
        rows: slice | None = None,
        columns: slice | None = None,
        mmap: bool = False,
    ) -> None:
        self.source, self.prefix, self.infos = source, prefix, infos
        self.used: list[str] = []
        self._rows, self._columns, self._mmap = rows, columns, mmap

    def error(self, part: str, message: str) -> DamagedWeights:
        """An error about a part, that is there or not."""
        info = self.infos.get(part) or next(iter(self.infos.values()), None)
        file = self.source.path if info is None else info.file
        return DamagedWeights(message, file=file, tensor=self.name(part))

    def name(self, part: str) -> str:
        """The name of a part's tensor."""
        return self.infos[part].name if part in self.infos else f"{self.prefix}.{part}"

    def info(self, part: str) -> TensorInfo:
        """Header entry of a part.

        Raises:
            CheckpointError: there is none of this name.
        """
        return self.source.info(self.name(part))

    def take(self, part: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        """Reads a part, or rows and columns of it."""
        self.used.append(self.name(part))
        return self.source.read(self.name(part), rows, columns, mmap=self._mmap)

    def finite(self, part: str, numbers: Tensor) -> Tensor:
        """Numbers of a part, as they are.

        Raises:
            CheckpointError: there are NaN or infinite ones among them, with which nothing can be computed.
        """
        low, high = torch.aminmax(numbers)  # one pass, and no copy
        if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
            raise self.error(part, "holds NaN or infinite numbers: this checkpoint is damaged")
        return numbers

    def matrix(self, part: str) -> tuple[int, int]:
        """The sizes of a part.

        Raises:
            CheckpointError: it is no matrix.
        """
        shape = self.info(part).shape
        if len(shape) != 2 or 0 in shape:
            raise self.error(part, f"has shape {listed(shape)}; a weight is a matrix")
        return shape[0], shape[1]

    # ------------------------------------------------------------------ which rows and columns

    def span(self, n: int, k: int) -> tuple[slice, slice]:
        """The rows and columns of a plain weight ``[n, k]`` that are asked for.

        Raises:
            CheckpointError: there are no such ones, or the model has a weight of other sizes.
        """
        self._require_shape(n, k)
        try:
            return cuts.span(self._rows, n, "rows"), cuts.span(self._columns, k, "columns")
        except FormatError as error:
            raise self.error("weight", str(error)) from None

    def cut(self, part: str, spec: WeightSpec, n: int, k: int) -> Cut:
        """Where those of a quantized weight lie; ``part`` holds its codes.

        Raises:
            CheckpointError: there are no such ones, or a group, block or word would be cut; or a group does not
                divide K; or the model has a weight of other sizes.
        """
        self._require_shape(n, k)
        if spec.group is not None and k % spec.group:
            scale = next((name for name in self.infos if name.startswith("weight_scale")), part)
            message = f"the group size {spec.group} of quantization_config does not divide K = {k}"
            raise self.error(scale, message)
        try:
            return cuts.cut(spec, n, k, self._rows, self._columns)
        except FormatError as error:
            raise self.error(part, str(error)) from None

    @property
    def shape(self) -> tuple[int, int] | None:
        """The sizes of the weight by the model; None where it is not known which one that is."""
        found = self.source.shapes.get(f"{self.prefix}.weight", ())
        return (found[0], found[1]) if len(found) == 2 else None

    def _require_shape(self, n: int, k: int) -> None:
        if self.shape not in (None, (n, k)):
            assert self.shape is not None
            raise self.error("weight", f"has shape [{n}, {k}], but config.json makes it {[*self.shape]}")

    # ------------------------------------------------------------------ what the config says

    def configured(self, part: str) -> tuple[WeightSpec, ActSpec | None]:
        """How weights are stored and inputs rounded, by the quantization config; ``part`` holds codes.

        Raises:
            CheckpointError: it does not say that this module is quantized.
        """
        group = self.group(part)
        if group.weights is None:
            raise self.error(part, f"is not stored as quantization_config says: {group.widened}")
        return group.weights, group.activations

    def group(self, part: str) -> Group:
        """What the quantization config says of this module; ``part`` holds codes.

        Raises:
            CheckpointError: it does not say that this module is quantized.
        """
        quantization = self.source.quantization
        if quantization is None:
            raise self.error(
                part,
                f"is quantized ({self.info(part).dtype}) but config.json has no quantization_config,"
                " so that nothing says how its activations are rounded",
            )
        group = quantization.group_for(self.prefix)
        if group is None or (group.weights is None and not group.widened):
            raise self.error(
                part, f"is quantized ({self.info(part).dtype}), but quantization_config says that this module is not"
            )
        return group

    # ------------------------------------------------------------------ parts of a QTensor

    def scale(self, part: str, spec: WeightSpec, n: int, k: int, where: Cut) -> Tensor:
        """The scales of some rows and columns in QTensor's shape; the shapes other tools use for the same are accepted.

        Raises:
            CheckpointError: they have another shape or dtype, or are not finite.
        """
        info = self.info(part)
        expected = spec.scale_shape(n, k)
        if info.shape not in scale_shapes(spec, n, k):
            unit = {"group": f"group {spec.group}", "block": f"block {spec.block}"}.get(
                spec.granularity, spec.granularity
            )
            raise self.error(
                part,
                f"has shape {listed(info.shape)}; a scale per {unit} of a [{n}, {k}] weight has {list(expected)}",
            )
        stored = self._scale_format(part, spec)
        if spec.granularity == "block" and len(info.shape) != 2:
            scale = self.take(part).reshape(expected)[where.scales]
        else:
            scale = self.take(part, *where.scales[: len(info.shape)])
        scale = scale if stored.codes is None else scale.view(torch.uint8)
        values = scale.float() if stored.codes is None else codec.decode(scale, stored.codes)
        if not bool(torch.isfinite(values).all()):
            raise self.error(part, "holds NaN or infinite scales")
        # Where the spec leaves it open, codes are as good as the numbers they stand for, which float32 holds exactly.
        found = values if spec.scale is None and stored.codes is not None else scale
        return found.reshape([cuts.size(part) for part in where.scales] or [1])

    def _scale_format(self, part: str, spec: WeightSpec) -> ScaleSpec:
        """How the scales in a part are stored, by their dtype and the spec.

        Raises:
            CheckpointError: in a way that they cannot be, or that the spec does not say.
        """
        dtype = self.info(part).dtype
        if spec.scale is None:
            if SCALE_DTYPES.get(dtype) not in OPEN_SCALES:
                raise self.error(part, f"scales of dtype {dtype} cannot be read")
            return ScaleSpec(SCALE_DTYPES[dtype])
        said = spec.scale.codes
        if SCALE_DTYPES.get(dtype) != (spec.scale.element if said is None else said.name) and (
            said is None or dtype != "U8"
        ):
            raise self.error(part, f"is {dtype}, but these scales are stored in {spec.scale}")
        return spec.scale

    def scale_over(self, part: str) -> Tensor:
        """The one scale of a whole weight that stands above the others: float32 ``[1]``.

        Raises:
            CheckpointError: it is missing, or no number other than zero.
        """
        info = self.info(part)
        if info.numel != 1 or info.dtype != "F32":
            message = f"is {info.dtype} {listed(info.shape)}; the scale above all others is one F32 number"
            raise self.error(part, message)
        scale = self.take(part).reshape(1)
        if not bool(torch.isfinite(scale).all()) or not bool(scale):
            raise self.error(part, f"is {float(scale)}: a scale above others is a finite number other than zero")
        return scale

    def qtensor(
        self,
        part: str,
        spec: WeightSpec,
        where: Cut,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None = None,
        over: Tensor | None = None,
    ) -> QTensor:
        """The weight; ``part`` is blamed for what does not fit.

        Raises:
            CheckpointError: the tensors do not fit together.
        """
        try:
            found = QTensor(spec, where.shape, codes, scale, zero, over)
        except FormatError as error:
            raise self.error(part, str(error)) from None
        if codec.any_not_finite(found.codes, spec.element):
            raise self.error(part, f"holds codes of {spec.element} that mean NaN or infinity: it is damaged")
        return found

    # ------------------------------------------------------------------ what goes with a weight

    def linear(
        self,
        weight: QTensor | Tensor,
        activations: ActSpec | None,
        input_scale: Tensor | None,
        n: int,
        order: Tensor | None = None,
        *,
        complete: bool = False,
    ) -> LinearWeight:
        """All together, the bias read, too: that of the rows asked for of a weight of ``n`` rows.

        Every other tensor must have been read, if the weight is quantized or meant to be ``complete``.
        """
        bias = None
        if "bias" in self.infos:
            self.used.append(self.name("bias"))
            bias = read_vector(self.source, self.name("bias"), n)[cuts.span(self._rows, n, "rows")]
        factor = self._factor(weight.shape[1]) if FACTOR in self.infos else None
        if isinstance(weight, QTensor) or complete:
            self.refuse_leftovers()
        return LinearWeight(weight, activations, input_scale, bias, tuple(self.used), order, factor)

    def _factor(self, columns: int) -> Tensor:
        """What the inputs that are read for are multiplied by."""
        whole = self.info(FACTOR).numel
        self.used.append(self.name(FACTOR))
        factor = read_vector(self.source, self.name(FACTOR), whole)
        part = factor[cuts.span(self._columns, whole, "columns")]
        if len(part) != columns:
            raise self.error(FACTOR, f"has {whole} numbers; the weight has another number of inputs")
        return part

    def input_scale(self, activations: ActSpec | None) -> Tensor | None:
        """The scale of static activations; None when they have none.

        Raises:
            CheckpointError: it is missing, or no positive number.
        """
        if activations is None or not activations.calibrated:
            return None
        possible = INPUT_SCALES if activations.scale is None else (INPUT_OVER,)
        part = next((part for part in possible if part in self.infos), None)
        if part is None:
            raise self.error(possible[0], "is missing, but quantization_config says activations have a static scale")
        if self.info(part).numel != 1:
            raise self.error(part, f"has shape {listed(self.info(part).shape)}; a static scale is one number")
        if self.info(part).dtype not in PLAIN_DTYPES:
            raise self.error(part, f"scales of dtype {self.info(part).dtype} cannot be read")
        scale = self.take(part).to(torch.float32).reshape(1)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise self.error(part, f"is {float(scale)}: a scale is a positive number")
        if "input_zero_point" in self.infos and self.holds_numbers("input_zero_point"):
            raise self.error("input_zero_point", "is not zero: asymmetric activations cannot be run")
        return scale

    def holds_numbers(self, part: str) -> bool:
        """Whether a tensor holds anything but zeros."""
        tensor = self.take(part)
        return bool((tensor if tensor.is_complex() else tensor.float()).any())

    def refuse_leftovers(self) -> None:
        """That every tensor that may belong to a weight was read.

        Raises:
            CheckpointError: one was not: it and the configuration contradict each other.
        """
        left = sorted(part for part in self.infos if self.name(part) not in self.used)
        if left:
            raise self.error(left[0], "does not fit the way quantization_config says this module is quantized")
