"""The norm of a decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from isobit.models.parts import Part


class RMSNorm(Part):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight.float(), eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x``."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)
