"""What becomes of each source tensor, the pieces of rows in which it is done, and the work on one piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from isobit.checkpoint.checksums import checksum
from isobit.checkpoint.layouts.table import written
from isobit.checkpoint.linear import module_tensors
from isobit.checkpoint.safetensors import DTYPES, TensorInfo, dtype_name
from isobit.checkpoint.shards import PlannedTensor
from isobit.errors import DamagedWeights, FormatError
from isobit.formats.fitting import fitted
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import ModuleKind, Policy
from isobit.formats.schemes import Scheme, WeightSpec
from isobit.formats.table import element
from isobit.quantizer import grid

PIECE_BYTES = 16 << 20  # source bytes worked on at once by one thread

FLOATS = ("F32", "BF16", "F16")

InputScales = dict[str, float]  # module -> static activation scale
UNKNOWN_SCALE = 1.0  # stands for a static activation scale until it is measured


@dataclass(frozen=True)
class Job:
    """One source tensor and what becomes of it.

    Attributes:
        source: the tensor, as the source has it.
        kind: what it is in the model.
        scheme: how it is quantized or to what it is cast; None when it is copied.
        input_scale: static activation scale of the module, if its scheme has one.
        search: how scales are chosen.
        called: name of the tensor in the output; the source's own where empty.
        stored: bytes that it takes in the source's file, where it is quantized there and read as float32.
    """

    source: TensorInfo
    kind: ModuleKind
    scheme: Scheme | None
    input_scale: float | None = None
    search: grid.Search = "absmax"
    called: str = ""
    stored: int | None = None

    @property
    def source_bytes(self) -> int:
        """Bytes of the tensor in the source, scales included."""
        return self.source.nbytes if self.stored is None else self.stored

    @property
    def name(self) -> str:
        """Name of the source tensor: unique in the plan."""
        return self.source.name

    @property
    def module(self) -> str:
        """The module the tensor belongs to."""
        return module_of(self.source.name)

    @property
    def written(self) -> str:
        """Name of the tensor in the output, if it is not quantized."""
        return self.called or self.name

    @property
    def spec(self) -> WeightSpec | None:
        """How the weight is quantized; None when it is not."""
        return None if self.scheme is None else self.scheme.weights

    @property
    def dtype(self) -> str:
        """Safetensors dtype of a tensor that is not quantized."""
        if self.scheme is None or self.scheme.dtype is None or self.source.dtype not in FLOATS:
            return self.source.dtype
        found = dtype_name(getattr(torch, self.scheme.dtype))
        assert found is not None
        return found

    @cached_property
    def outputs(self) -> tuple[PlannedTensor, ...]:
        """The tensors that will be written."""
        if self.spec is None:
            return (PlannedTensor(self.written, self.dtype, self.source.shape),)
        return tuple(self._stored(self.source.shape[0]).values())

    @cached_property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """Ranges of rows that are done one by one; a matrix with one scale is done as a whole."""
        rows = self.source.shape[0] if self.source.shape else 1
        if rows == 0 or (self.spec is not None and self.spec.of_whole):
            return ((0, rows),)
        row_bytes = max(self.source.nbytes // rows, 1)
        step = max(PIECE_BYTES // row_bytes // self._unit, 1) * self._unit
        return tuple((begin, min(begin + step, rows)) for begin in range(0, rows, step))

    def offset(self, output: str, row: int) -> int:
        """Bytes of ``output`` in front of what belongs to source row ``row``, the first of a piece."""
        if row == 0:
            return 0
        if self.spec is None:
            return self.outputs[0].nbytes // self.source.shape[0] * row
        return self._stored(row)[output].nbytes

    def tensors(self, quantized: QTensor) -> dict[str, Tensor]:
        """The tensors of the module that hold ``quantized``, some or all of its rows."""
        assert self.scheme is not None
        scale = None if self.input_scale is None else torch.tensor([self.input_scale], dtype=torch.float32)
        spec = self.scheme.activations
        if scale is not None and spec is not None and spec.scale is not None:  # 448 * 6 over the largest input
            scale = element(spec.element).max / scale
        rows = self.source.shape[0]
        module, rounded = module_of(self.written), self.scheme.activations
        return module_tensors(module, quantized, activations=rounded, input_scale=scale, rows=rows)

    def is_whole(self, output: str) -> bool:
        """Whether ``output`` belongs to no row in particular: it is written once, with the first piece."""
        one, two = self._stored(self._unit), self._stored(2 * self._unit)
        return one[output].shape == two[output].shape

    @property
    def _unit(self) -> int:
        """Pieces begin at multiples of so many rows: no block and no int32 word of packed zero points is split."""
        return math.lcm(32, 1 if self.spec is None or self.spec.block is None else self.spec.block[0])

    def _stored(self, rows: int) -> dict[str, PlannedTensor]:
        """The tensors that hold so many rows, by name."""
        assert self.spec is not None and self.scheme is not None
        scale_dtype = dtype_name(grid.stored_scale_dtype(self.source.torch_dtype, self.spec))
        assert scale_dtype is not None
        parts = written(self.spec, self.scheme.activations, rows, self.source.shape[1], scale_dtype)
        module = module_of(self.written)
        return {name: replace(part, name=name) for part in parts for name in (f"{module}.{part.name}",)}


@dataclass(frozen=True)
class Piece:
    """The result of one piece: parts of the output tensors, with the bytes in front of them, and the error made.

    Attributes:
        parts: (output name, byte offset, data).
        signal: sum of the squared source weights.
        noise: sum of the squared differences.
        source: checksum of the source bytes.
    """

    parts: tuple[tuple[str, int, Tensor], ...]
    signal: float = 0.0
    noise: float = 0.0
    source: int = 0


def module_of(tensor: str) -> str:
    """``model.norm`` for ``model.norm.weight``."""
    return tensor.rpartition(".")[0]


def is_weight(info: TensorInfo) -> bool:
    """Whether this is a matrix that a scheme can quantize."""
    return info.name.endswith(".weight") and len(info.shape) == 2


def scheme_of(info: TensorInfo, kind: ModuleKind, policy: Policy) -> Scheme | None:
    """What the policy makes of a tensor; None when it is copied.

    A scheme whose groups or blocks do not divide the weight becomes the one that :func:`fitted` says.
    A default that only names a dtype (bf16, f16) is about the whole checkpoint, so it casts what no rule keeps.
    """
    module = module_of(info.name)
    chosen = policy.scheme_for(module, kind) if is_weight(info) and kind != "norm" else None
    if chosen is None and policy.default.dtype is not None and info.dtype in FLOATS:
        kept = any(rule.matches(module) for rule in policy.rules)
        return None if kept else policy.default
    return chosen if chosen is None else fitted(chosen, info.shape[1])


def plan_jobs(
    tensors: Iterable[TensorInfo],
    classify: Callable[[str], ModuleKind],
    policy: Policy,
    search: grid.Search | None,
) -> Iterator[Job]:
    """One job per source tensor, in the order given.

    Args:
        tensors: source tensors, in the order of their bytes.
        classify: tensor name -> what it is.
        policy: which module gets which scheme.
        search: how scales are chosen; None for each format's default.
    """
    for info in tensors:
        kind = classify(info.name)
        chosen = scheme_of(info, kind, policy)
        spec = None if chosen is None else chosen.weights
        how = search or (grid.default_search(spec) if spec is not None else "absmax")
        scale = UNKNOWN_SCALE if chosen is not None and chosen.needs_calibration else None
        yield Job(info, kind, chosen, scale, how)


# ---------------------------------------------------------------------- the work


def work(job: Job, rows: tuple[int, int], data: Tensor) -> Piece:
    """Does one piece.

    Args:
        job: what to do.
        rows: the range of source rows.
        data: these rows.

    Raises:
        CheckpointError: NaN or infinite values, or values beyond the dtype to cast to; names file and tensor.
    """
    try:
        source = checksum(data)
        piece = _cast(job, rows[0], data) if job.spec is None else _quantize(job, rows[0], data, job.spec)
        return replace(piece, source=source)
    except FormatError as error:
        raise DamagedWeights(str(error), file=job.source.file, tensor=job.name) from None


def _quantize(job: Job, begin: int, data: Tensor, spec: WeightSpec) -> Piece:
    scale_dtype = grid.stored_scale_dtype(job.source.torch_dtype, spec)
    quantized = grid.quantize_weight(data, spec, search=job.search, scale_dtype=scale_dtype)
    parts = tuple(
        (name, job.offset(name, begin), tensor)
        for name, tensor in job.tensors(quantized).items()
        if begin == 0 or not job.is_whole(name)
    )
    signal, noise = _errors(data, quantized)
    if not math.isfinite(noise):
        raise FormatError(
            f"the tensor contains {float(data.abs().max()):.6g}, which {spec.element} rounds beyond float32"
        )
    return Piece(parts, signal, noise)


def _errors(data: Tensor, quantized: QTensor) -> tuple[float, float]:
    """Sums of the squared weights and of the squared errors, a few rows at a time so that they stay in the cache."""
    step = max(1, (1 << 18) // data.shape[1])
    if quantized.spec.block is not None:
        step = -(-step // quantized.spec.block[0]) * quantized.spec.block[0]
    signal = noise = 0.0
    for begin in range(0, data.shape[0], step):
        rows = slice(begin, min(begin + step, data.shape[0]))
        exact = data[rows].float().reshape(-1)
        error = quantized.dequantize(rows).reshape(-1).sub_(exact)
        signal += _sum_of_squares(exact)
        noise += _sum_of_squares(error)
    return signal, noise


def _sum_of_squares(values: Tensor) -> float:
    """The sum of the squares of float32 values, also where these leave float32."""
    found = float(torch.dot(values, values))
    if 1e-30 < found < math.inf or not values.any():
        return found
    return float(torch.dot(doubles := values.double(), doubles))


def _cast(job: Job, begin: int, data: Tensor) -> Piece:
    target = getattr(torch, str(DTYPES[job.dtype][1]))
    if data.is_floating_point() and data.element_size() > 1 and data.numel():
        low, high = torch.aminmax(data)
        if not math.isfinite(float(low)) or not math.isfinite(float(high)):
            kinds = "NaN" if math.isnan(float(low)) or math.isnan(float(high)) else "infinite"
            raise FormatError(f"the tensor contains {kinds} values; a source checkpoint with such weights is damaged")
        largest = max(abs(float(low)), abs(float(high)))
        if target != data.dtype and not math.isfinite(float(torch.tensor(largest, dtype=torch.float64).to(target))):
            name = str(target).removeprefix("torch.")
            raise FormatError(f"the tensor contains {largest:g}, which is beyond {name}; use bf16, or keep this module")
    result = data.to(target)
    return Piece(((job.written, job.offset(job.written, begin), result),))
