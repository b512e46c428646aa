"""The numerics contract of a linear in plain torch: the law that every faster kernel is held to (docs/numerics.md).

With rounded activations the products are those of code values, accumulated in float32, and scales are applied outside
the format, to the partial sums of whatever shares one. Weight-only schemes multiply ``code * scale``, which in float32
is the exact weight up to one rounding that the contract's tolerance covers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.errors import Unsupported
from isobit.formats.codec import decode, quantize_activations
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels.checked import check_linear
from isobit.kernels.rounded import Rounded, RoundingKey

CHUNK_BYTES = 32 << 20  # of float32 weights decoded at a time


def bind(
    weight: QTensor | Tensor,
    activations: ActSpec | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    *,
    keep_values: bool = False,
    alike: bool = False,
) -> ReferenceLinear:
    """A function ``[..., K] -> [..., N]`` for one weight.

    Args:
        weight: ``[N, K]``.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` for static activations.
        bias: ``[N]``.
        keep_values: decode the weight once and keep it in float32 instead of decoding it at every call.
        alike: that a row gives the same bits in any number of rows cannot be had here.

    Raises:
        Unsupported: it was asked for all the same.
        FormatError: shapes, dtypes or devices do not fit together.
    """
    if isinstance(weight, QTensor):
        weight = weight.with_float_scales()
    check_linear(weight, activations, input_scale, bias)
    if alike:
        raise Unsupported(
            "a batch-invariant linear", ["the order of PyTorch's sums depends on how many tokens come at once"]
        )
    if not isinstance(weight, QTensor):
        return ReferenceLinear(weight, None, bias)
    rounder = None if activations is None else ReferenceRounding(activations, input_scale)
    return ReferenceLinear(_Matrix(weight, scaled=activations is None, keep=keep_values), rounder, bias)


def linear(
    x: Tensor,
    weight: QTensor | Tensor,
    activations: ActSpec | None = None,
    input_scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``y = x W^T + b`` by the numerics contract; ``[..., K]`` to ``[..., N]`` in the dtype of ``x``."""
    return bind(weight, activations, input_scale, bias)(x)


class ReferenceRounding:
    """Rounds activations as the law says.

    Args:
        spec: what the scheme says.
        static_scale: float32 ``[1]``, of static schemes.
    """

    def __init__(self, spec: ActSpec, static_scale: Tensor | None) -> None:
        self.spec, self.static_scale = spec, static_scale
        self.key = RoundingKey(spec, "codes", None if static_scale is None else float(static_scale))

    def __call__(self, x: Tensor) -> Rounded:
        """``[..., K]`` to its codes and scales."""
        codes, scales = quantize_activations(x, self.spec, self.static_scale)
        return Rounded(codes, scales, x.dtype, self.key)


class ReferenceLinear:
    """One weight; see ``bind``."""

    def __init__(self, matrix: _Matrix | Tensor, rounder: ReferenceRounding | None, bias: Tensor | None) -> None:
        self._matrix, self._rounder, self._bias = matrix, rounder, bias

    def rounding(self, tokens: int, dtype: torch.dtype) -> ReferenceRounding | None:
        """What rounds its input, however many tokens there are; None where it takes them as they are."""
        return self._rounder

    def __call__(self, x: Tensor | Rounded) -> Tensor:
        """``[..., K]``, or what :meth:`rounding` made of it, to ``[..., N]``."""
        matrix, bias = self._matrix, self._bias
        if isinstance(x, Rounded):
            x.require(None if self._rounder is None else self._rounder.key)
        elif self._rounder is not None:
            x = self._rounder(x)
        if isinstance(x, Rounded):
            assert isinstance(matrix, _Matrix)
            return _of_rounded(x, matrix, bias)
        if isinstance(matrix, Tensor):
            return _plain(x, matrix, bias)
        return _add_bias(matrix.product(x.float()), bias, x.dtype)


class _Matrix:
    """A quantized weight as float32 rows, kept or decoded anew in bounded pieces."""

    def __init__(self, weight: QTensor, *, scaled: bool, keep: bool) -> None:
        self.weight, self.scaled = weight, scaled
        self._kept = self._decode(slice(0, weight.shape[0])) if keep else None

    def _decode(self, rows: slice) -> Tensor:
        return self.weight.dequantize(rows) if self.scaled else self.weight.values(rows)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive rows as float32 ``[n, K]``, code values or, if ``scaled``, weights."""
        n, k = self.weight.shape
        if self._kept is not None:
            yield slice(0, n), self._kept
            return
        step = max(1, CHUNK_BYTES // (4 * k))
        for begin in range(0, n, step):
            rows = slice(begin, min(begin + step, n))
            yield rows, self._decode(rows)

    def product(self, x: Tensor) -> Tensor:
        """``x W^T`` in float32, without bias."""
        return torch.cat([F.linear(x, values) for _, values in self.pieces()], dim=-1)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dtype == x.dtype:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    n, k = weight.shape
    step = max(1, CHUNK_BYTES // (x.element_size() * k))
    parts = [F.linear(x, weight[begin : begin + step].to(x.dtype)) for begin in range(0, n, step)]
    return _add_bias(torch.cat(parts, dim=-1), bias, x.dtype)


def _add_bias(y: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (y if bias is None else y + bias.to(y.dtype)).to(dtype)


def _of_rounded(x: Rounded, matrix: _Matrix, bias: Tensor | None) -> Tensor:
    activations, scale = x.key.spec, x.scales
    assert activations is not None, "numbers that are narrowed are a GPU's"
    values = decode(x.codes, activations.element)
    run = _run_length(matrix.weight, activations)
    if run is None:
        y = matrix.product(values) * scale
        weight_scale = matrix.weight.scale.float()
        y *= weight_scale if weight_scale.numel() == 1 else weight_scale.squeeze(-1)
    else:
        pieces = matrix.pieces()
        y = torch.cat(
            [_by_runs(values, scale, activations, part, matrix.weight, rows, run) for rows, part in pieces], -1
        )
    return _add_bias(y, bias, x.dtype)


def _run_length(weight: QTensor, activations: ActSpec) -> int | None:
    """How many consecutive K share both scales; None when all of K does."""
    lengths = [activations.group, weight.spec.group, weight.spec.block[1] if weight.spec.block else None]
    known = [length for length in lengths if length is not None]
    return math.gcd(*known) if known else None


def _by_runs(
    values: Tensor, scale: Tensor, activations: ActSpec, part: Tensor, weight: QTensor, rows: slice, run: int
) -> Tensor:
    """Partial sums over runs of K, each with its scales applied, added in float32: ``[..., n]``."""
    total = torch.zeros(*values.shape[:-1], part.shape[0])
    for begin in range(0, values.shape[-1], run):
        columns = slice(begin, min(begin + run, values.shape[-1]))
        partial = F.linear(values[..., columns], part[:, columns])
        of_group = scale if activations.group is None else scale[..., begin // activations.group, None]
        total += partial * of_group * _weight_scale(weight, rows, begin)
    return total


def _weight_scale(weight: QTensor, rows: slice, column: int) -> Tensor:
    """The scales ``[n]`` (or ``[1]``) of some rows at one column."""
    scale, spec = weight.scale.float(), weight.spec
    if spec.granularity == "tensor":
        return scale
    if spec.granularity == "channel":
        return scale[rows, 0]
    if spec.group is not None:
        return scale[rows, column // spec.group]
    assert spec.block is not None
    row_blocks = torch.arange(rows.start, rows.stop) // spec.block[0]
    return scale[row_blocks, column // spec.block[1]]
