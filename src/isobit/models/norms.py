"""The norms of a decoder."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.kernels.norm import NormSpec
from isobit.models.parts import Part


class Norm(Part):
    """A root-mean-square norm or a LayerNorm over the last axis.

    Attributes:
        spec: what the kernels are told of it.
    """

    def __init__(self, spec: NormSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def weight(self) -> Tensor:
        """float32 ``[K]``."""
        return self.spec.weight

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x``."""
        return normed(x, self.spec)


def normed(x: Tensor, spec: NormSpec) -> Tensor:
    """Rows of ``x`` behind a norm, computed in float32, in the dtype of ``x``."""
    if spec.weight.dim() > 1:
        heads = x.view(*x.shape[:-1], *spec.weight.shape)
        plain = replace(spec, weight=torch.ones(heads.shape[-1], device=x.device), bias=None)
        return (normed(heads.float(), plain) * spec.weight).flatten(-2).to(x.dtype)
    wide, shape = x.float(), (x.shape[-1],)
    if spec.centred:
        return F.layer_norm(wide, shape, spec.weight, spec.bias, spec.eps).to(x.dtype)
    found = F.rms_norm(wide, shape, spec.weight, spec.eps)
    return (found if spec.bias is None else found + spec.bias).to(x.dtype)
