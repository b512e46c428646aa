"""What computes the parts of a decoder layer beside its linears: rows, and the one place where the choice is made.

``reference`` is plain PyTorch, for every dtype and device. ``cpu`` is isobit's own, for float32 on the CPU: blockwise
attention without a matrix of scores, residual and norm in one pass, linears of one input in one call. Environment
variable ``ISOBIT_KERNEL``, which forces a row of linear kernels by name, decides here too where a row has that name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.errors import Unsupported
from isobit.kernels import backends
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu import stack as cpu_stack
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences
from isobit.models.config import Activation, LayerSpec
from isobit.models.layers import Layer
from isobit.models.linear import Linear
from isobit.models.rope import rotate
from isobit.models.step import LayerOps, Step

# ---------------------------------------------------------------------- reference


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


def _add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + delta
    return total, _norm(total, weight, eps)


def _project(linears: Sequence[Linear], x: Tensor) -> list[Tensor]:
    return [linear(x) for linear in linears]


def _attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    query, key, value = (part.view(*part.shape[:-1], -1, heads.dim).transpose(1, 2) for part in (q, k, v))
    if heads.q_norm is not None and heads.k_norm is not None:
        query, key = _norm(query, heads.q_norm, heads.eps), _norm(key, heads.k_norm, heads.eps)
    query, key = rotate(query, step.cos, step.sin), rotate(key, step.cos, step.sin)
    if step.cache is not None:
        key, value = step.cache.append(layer, key, value)
    mask = step.masks[heads.window]
    if heads.softcap is not None:
        return _capped(heads, query, key, value, mask).transpose(1, 2).flatten(2)
    gqa = heads.heads > heads.kv_heads
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=heads.scale, enable_gqa=gqa)
    return mixed.transpose(1, 2).flatten(2)


def _capped(heads: AttentionSpec, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with capped scores, which PyTorch's own does not have; the softmax is in float32."""
    assert heads.softcap is not None
    key, value = (part.repeat_interleave(heads.heads // heads.kv_heads, dim=1) for part in (key, value))
    scores = torch.tanh(query @ key.transpose(2, 3) * heads.factor / heads.softcap) * heads.softcap
    scores = scores if mask is None else scores + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def _gate(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    return _ACTIVATIONS[activation](gate) * up


# ---------------------------------------------------------------------- cpu


def _cpu_accepts(dtype: torch.dtype, device: str, layers: Sequence[LayerSpec]) -> str | None:
    if device != "cpu" or dtype != torch.float32:
        return f"computes in float32 on the CPU, not in {str(dtype).removeprefix('torch.')} on {device}"
    widest = max((layer.attention.dim for layer in layers), default=0)
    if widest > cpu_layer.LARGEST_HEAD:
        return f"has heads of up to {cpu_layer.LARGEST_HEAD} dimensions, not {widest}"
    return backends.cpu_library_problem()


def _cpu_project(linears: Sequence[Linear], x: Tensor) -> list[Tensor]:
    """One call, unless somebody listens to the single linears or one of them runs elsewhere."""
    bound = [linear.bound for linear in linears if isinstance(linear.bound, cpu.CpuLinear) and not linear.observed]
    if len(bound) == len(linears):
        return cpu.linears(bound, x)
    return _project(linears, x)


@lru_cache(maxsize=4)
def _sequences(batch: int, tokens: int, past: int, capacity: int) -> Sequences:
    """Those of a cache that has ``past`` tokens of each of ``batch`` sequences, and room for ``capacity``."""
    end, at = past + tokens, torch.arange(past, past + tokens).repeat(batch)
    starts = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32)
    table = torch.arange(batch, dtype=torch.int32)[:, None]
    slots = torch.arange(batch).repeat_interleave(tokens) * capacity + at
    lengths = torch.full((batch,), end, dtype=torch.int32)
    return Sequences(starts, lengths, table, slots, capacity, tokens, end)


def _rotary(step: Step, batch: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of each token of a batch."""
    return (step.cos, step.sin) if batch == 1 else (step.cos.repeat(batch, 1), step.sin.repeat(batch, 1))


def _cpu_attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    batch, tokens = q.shape[:2]
    if step.cache is not None:
        keys, values = step.cache.room(layer, tokens)
    else:
        keys, values = (torch.empty(batch, heads.kv_heads, tokens, heads.dim) for _ in range(2))
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    sequences = _sequences(batch, tokens, step.past, keys.shape[2])
    mixed = cpu_layer.attention(heads, q, k, v, *_rotary(step, batch), keys, values, sequences)
    return mixed.view(batch, tokens, -1)


def _cpu_stack(layers: nn.ModuleList) -> Callable[[Tensor, Step], Tensor] | None:
    """One call for all layers, unless one of their linears runs elsewhere or their caches differ."""
    parts = []
    for layer in layers:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        modules = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        modules = *modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj  # type: ignore[assignment]
        bound = tuple(part.bound for part in modules if isinstance(part.bound, cpu.CpuLinear))
        norms = {role: norm.weight for role, norm in layer.norms.items()}
        if len(bound) < len(modules) or not {"before_attention", "before_mlp"} <= norms.keys():
            return None
        before, behind = norms["before_attention"], norms["before_mlp"]
        after = norms.get("after_attention"), norms.get("after_mlp")
        eps = layer.norms["before_attention"].eps
        parts.append(cpu_stack.LayerParts(bound, before, behind, attention.heads, eps, *after, mlp.activation))
    if len({(part.heads.kv_heads, part.heads.dim) for part in parts}) > 1:
        return None
    stack, heads = cpu_stack.CpuStack(parts), parts[0].heads

    def run(x: Tensor, step: Step) -> Tensor:
        batch, tokens, stride = x.shape[0], x.shape[1], 0
        if step.cache is not None:
            keys, values = step.cache.room_of_all(tokens)
            stride = keys.stride(0)
        else:
            keys, values = (torch.empty(batch, heads.kv_heads, tokens, heads.dim) for _ in range(2))
        sequences = _sequences(batch, tokens, step.past, keys.shape[-2])
        flat = stack.run(x.flatten(0, 1), *_rotary(step, batch), keys, values, sequences, stride)
        return flat.view(batch, tokens, -1)

    return run


LAYER_OPS: tuple[LayerOps, ...] = (
    LayerOps(
        "cpu",
        needs_masks=False,
        accepts=_cpu_accepts,
        priority=10,
        norm=cpu_layer.norm,
        add=cpu_layer.add,
        add_norm=cpu_layer.add_norm,
        gate=cpu_layer.gate,
        project=_cpu_project,
        attend=_cpu_attend,
        stack=_cpu_stack,
    ),
    LayerOps(
        "reference",
        needs_masks=True,
        accepts=lambda dtype, device, layers: None,
        priority=0,
        norm=_norm,
        add=torch.add,
        add_norm=_add_norm,
        gate=_gate,
        project=_project,
        attend=_attend,
    ),
)


def choose(
    dtype: torch.dtype, device: str, layers: Sequence[LayerSpec], *, rows: tuple[LayerOps, ...] = LAYER_OPS
) -> LayerOps:
    """The row for a model.

    Args:
        dtype: of the activations.
        device: where they are.
        layers: what they are.
        rows: to choose from.

    Raises:
        Unsupported: the row that ISOBIT_KERNEL forces cannot run it; has the reason.
    """
    forced = os.environ.get("ISOBIT_KERNEL")
    if forced in {row.name for row in rows}:
        rows = tuple(row for row in rows if row.name == forced)
    reasons = []
    for row in sorted(rows, key=lambda row: -row.priority):
        reason = row.accepts(dtype, device, layers)
        if reason is None:
            return row
        reasons.append(f"{row.name}: {reason}")
    raise Unsupported(f"layers in {str(dtype).removeprefix('torch.')} on {device}", reasons)
