"""The parts of a decoder layer: linear with a bound kernel, norm, attention, gated MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec
from isobit.kernels import registry
from isobit.models.cache import KVCache
from isobit.models.config import ModelConfig
from isobit.models.rope import rotate


class Linear(nn.Module):
    """``y = x W^T + b`` through the kernel that the registry chose for its formats.

    Attributes:
        weight: ``[N, K]``, quantized or not.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]`` of static activations, else None.
        bias: ``[N]`` in the compute dtype, or None.
        kernel: the registry's row that runs it.
    """

    def __init__(
        self,
        weight: QTensor | Tensor,
        activations: ActSpec | None = None,
        input_scale: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        keep_values: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        spec = weight.spec if isinstance(weight, QTensor) else None
        self.kernel = registry.choose(spec, activations, "cpu")
        self.weight = weight
        self.activations = activations
        self.input_scale = input_scale
        self.bias = None if bias is None else bias.to(dtype)
        self._bound = self.kernel.bind(weight, activations, input_scale, self.bias, keep_values=keep_values)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``, in the dtype of ``x``."""
        return self._bound(x)  # type: ignore[no-any-return]


class RMSNorm(nn.Module):
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
        """Token ids ``[B, T]`` to ``[B, T, hidden]``."""
        if isinstance(self.weight, Tensor):
            return F.embedding(ids, self.weight).to(self.dtype)
        unique, places = torch.unique(ids, return_inverse=True)
        rows = torch.cat([self.weight.dequantize(slice(row, row + 1)) for row in unique.tolist()])
        return rows[places].to(self.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding, optional query-key norms and an optional window."""

    def __init__(self, config: ModelConfig, layer: int, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.windows[layer]
        self.groups = config.num_heads // config.num_kv_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (parts[f"{name}_proj"] for name in "qkvo")
        self.q_norm, self.k_norm = parts.get("q_norm"), parts.get("k_norm")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """``[B, T, hidden]`` to the same; ``mask`` is additive ``[T, S]``, or None where nothing is masked."""
        query, key, value = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=self.groups > 1)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (parts[f"{name}_proj"] for name in ("gate", "up", "down"))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, hidden]`` to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]
