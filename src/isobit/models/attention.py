"""The attention of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isobit.checkpoint.kvscales import KvScales
from isobit.kernels.heads import AttentionSpec
from isobit.models.config import SelfAttention
from isobit.models.linear import Linear
from isobit.models.norms import Norm
from isobit.models.parts import Part, Vector
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
        self.q_norm, self.k_norm, self.sinks = parts.get("q_norm"), parts.get("k_norm"), parts.get("sinks")
        self.over_width = spec.qk_norm in ("width", "heads")
        q_norm, k_norm = _over_heads(spec, parts)
        self.heads = AttentionSpec(
            spec.heads, spec.kv_heads, spec.dim, spec.window, q_norm, k_norm, eps, spec.scale, spec.softcap,
            rope_dims=spec.rotated, interleaved=spec.interleaved,
            norm_behind=spec.qk_norm in ("head-behind", "l2"), chunk=spec.chunk, scaled=spec.query_scale is not None,
            sinks=self.sinks.weight if isinstance(self.sinks, Vector) else None,
        )  # fmt: skip

    @property
    def readers(self) -> tuple[Linear, ...]:
        """The linears that read its input."""
        return self.q_proj, self.k_proj, self.v_proj  # type: ignore[return-value]

    @property
    def ending(self) -> Linear:
        """The linear whose results it gives."""
        return self.o_proj  # type: ignore[return-value]

    def forward(self, x: Activations, step: Step, residual: Tensor | None = None) -> Tensor:
        """``[T, hidden]`` to the same; added to a residual, if one is given."""
        query, key, value = step.ops.project(self.readers, x)
        if self.over_width:
            query, key = self._normed(self.q_norm, query, step), self._normed(self.k_norm, key, step)
        return last(self.o_proj, step.ops.attend(self.heads, self.layer, query, key, value, step), step, residual)

    @staticmethod
    def _normed(norm: nn.Module | None, x: Tensor, step: Step) -> Tensor:
        """Queries or keys ``[T, heads * dim]``, normed over all heads together, or each by weights of its own."""
        assert isinstance(norm, Norm)
        normed = step.ops.norm(x.contiguous(), norm.spec, ())
        assert isinstance(normed, Tensor)
        return normed


def _over_heads(spec: SelfAttention, parts: dict[str, nn.Module]) -> tuple[Tensor | None, Tensor | None]:
    """The weights of the norms over each head of queries and keys; those of ``l2`` are ones."""
    if spec.qk_norm == "l2":
        device = next((part.weight.device for part in parts.values() if isinstance(part, Norm)), None)
        ones = torch.ones(spec.dim, device=device)
        return ones, ones
    if spec.qk_norm in ("width", "heads"):
        return None, None
    q_norm, k_norm = (parts.get(role) for role in ("q_norm", "k_norm"))
    return q_norm.weight if isinstance(q_norm, Norm) else None, k_norm.weight if isinstance(k_norm, Norm) else None
