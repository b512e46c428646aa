"""A linear layer with a bound kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels import backends
from isobit.models.parts import Part
from isobit.models.place import Place


class Prepared:
    """A bound linear whose inputs are changed first: put into the order of its columns, or multiplied.

    Attributes:
        run: the function that takes what became of them.
        order: which input each column belongs to, int64 ``[K]``, or None.
        factor: what each input is multiplied by, ``[K]``, or None.
    """

    def __init__(self, run: Callable[..., Any], order: Tensor | None, factor: Tensor | None) -> None:
        self.run, self.order, self.factor = run, order, factor

    @property
    def weight(self) -> QTensor | Tensor:
        """``[N, K]``, its columns as they are held."""
        return self.run.weight  # type: ignore[attr-defined, no-any-return]

    def rounding(self, tokens: int, dtype: torch.dtype) -> None:
        """None: it takes inputs as they are."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        x = x if self.factor is None else x * self.factor.to(x.dtype)
        return self.run(x if self.order is None else x.index_select(-1, self.order))  # type: ignore[no-any-return]


class Linear(Part):
    """``y = x W^T + b`` through the kernel that the registry chose for its formats.

    Where it is ``bound`` already, as a part of several in one (``joined.py``), it is given no weight.

    Attributes:
        weight: ``[N, K]``, quantized or not; where a kernel holds it in another order, made anew when asked for.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` of static activations, else None.
        bias: ``[N]`` in the compute dtype, or None.
        order: which input each column of the weight belongs to, int64 ``[K]``; None where they are in order.
        factor: what inputs are multiplied by first, ``[K]``; None where they are not.
        kernel: the registry's row that runs it.
        reasons: why no faster row does.
        bound: the function that runs it.
        stored: the module of the checkpoint of whose matrix it is some rows; None: all of one that its place names.
    """

    stored: str | None = None

    def __init__(
        self,
        weight: QTensor | Tensor | None,
        activations: ActSpec | None = None,
        input_scale: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        keep_values: bool = False,
        dtype: torch.dtype = torch.float32,
        place: Place = Place(),  # noqa: B008 - frozen
        bound: backends.Bound | None = None,
        order: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.activations = activations
        self.input_scale = None if input_scale is None else place.tensor(input_scale)
        self.bias = None if bias is None else place.tensor(bias).to(dtype)
        if bound is None:
            assert weight is not None
            weight = place.weight(weight)
            bound = backends.bind(
                weight, activations, self.input_scale, self.bias,
                device=place.device, keep_values=keep_values, **place.options,
            )  # fmt: skip
        self.kernel, self.reasons, self.bound = bound.kernel, bound.reasons, bound.run
        self.order = None if order is None else place.tensor(order)
        self.factor = None if factor is None else place.tensor(factor)
        if order is not None or factor is not None:
            self.bound = Prepared(bound.run, self.order, self.factor)
        self._given = weight if place.device == "cpu" else None  # GPU kernels own theirs: nothing is held twice

    @property
    def weight(self) -> QTensor | Tensor:
        """``[N, K]``."""
        return self.bound.weight if self._given is None else self._given  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the dtype of ``x``."""
        return self.bound(x)  # type: ignore[no-any-return]
