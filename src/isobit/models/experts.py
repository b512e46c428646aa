"""A mixture of experts as the feed-forward part of a layer."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.kernels.backends import Bound
from isobit.kernels.grouped import BoundMixture, Routing
from isobit.models.linear import Linear
from isobit.models.mlp import GatedMLP
from isobit.models.parts import Part
from isobit.models.step import Activations, Step


class Tap(Part):
    """Lets through what it is given: there for those who listen."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``."""
        return x


class ExpertsMLP(Part):
    """What a token's experts give, weighted and added up, and what the shared one gives, if there is one.

    Attributes:
        routing: how experts are chosen.
        bound: what runs them.
        shared: the expert of all tokens, or None.
        shared_gate: float32 ``[hidden]``, of which the shared one's result is multiplied by the sigmoid; or None.
        entry, middle: shown what goes into the experts, and into their down, while somebody listens to them.
    """

    def __init__(
        self, routing: Routing, bound: Bound, shared: GatedMLP | None, shared_gate: Tensor | None, shared_name: str
    ) -> None:
        super().__init__()
        self.routing, self.shared_gate = routing, shared_gate
        self.kernel, self.reasons = bound.kernel, bound.reasons
        self.bound: BoundMixture = bound.run
        self.entry, self.middle = Tap(), Tap()
        if shared is not None:
            self.add_module(shared_name, shared)
        self.__dict__["shared"] = shared

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The linears that would read its input rounded: none, since the router reads it as it is."""
        return ()

    @property
    def ending(self) -> None:
        """No linear's results are what it gives."""
        return None

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        assert isinstance(x, Tensor)
        shared: nn.Module | None = self.__dict__["shared"]
        if shared is None:
            return step.ops.experts(self, x, step, residual)
        result = step.ops.experts(self, x, step, None)
        beside = shared(x, step)
        if self.shared_gate is not None:
            beside = step.ops.gate_by(x, self.shared_gate, beside)
        result = step.ops.add(result, beside)
        return result if residual is None else step.ops.add(residual, result)
