"""What a layer is told when it runs: the step it is part of, and the row of functions that run its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isobit.kernels.heads import AttentionSpec
from isobit.models.cache import KVCache
from isobit.models.config import Activation, LayerSpec
from isobit.models.linear import Linear


@dataclass(frozen=True)
class Step:
    """What the layers share in one call of the model.

    Attributes:
        ops: the row that runs them.
        past: tokens in the cache.
        cos, sin: ``[T, head_dim]`` of the new tokens, in the dtype of the activations.
        masks: for each window of a layer the additive mask ``[T, past + T]``, or None; for the reference only.
        cache: keys and values so far, or None.
    """

    ops: LayerOps
    past: int
    cos: Tensor
    sin: Tensor
    masks: Mapping[int | None, Tensor | None]
    cache: KVCache | None


@dataclass(frozen=True)
class LayerOps:
    """One way to run the parts of a layer.

    Attributes:
        name: what ISOBIT_KERNEL and ``Decoder.layer_ops`` call it.
        needs_masks: whether ``attend`` reads ``Step.masks``.
        accepts: why it cannot run these layers in a dtype on a device, or None.
        priority: the highest that accepts is chosen.
        norm: (x, weight, eps) to the RMS norm of ``[..., K]``.
        add: (x, delta) to their sum.
        add_norm: (x, delta, weight, eps) to the sum and its norm.
        gate: (gate, up, activation) to ``activation(gate) * up``.
        project: several linears of one input.
        attend: (heads, layer, q, k, v ``[B, T, heads * dim]``, step) to the same; fills the cache.
        stack: all layers in one function (x, step) to the residual stream behind them, where the row has one and these
            layers can run in it; else None.
    """

    name: str
    needs_masks: bool
    accepts: Callable[[torch.dtype, str, Sequence[LayerSpec]], str | None]
    priority: int
    norm: Callable[[Tensor, Tensor, float], Tensor]
    add: Callable[[Tensor, Tensor], Tensor]
    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, Tensor, Activation], Tensor]
    project: Callable[[Sequence[Linear], Tensor], Sequence[Tensor]]
    attend: Callable[[AttentionSpec, int, Tensor, Tensor, Tensor, Step], Tensor]
    stack: Callable[[nn.ModuleList], Callable[[Tensor, Step], Tensor] | None] = lambda layers: None
