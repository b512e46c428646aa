"""What a layer is told when it runs: the batch it is part of, and the functions that run its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from isobit.formats.caches import CacheFormat
from isobit.kernels.cached import Cached
from isobit.kernels.grouped import BoundMixture, Routing
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.latent import LatentSpec
from isobit.kernels.norm import NormSpec
from isobit.kernels.rounded import Rounded
from isobit.models.batch import Batch
from isobit.models.config import LayerSpec
from isobit.models.feed_forward import Activation
from isobit.models.linear import Linear
from isobit.models.place import Place


@dataclass(frozen=True)
class Step:
    """What the layers share in one call of the model.

    Attributes:
        ops: what runs them.
        batch: the tokens.
        angles: layer -> cosines and sines ``[T, rotated]`` of the tokens, in the dtype of the activations.
        factors: layer -> what the tokens' scores are multiplied by besides, float32 ``[T]``, where its attention is
            ``scaled``; else None.
        memory: layer -> keys and values of its cache.
        stride: heads of tokens from a layer's keys to those of the next, 0 where all may use the same memory; None
            where layers differ.
        masks: for the row that makes them: made once for all layers.
    """

    ops: LayerOps
    batch: Batch
    angles: Callable[[int], tuple[Tensor, Tensor]]
    memory: Callable[[int], Cached]
    stride: int | None
    masks: dict[tuple[int, int, int | None, int | None], Tensor | None] = field(default_factory=dict)
    factors: Callable[[int], Tensor | None] = lambda layer: None


class Tapped(Protocol):
    """A place that shows what it is given to those who listen."""

    @property
    def observed(self) -> bool:
        """Whether somebody does."""

    def __call__(self, x: Tensor, /) -> object:
        """Shows it."""


class ExpertParts(Protocol):
    """What a row needs to know of the experts of a layer (:class:`isobit.models.experts.ExpertsMLP`)."""

    routing: Routing
    bound: BoundMixture

    @property
    def entry(self) -> Tapped:
        """Shown what goes into the experts."""

    @property
    def middle(self) -> Tapped:
        """Shown what goes into their down."""


Stack = Callable[[Tensor, Step], Tensor]
Activations = Tensor | Rounded  # what goes into linears
Readers = Sequence[Linear]


@dataclass(frozen=True)
class LayerOps:
    """One way to run the parts of a layer, at one place. Activations are flat: ``[T, ...]`` of all sequences.

    What a norm or a gate gives is read by linears (``readers``): a row that rounds activations where it makes them, for
    linears that want them rounded, gives them as ``Rounded``.

    Attributes:
        name: what ISOBIT_KERNEL and ``Decoder.layer_ops`` call it.
        norm: (x, spec, readers) to the norm of ``[T, K]``.
        add: (x, delta) to their sum.
        add_norm: (x, delta, spec, readers) to the sum and its norm.
        gate: (gate, up, activation, readers) to ``activation(gate) * up``.
        activate: (x, activation, readers) to ``activation(x)``.
        project: several linears of one input.
        project_gate: ((gate, up), x, activation, readers) to the gate of what two linears give.
        project_add: (linear, x, residual) to the residual plus what a linear gives, with the bits of ``add``; None
            where that is no less work than both: it is not asked for then.
        adds: (linear, x) says whether that takes no more launches than the linear alone, for the tokens of ``x``.
        attend: (heads, layer, q, k, v ``[T, heads * dim]``, step) to the same; fills the cache.
        latent: (spec, layer, q ``[T, heads * (plain + rotated)]``, kv ``[T, rank + rotated]``, step) to ``[T, heads *
            value]``: latent attention; fills the cache.
        experts: (parts, x ``[T, K]``, step, residual or None) to the weighted sum of each token's experts, added to the
            residual with the bits of ``add``; shows ``parts.entry`` and
            ``parts.middle`` what they want to see while somebody listens.
        gate_by: (x ``[T, K]``, weight float32 ``[K]``, y) to ``y * sigmoid(x . weight)``.
        stack: all layers in one function (x, step) to the residual stream behind them; or why they cannot run in
            one; empty where the row has no such function.
        reserve: (heads or latents, sequences, most_new, most) says what attention will be asked for, before a graph is
            recorded.
        recordable: whether a step reads lengths on the device, so that a recorded graph serves all.
    """

    name: str
    norm: Callable[[Tensor, NormSpec, Readers], Activations]
    add: Callable[[Tensor, Tensor], Tensor]
    add_norm: Callable[[Tensor, Tensor, NormSpec, Readers], tuple[Tensor, Activations]]
    gate: Callable[[Tensor, Tensor, Activation, Readers], Activations]
    activate: Callable[[Tensor, Activation, Readers], Activations]
    project: Callable[[Readers, Activations], Sequence[Tensor]]
    project_gate: Callable[[Readers, Activations, Activation, Readers], Activations]
    attend: Callable[[AttentionSpec, int, Tensor, Tensor, Tensor, Step], Tensor]
    latent: Callable[[LatentSpec, int, Tensor, Tensor, Step], Tensor]
    experts: Callable[[ExpertParts, Tensor, Step, Tensor | None], Tensor]
    gate_by: Callable[[Tensor, Tensor, Tensor], Tensor]
    project_add: Callable[[Linear, Activations, Tensor], Tensor] | None = None
    adds: Callable[[Linear, Tensor], bool] = lambda linear, x: False
    stack: Callable[[nn.ModuleList], Stack | str] = lambda layers: ""
    reserve: Callable[[AttentionSpec | LatentSpec, int, int, int], None] = lambda of, sequences, most_new, most: None
    recordable: bool = False


@dataclass(frozen=True)
class LayerRow:
    """A row of the table of ways to run layers.

    Attributes:
        name: of the ops that it makes.
        priority: the highest that accepts is chosen.
        accepts: why it cannot run these layers in a dtype at a place, with a cache of a format, or None.
        make: the ops at a place.
    """

    name: str
    priority: int
    accepts: Callable[[torch.dtype, Place, Sequence[LayerSpec], CacheFormat], str | None]
    make: Callable[[Place], LayerOps]


def last(linear: nn.Module, x: Activations, step: Step, residual: Tensor | None) -> Tensor:
    """What the last linear of a part gives, added to the residual if one is given."""
    if residual is None:
        return linear(x)  # type: ignore[no-any-return]
    assert step.ops.project_add is not None and isinstance(linear, Linear)
    return step.ops.project_add(linear, x, residual)
