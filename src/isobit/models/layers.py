"""A decoder layer and its parts: norm, embedding, attention, gated MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.checkpoint.kvscales import KvScales
from isobit.errors import UsageError
from isobit.formats.qtensor import QTensor
from isobit.kernels.heads import AttentionSpec
from isobit.models.config import ModelConfig
from isobit.models.parts import Part
from isobit.models.step import Step


class RMSNorm(Part):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight.float(), eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x``."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class Embedding(nn.Module):
    """Rows of a table, which may be quantized; also the output projection where it is tied."""

    def __init__(self, weight: QTensor | Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = weight, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``[B, T]`` to ``[B, T, hidden]``.

        Raises:
            UsageError: an id beyond the vocabulary (on GPUs, a plain table is not checked).
        """
        if isinstance(self.weight, Tensor):
            try:
                return F.embedding(ids, self.weight).to(self.dtype)
            except IndexError:
                raise self._beyond() from None
        unique, places = torch.unique(ids, return_inverse=True)  # a pause for the host on a GPU
        if unique.numel() and not 0 <= int(unique[0]) <= int(unique[-1]) < self.weight.shape[0]:
            raise self._beyond()
        rows = torch.cat([self.weight.dequantize(slice(row, row + 1)) for row in unique.tolist()])
        return rows[places].to(self.dtype)

    def _beyond(self) -> UsageError:
        return UsageError(f"there are token ids beyond the vocabulary of {self.weight.shape[0]}")


class Attention(Part):
    """Grouped-query attention with rotary embedding, optional query-key norms and an optional window.

    Attributes:
        layer: its number.
        kv_scales: the checkpoint's scales for a quantized cache, if it has any; nothing applies them yet.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        parts: dict[str, nn.Module],
        kv_scales: KvScales = KvScales(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.layer, self.kv_scales = layer, kv_scales
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (parts[f"{name}_proj"] for name in "qkvo")
        self.q_norm, self.k_norm = parts.get("q_norm"), parts.get("k_norm")
        q_norm, k_norm = (norm.weight if isinstance(norm, RMSNorm) else None for norm in (self.q_norm, self.k_norm))
        sizes = config.num_heads, config.num_kv_heads, config.head_dim, config.windows[layer]
        self.heads = AttentionSpec(*sizes, q_norm=q_norm, k_norm=k_norm, eps=config.norm_eps)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """``[B, T, hidden]`` to the same."""
        query, key, value = step.ops.project((self.q_proj, self.k_proj, self.v_proj), x)  # type: ignore[arg-type]
        return self.o_proj(step.ops.attend(self.heads, self.layer, query, key, value, step))  # type: ignore[no-any-return]


class GatedMLP(Part):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (parts[f"{name}_proj"] for name in ("gate", "up", "down"))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """``[B, T, hidden]`` to the same."""
        gate, up = step.ops.project((self.gate_proj, self.up_proj), x)  # type: ignore[arg-type]
        return self.down_proj(step.ops.gate(gate, up))  # type: ignore[no-any-return]


class Layer(Part):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, attention: Attention, mlp: GatedMLP, before_attention: RMSNorm, before_mlp: RMSNorm) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm, self.post_attention_layernorm = before_attention, before_mlp

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """``[B, T, hidden]`` to the same."""
        before, behind, ops = self.input_layernorm, self.post_attention_layernorm, step.ops
        mixed = self.self_attn(ops.norm(x, before.weight, before.eps), step)
        x, normed = ops.add_norm(x, mixed, behind.weight, behind.eps)
        return ops.add(x, self.mlp(normed, step))
