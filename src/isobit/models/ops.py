"""What computes the parts of a decoder layer beside its linears: rows, and the one place where the choice is made.

``reference`` is plain PyTorch, for every dtype and device. ``cpu`` is isobit's own, for float32 on the CPU: blockwise
attention without a matrix of scores, residual and norm in one pass, linears of one input in one call. Environment
variable ``ISOBIT_KERNEL``, which forces a row of linear kernels by name, decides here too where a row has that name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.errors import Unsupported
from isobit.kernels import backends
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu import stack as cpu_stack
from isobit.kernels.heads import AttentionSpec
from isobit.models.batch import Span
from isobit.models.config import Activation, LayerSpec
from isobit.models.layers import Layer
from isobit.models.linear import Linear
from isobit.models.rope import rotate
from isobit.models.step import LayerOps, Stack, Step

# ---------------------------------------------------------------------- reference


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


def _add_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + delta
    return total, _norm(total, weight, eps)


def _project(linears: Sequence[Linear], x: Tensor) -> list[Tensor]:
    return [linear(x) for linear in linears]


def _attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    query, key, value = (part.view(len(part), -1, heads.dim).transpose(0, 1) for part in (q, k, v))
    if heads.q_norm is not None and heads.k_norm is not None:
        query, key = _norm(query, heads.q_norm, heads.eps), _norm(key, heads.k_norm, heads.eps)
    cos, sin = step.angles(layer)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    held, slots, block = step.memory(layer), step.batch.sequences.slots, step.batch.sequences.block
    for memory, new in zip(held, (key, value), strict=True):
        memory[slots // block, :, slots % block] = new.transpose(0, 1)
    mixed = torch.empty_like(q)
    for span in step.batch.spans:
        keys, values = (_held(memory, span) for memory in held)
        mask = _mask(step, span, heads.window)
        found = _mixed(heads, query[:, span.begin : span.end], keys, values, mask)
        mixed[span.begin : span.end] = found.transpose(0, 1).flatten(1)
    return mixed


def _held(memory: Tensor, span: Span) -> Tensor:
    """What a cache holds of a sequence: ``[kv_heads, length, dim]``."""
    if len(span.blocks) == 1:
        return memory[span.blocks[0], :, : span.length]
    return memory[list(span.blocks)].transpose(0, 1).flatten(1, 2)[:, : span.length]


def _mask(step: Step, span: Span, window: int | None) -> Tensor | None:
    key = span.past, span.length, window
    if key not in step.masks:
        like = step.angles(0)[0]
        step.masks[key] = attention_mask(span.past, span.length - span.past, window, like.dtype, like.device)
    return step.masks[key]


def attention_mask(
    begin: int, tokens: int, window: int | None, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor | None:
    """What tokens ``begin .. begin + tokens - 1`` must not see: additive ``[tokens, begin + tokens]``, or None.

    A token sees itself and what came before it; with a window, only the latest ``window`` tokens, itself included.
    """
    end = begin + tokens
    if tokens == 1 and (window is None or end <= window):
        return None
    query = torch.arange(begin, end, device=device)[:, None]
    key = torch.arange(end, device=device)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(tokens, end, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _mixed(heads: AttentionSpec, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one sequence: query ``[heads, T, dim]``, keys and values ``[kv_heads, length, dim]``."""
    if heads.softcap is None:
        return F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=heads.scale,
            enable_gqa=heads.heads > heads.kv_heads,
        )[0]  # fmt: skip
    # PyTorch's own does not cap scores; the softmax is in float32, as transformers has it.
    key, value = (part.repeat_interleave(heads.heads // heads.kv_heads, dim=0) for part in (key, value))
    scores = torch.tanh(query @ key.transpose(1, 2) * heads.factor / heads.softcap) * heads.softcap
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


def _cpu_attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    return cpu_layer.attention(heads, q, k, v, *step.angles(layer), *step.memory(layer), step.batch.sequences)


def _cpu_stack(layers: nn.ModuleList) -> Stack | str:
    """One call for all layers, unless one of their linears runs elsewhere."""
    parts = [_cpu_parts(layer) for layer in layers if isinstance(layer, Layer)]
    attentions = [layer.spec.attention for layer in layers if isinstance(layer, Layer)]
    if len({part.rope for part in attentions}) > 1:
        return "layers rotate queries and keys by different angles"
    if len({(part.kv_heads, part.dim) for part in attentions}) > 1:
        return "layers have caches of different shapes"
    found = [part for part in parts if isinstance(part, cpu_stack.LayerParts)]
    if len(found) < len(parts):
        return next(part for part in parts if isinstance(part, str))
    stack = cpu_stack.CpuStack(found)

    def run(x: Tensor, step: Step) -> Tensor:
        assert step.stride is not None
        return stack.run(x, *step.angles(0), *step.memory(0), step.batch.sequences, step.stride)

    return run


def _cpu_parts(layer: Layer) -> cpu_stack.LayerParts | str:
    """A layer as the CPU kernels run it whole; or why they cannot."""
    attention, mlp, norms = layer.self_attn, layer.mlp, layer.norms
    modules = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    modules = *modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj  # type: ignore[assignment]
    bound = tuple(part.bound for part in modules if isinstance(part.bound, cpu.CpuLinear))
    if len(bound) < len(modules):
        return f"linears of layer {attention.layer} run elsewhere"
    if "before_attention" not in norms or "before_mlp" not in norms:
        return f"layer {attention.layer} has no norm in front of its attention or MLP"
    before, behind, eps = norms["before_attention"], norms["before_mlp"], norms["before_mlp"].eps
    mixed, out = (norms[role].weight if role in norms else None for role in ("after_attention", "after_mlp"))
    return cpu_stack.LayerParts(bound, before.weight, behind.weight, attention.heads, eps, mixed, out, mlp.activation)


LAYER_OPS: tuple[LayerOps, ...] = (
    LayerOps(
        "cpu",
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
