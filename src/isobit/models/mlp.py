"""The feed-forward part of a layer."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.models.config import GatedMlp
from isobit.models.linear import Linear
from isobit.models.parts import Part
from isobit.models.step import Activations, Step, last


class GatedMLP(Part):
    """``down(activation(gate(x)) * up(x))``."""

    def __init__(self, spec: GatedMlp, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gate_proj, self.up_proj, self.down_proj = (parts[role] for role in ("gate", "up", "down"))

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The linears that read its input."""
        return self.gate_proj, self.up_proj  # type: ignore[return-value]

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        down = self.down_proj
        gated = step.ops.project_gate(self.readers, x, self.activation, (down,))  # type: ignore[arg-type]
        return last(down, gated, step, residual)
