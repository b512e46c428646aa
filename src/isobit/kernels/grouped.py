"""A mixture of experts as kernels see it: the matrices of all experts, and where each token goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec

Listener = Callable[[Tensor], object]


@dataclass(frozen=True, eq=False)
class Grouped:
    """The matrices ``[N, K]`` that all experts have in one role, one below the other.

    Attributes:
        weight: ``[experts * stride, K]``; one scale of a whole expert is one of each of its rows.
        experts: how many there are.
        rows: N, the outputs of one.
        stride: rows from one expert to the next: N, or N rounded up to the height of a block where scales are those of
            blocks that do not divide it. The rows between are of no expert.
        bias: float32 ``[experts, N]``, or None.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 of static activations, else None: ``[1]``, or ``[experts]`` where experts differ.

    Raises:
        FormatError: the weight has another number of rows.
    """

    weight: QTensor | Tensor
    experts: int
    rows: int
    stride: int
    bias: Tensor | None = None
    activations: ActSpec | None = None
    input_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight.shape[0] != self.experts * self.stride or not 0 < self.rows <= self.stride:
            raise FormatError(
                f"{self.experts} experts of {self.rows} rows, {self.stride} apart, are not {self.weight.shape[0]} rows"
            )

    @property
    def columns(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def spec(self) -> WeightSpec | None:
        """How the weights are stored; None for plain ones."""
        return self.weight.spec if isinstance(self.weight, QTensor) else None

    def expert(self, number: int) -> QTensor | Tensor:
        """The matrix ``[N, K]`` of one, a view where torch makes one."""
        begin = number * self.stride
        if not isinstance(self.weight, QTensor):
            return self.weight[begin : begin + self.rows]
        whole = self.weight.rows(slice(begin, begin + self.stride))  # its last block may be partly of no expert
        if self.rows == self.stride:
            return whole
        return replace(whole, shape=(self.rows, self.columns), codes=whole.codes[: self.rows])

    def scale_of(self, number: int) -> Tensor | None:
        """The static scale of one expert's input, float32 ``[1]``."""
        scale = self.input_scale
        return scale if scale is None or len(scale) == 1 else scale[number : number + 1]

    def with_float_scales(self) -> Grouped:
        """The same with scales in floats, for kernels that read such; itself where they are."""
        if not isinstance(self.weight, QTensor) or self.weight.spec.scale is None:
            return self
        return replace(self, weight=self.weight.with_float_scales())


@dataclass(frozen=True)
class Gating:
    """What stands between gate and up, and down.

    Attributes:
        activation: of the gate, as of :class:`isobit.models.config.GatedMlp`.
        limit: gate below it, up within it, and ``(up + 1) * gate * sigmoid(1.702 * gate)``; None: the plain one.
    """

    activation: Literal["silu", "gelu_tanh", "gelu", "relu2"] = "silu"
    limit: float | None = None


@dataclass(frozen=True, eq=False)
class Mixture:
    """All experts of a layer.

    Attributes:
        gate, up: ``[I, K]`` of each.
        down: ``[K, I]`` of each.
        gating: what stands between.
        on_input: whether a token's weight multiplies what goes into an expert, not what comes out.
    """

    gate: Grouped
    up: Grouped
    down: Grouped
    gating: Gating = Gating()  # noqa: RUF009 - frozen
    on_input: bool = False

    @property
    def parts(self) -> tuple[Grouped, Grouped, Grouped]:
        """Gate, up and down."""
        return self.gate, self.up, self.down

    @property
    def formats(self) -> Sequence[tuple[WeightSpec | None, ActSpec | None]]:
        """How weights are stored and inputs rounded, each pair once."""
        return [*dict.fromkeys((part.spec, part.activations) for part in self.parts)]


@dataclass(frozen=True, eq=False)
class Routing:
    """How the experts of a token are chosen; everything in float32.

    Attributes:
        weight: float32 ``[experts, K]``.
        bias: float32 ``[experts]`` of the logits, or None.
        correction: float32 ``[experts]`` that is added to the scores for the choice, not for the weight; or None.
        active: how many experts a token goes to.
        scores, groups, active_groups, group_score, renormalize, scale, least_sum, tolerance: as of
            :class:`isobit.models.feed_forward.Router`.
    """

    weight: Tensor
    active: int
    bias: Tensor | None = None
    correction: Tensor | None = None
    scores: Literal["softmax", "sigmoid", "softmax-behind", "sparsemixer"] = "softmax"
    groups: int = 1
    active_groups: int = 1
    group_score: Literal["max", "two"] = "max"
    renormalize: bool = True
    scale: float = 1.0
    least_sum: float = 1e-20
    tolerance: float = 0.0

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Routes:
    """Where tokens go.

    Attributes:
        ids: int32 ``[T, active]``: the experts of each token, the one with the best score first.
        weights: float32 ``[T, active]``.
    """

    ids: Tensor
    weights: Tensor


class BoundMixture(Protocol):
    """Experts bound to a kernel."""

    def __call__(self, x: Tensor, routes: Routes, listener: Listener | None = None) -> Tensor:
        """``[T, K]`` to the weighted sum of each token's experts, ``[T, K]`` in the dtype of ``x``.

        Args:
            x: what goes into the experts.
            routes: of its tokens.
            listener: is shown what goes into down, floats ``[tokens, I]`` in any order and any number of pieces.
        """
