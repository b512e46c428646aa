"""The feed-forward part of a layer, with a gate or without."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.models.feed_forward import GatedMlp, PlainMlp
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

    @property
    def ending(self) -> Linear:
        """The linear whose results it gives."""
        return self.down_proj  # type: ignore[return-value]

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        down = self.down_proj
        gated = step.ops.project_gate(self.readers, x, self.activation, (down,))  # type: ignore[arg-type]
        return last(down, gated, step, residual)


class PlainMLP(Part):
    """``down(activation(up(x)))``."""

    def __init__(self, spec: PlainMlp, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.activation = spec.activation
        self.names = spec.names
        for name, role in zip(spec.names, ("up", "down"), strict=True):
            self.add_module(name, parts[role])

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The linears that read its input."""
        return (self._modules[self.names[0]],)  # type: ignore[return-value]

    @property
    def ending(self) -> Linear:
        """The linear whose results it gives."""
        return self._modules[self.names[1]]  # type: ignore[return-value]

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        down = self._modules[self.names[1]]
        assert isinstance(down, Linear)
        (wide,) = step.ops.project(self.readers, x)
        return last(down, step.ops.activate(wide, self.activation, (down,)), step, residual)


MLP = GatedMLP | PlainMLP


def make_mlp(spec: GatedMlp | PlainMlp, parts: dict[str, nn.Module]) -> MLP:
    """The feed-forward part that a layer's description asks for, of its linears by role."""
    return PlainMLP(spec, parts) if isinstance(spec, PlainMlp) else GatedMLP(spec, parts)
