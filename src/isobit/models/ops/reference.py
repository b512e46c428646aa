"""The parts of a layer in plain PyTorch, for every dtype and device: the law for faster rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isobit.formats.caches import CacheFormat
from isobit.kernels import reference_experts
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.models.batch import Span
from isobit.models.config import LayerSpec
from isobit.models.feed_forward import Activation
from isobit.models.norms import normed
from isobit.models.ops import latent
from isobit.models.place import Place
from isobit.models.rope import rotate
from isobit.models.step import Activations, ExpertParts, LayerOps, LayerRow, Readers, Step


def norm(x: Tensor, spec: NormSpec, readers: Readers = ()) -> Tensor:
    """Of the rows of ``x``, in float32."""
    return normed(x, spec)


def add_norm(x: Tensor, delta: Tensor, spec: NormSpec, readers: Readers = ()) -> tuple[Tensor, Tensor]:
    """The sum and its norm."""
    total = x + delta
    return total, normed(total, spec)


def project(linears: Readers, x: Activations) -> list[Tensor]:
    """Each linear's own result."""
    return [linear(x) for linear in linears]


def attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    """One sequence after the other."""
    query, key, value = (part.view(len(part), -1, heads.dim).transpose(0, 1) for part in (q, k, v))
    query, key = (
        _placed(heads, part, by, step.angles(layer)) for part, by in ((query, heads.q_norm), (key, heads.k_norm))
    )
    factors = step.factors(layer)
    if factors is not None:
        query = (query * factors[:, None]).to(query.dtype)
    held = step.memory(layer)
    held.store(step.batch.sequences.slots, key.transpose(0, 1), value.transpose(0, 1))
    mixed = torch.empty_like(q)
    for span in step.batch.spans:
        keys, values = held.read(span.blocks, span.length, q.dtype)
        mask = _mask(step, span, heads)
        asked = query[:, span.begin : span.end].to(keys.dtype)
        found = _mixed(heads, asked, keys, values, mask if mask is None else mask.to(keys.dtype))
        mixed[span.begin : span.end] = found.transpose(0, 1).flatten(1).to(q.dtype)
    return mixed


def _placed(heads: AttentionSpec, x: Tensor, weight: Tensor | None, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys ``[heads, T, dim]``, rotated and, in front of that or behind it, normed."""
    spec = None if weight is None else NormSpec(weight, heads.eps)
    if spec is not None and not heads.norm_behind:
        x = normed(x, spec)
    if heads.rotated:
        x = rotate(x, *angles, interleaved=heads.interleaved)
    return normed(x, spec) if spec is not None and heads.norm_behind else x


def _mask(step: Step, span: Span, heads: AttentionSpec) -> Tensor | None:
    key = span.past, span.length, heads.window, heads.chunk
    if key not in step.masks:
        like = step.angles(0)[0]
        step.masks[key] = attention_mask(
            span.past, span.length - span.past, heads.window, like.dtype, like.device, heads.chunk
        )
    return step.masks[key]


def attention_mask(
    begin: int,
    tokens: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device | None = None,
    chunk: int | None = None,
) -> Tensor | None:
    """What tokens ``begin .. begin + tokens - 1`` must not see: additive ``[tokens, begin + tokens]``, or None.

    A token sees itself and what came before it; with a window, only the latest ``window`` tokens, itself included; with
    chunks, only those of its own.
    """
    end = begin + tokens
    if tokens == 1 and (window is None or end <= window) and (chunk is None or end <= chunk):
        return None
    query = torch.arange(begin, end, device=device)[:, None]
    key = torch.arange(end, device=device)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    if chunk is not None:
        hidden |= key < query - query % chunk
    return torch.zeros(tokens, end, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _mixed(heads: AttentionSpec, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one sequence: query ``[heads, T, dim]``, keys and values ``[kv_heads, length, dim]``."""
    if heads.softcap is None and heads.sinks is None:
        return F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=heads.scale,
            enable_gqa=heads.heads > heads.kv_heads,
        )[0]  # fmt: skip
    # PyTorch's own has neither caps nor sinks; the softmax is in float32, as transformers has it.
    key, value = (part.repeat_interleave(heads.heads // heads.kv_heads, dim=0) for part in (key, value))
    scores = query @ key.transpose(1, 2) * heads.factor
    if heads.softcap is not None:
        scores = torch.tanh(scores / heads.softcap) * heads.softcap
    scores = scores if mask is None else scores + mask
    if heads.sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
    sinks = heads.sinks[:, None, None].expand(*scores.shape[:2], 1)
    weights = torch.softmax(torch.cat((scores.float(), sinks), dim=-1), dim=-1)[..., :-1]
    return weights.to(value.dtype) @ value


def gate(gate: Tensor, up: Tensor, activation: Activation, readers: Readers) -> Tensor:
    """``activation(gate) * up``."""
    return reference_experts.ACTIVATIONS[activation](gate) * up


def activate(x: Tensor, activation: Activation, readers: Readers = ()) -> Tensor:
    """``activation(x)``."""
    return reference_experts.ACTIVATIONS[activation](x)


def project_gate(linears: Readers, x: Activations, activation: Activation, readers: Readers) -> Tensor:
    """The gate of what two linears give."""
    first, second = project(linears, x)
    return gate(first, second, activation, readers)


def experts(parts: ExpertParts, x: Tensor, step: Step, residual: Tensor | None) -> Tensor:
    """Chosen in float32; added up in the order in which they were chosen, and then to a residual."""
    if parts.entry.observed:
        parts.entry(x)
    listener = parts.middle if parts.middle.observed else None
    result = parts.bound(x, reference_experts.route(parts.routing, x), listener)
    return result if residual is None else residual + result


def gate_by(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """``y * sigmoid(x . weight)``, the gate in float32."""
    return (y.float() * torch.sigmoid(x.float() @ weight)[:, None]).to(y.dtype)


def _accepts(dtype: torch.dtype, place: Place, layers: Sequence[LayerSpec], stored: CacheFormat) -> str | None:
    if stored.group and place.device != "cpu":
        return f"runs a cache in {stored.name} on the CPU alone"
    return "the order of PyTorch's sums depends on how many tokens come at once" if place.alike else None


_OPS = LayerOps(
    "reference", norm=norm, add=torch.add, add_norm=add_norm, gate=gate, activate=activate, project=project,
    project_gate=project_gate, attend=attend, latent=latent.attend, experts=experts, gate_by=gate_by,
)  # fmt: skip
ROW = LayerRow("reference", 0, accepts=_accepts, make=lambda place: _OPS)
