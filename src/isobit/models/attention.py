"""The attention of a layer."""

from __future__ import annotations

from torch import Tensor, nn

from isobit.checkpoint.kvscales import KvScales
from isobit.kernels.heads import AttentionSpec
from isobit.models.config import SelfAttention
from isobit.models.linear import Linear
from isobit.models.norms import Norm
from isobit.models.parts import Part
from isobit.models.step import Activations, Step, last


class Attention(Part):
    """Grouped-query attention with rotary embedding.

    Attributes:
        layer: its number.
        heads: what the kernels are told of it.
        kv_scales: the checkpoint's scales for a quantized cache, if it has any; nothing applies them.
    """

    def __init__(
        self,
        spec: SelfAttention,
        layer: int,
        parts: dict[str, nn.Module],
        eps: float,
        kv_scales: KvScales = KvScales(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.layer, self.kv_scales = layer, kv_scales
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (parts[role] for role in "qkvo")
        self.q_norm, self.k_norm = parts.get("q_norm"), parts.get("k_norm")
        q_norm, k_norm = (norm.weight if isinstance(norm, Norm) else None for norm in (self.q_norm, self.k_norm))
        self.heads = AttentionSpec(
            spec.heads, spec.kv_heads, spec.dim, spec.window, q_norm, k_norm, eps, spec.scale, spec.softcap
        )

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The linears that read its input."""
        return self.q_proj, self.k_proj, self.v_proj  # type: ignore[return-value]

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        query, key, value = step.ops.project(self.readers, x)
        return last(self.o_proj, step.ops.attend(self.heads, self.layer, query, key, value, step), step, residual)
