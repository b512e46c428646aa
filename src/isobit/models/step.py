"""What a layer is told when it runs: the batch it is part of, and the row of functions that run its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from isobit.kernels.heads import AttentionSpec
from isobit.models.batch import Batch
from isobit.models.config import Activation, LayerSpec
from isobit.models.linear import Linear


@dataclass(frozen=True)
class Step:
    """What the layers share in one call of the model.

    Attributes:
        ops: the row that runs them.
        batch: the tokens.
        angles: layer -> cosines and sines ``[T, head_dim]`` of the tokens, in the dtype of the activations.
        memory: layer -> keys and values of its cache, ``[blocks, kv_heads, block, dim]``.
        stride: numbers from a layer's keys to those of the next, 0 where all may use the same memory; None where layers
            differ.
        masks: for the row that makes them: made once for all layers.
    """

    ops: LayerOps
    batch: Batch
    angles: Callable[[int], tuple[Tensor, Tensor]]
    memory: Callable[[int], tuple[Tensor, Tensor]]
    stride: int | None
    masks: dict[tuple[int, int, int | None], Tensor | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerOps:
    """One way to run the parts of a layer. Activations are flat: ``[T, ...]`` of all sequences.

    Attributes:
        name: what ISOBIT_KERNEL and ``Decoder.layer_ops`` call it.
        accepts: why it cannot run these layers in a dtype on a device, or None.
        priority: the highest that accepts is chosen.
        norm: (x, weight, eps) to the RMS norm of ``[T, K]``.
        add: (x, delta) to their sum.
        add_norm: (x, delta, weight, eps) to the sum and its norm.
        gate: (gate, up, activation) to ``activation(gate) * up``.
        project: several linears of one input.
        attend: (heads, layer, q, k, v ``[T, heads * dim]``, step) to the same; fills the cache.
        stack: all layers in one function (x, step) to the residual stream behind them; or why they cannot run in
            one; empty where the row has no such function.
        recordable: whether a step reads lengths on the device, so that a recorded graph serves all.
    """

    name: str
    accepts: Callable[[torch.dtype, str, Sequence[LayerSpec]], str | None]
    priority: int
    norm: Callable[[Tensor, Tensor, float], Tensor]
    add: Callable[[Tensor, Tensor], Tensor]
    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, Tensor, Activation], Tensor]
    project: Callable[[Sequence[Linear], Tensor], Sequence[Tensor]]
    attend: Callable[[AttentionSpec, int, Tensor, Tensor, Tensor, Step], Tensor]
    stack: Callable[[nn.ModuleList], Stack | str] = lambda layers: ""
    recordable: bool = False


Stack = Callable[[Tensor, Step], Tensor]
