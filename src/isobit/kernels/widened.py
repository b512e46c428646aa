"""Weights and activations in the formats that :mod:`isobit.kernels.held` names for kernels, exactly the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isobit.formats.codec import decode, quantize_activations
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels.held import HALVES, held, on_gpu


def weight(given: QTensor, *, halves: bool = False) -> QTensor:
    """A weight ``[N, K]`` as kernels are given it.

    Args:
        given: it.
        halves: whether they read e2m1.
    """
    made = given.with_float_scales()
    if given.spec.scale is None or given.spec.element != HALVES or halves:
        return made
    twice = (decode(made.unpacked(), HALVES) * 2).to(torch.int8)
    spec = held(given.spec)
    assert spec is not None
    return QTensor(spec, made.shape, twice, made.scale * 0.5)


def for_gpu(given: QTensor, activations: ActSpec | None) -> QTensor:
    """A weight as GPU kernels are asked for it first: scales are codes where a kernel reads such, else floats.

    Args:
        given: it.
        activations: how its input is rounded; None when it is not.
    """
    return given if on_gpu(given.spec, activations)[0] == given.spec else given.with_float_scales()


class RoundedBefore:
    """A linear whose input is rounded in front of its kernel, which takes the rounded values as they are.

    Args:
        run: the kernel.
        spec: how its input is rounded.
        static_scale: of calibrated activations.
        given: the weight, as it is stored.
        dtype: what the kernel is given the values in, which it holds all of.
    """

    def __init__(
        self, run: Callable[..., Any], spec: ActSpec, static_scale: Tensor | None, given: QTensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self._run, self._spec, self._scale, self._dtype = run, spec, static_scale, dtype
        self.weight = given

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the dtype of ``x``."""
        values = rounded(x, self._spec, self._scale).to(self._dtype)
        return self._run(values).to(x.dtype)  # type: ignore[no-any-return]


def rounded(x: Tensor, spec: ActSpec, static_scale: Tensor | None) -> Tensor:
    """Activations ``[..., K]`` as the values of their codes under their scales, float32."""
    codes, scales = quantize_activations(x, spec, static_scale)
    assert spec.group is not None
    k = x.shape[-1]
    return decode(codes, spec.element) * scales.repeat_interleave(spec.group, dim=-1)[..., :k]
