"""Latent attention of a layer (MLA): what is cached of a token is one short vector that all heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.kernels.latent import LatentSpec
from isobit.models.config import LatentAttention
from isobit.models.linear import Linear
from isobit.models.norms import Norm
from isobit.models.parts import Part
from isobit.models.step import Activations, Step, last


class Absorbed(Part):
    """A matrix that attention multiplies by itself, as plain numbers, and that no linear kernel holds.

    Attributes:
        weight: ``[outputs, inputs]`` in the activations' dtype, or in bfloat16 where that holds the same numbers.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


def narrow(numbers: Tensor) -> Tensor:
    """Float32 numbers in bfloat16, where that holds every one of them: half the bytes."""
    half = numbers.to(torch.bfloat16)
    return half if torch.equal(half.to(numbers.dtype), numbers) else numbers


class Latent(Part):
    """Latent attention with rotary embedding on a part of queries and keys.

    Attributes:
        layer: its number.
        spec: what the kernels are told of it.
    """

    def __init__(self, config: LatentAttention, layer: int, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layer = layer
        self.q_proj, self.q_a_proj, self.q_b_proj = (parts.get(role) for role in ("q", "q_a", "q_b"))
        self.q_a_layernorm = parts.get("q_a_norm")
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = parts["kv_a"], parts["kv_a_norm"]
        self.kv_b_proj, self.o_proj = parts["kv_b"], parts["o"]
        norm, up = self.kv_a_layernorm, self.kv_b_proj
        assert isinstance(norm, Norm) and isinstance(up, Absorbed)
        self.spec = LatentSpec(
            config.heads, config.plain, config.rotated, config.value, config.scale, config.rope.interleaved,
            norm.spec, up.weight.view(config.heads, config.plain + config.value, config.rank),
        )  # fmt: skip

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The linears that read its input."""
        return self.q_proj or self.q_a_proj, self.kv_a_proj_with_mqa  # type: ignore[return-value]

    @property
    def ending(self) -> Linear:
        """The linear whose results it gives."""
        return self.o_proj  # type: ignore[return-value]

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        ops = step.ops
        query, kv = ops.project(self.readers, x)
        if self.q_b_proj is not None:
            norm = self.q_a_layernorm
            assert isinstance(norm, Norm) and isinstance(self.q_b_proj, Linear)
            readers = () if self.q_b_proj.observed else (self.q_b_proj,)
            (query,) = ops.project((self.q_b_proj,), ops.norm(query.contiguous(), norm.spec, readers))
        return last(self.o_proj, ops.latent(self.spec, self.layer, query, kv, step), step, residual)
