"""isobit's own kernels on the CPU, in float32.

Attention in blocks, without a matrix of scores; residual and norm in one pass; linears of one input in one call; and
all layers in one where they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isobit.formats.caches import CacheFormat
from isobit.kernels import backends
from isobit.kernels.cpu import latent as cpu_latent
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.latent import LatentSpec
from isobit.kernels.norm import NormSpec
from isobit.models.config import LatentAttention, LayerSpec, SelfAttention
from isobit.models.feed_forward import Activation
from isobit.models.ops import latent, reference
from isobit.models.ops.cpu_stack import latent_of, router_of, stack
from isobit.models.ops.limits import lacking
from isobit.models.place import Place
from isobit.models.step import Activations, ExpertParts, LayerOps, LayerRow, Readers, Step

ABLE = frozenset(  # of limits.FEATURES
    ("no-rope", "partial-rope", "interleaved", "norm-behind", "sinks", "chunks", "query-scale")
)


def _accepts(dtype: torch.dtype, place: Place, layers: Sequence[LayerSpec], stored: CacheFormat) -> str | None:
    if place.device != "cpu" or dtype != torch.float32:
        return f"computes in float32 on the CPU, not in {str(dtype).removeprefix('torch.')} on {place.device}"
    widest = max((layer.attention.dim for layer in layers if isinstance(layer.attention, SelfAttention)), default=0)
    if widest > cpu_layer.LARGEST_HEAD:
        return f"has heads of up to {cpu_layer.LARGEST_HEAD} dimensions, not {widest}"
    if place.alike and (beyond := _beyond(layers)):
        return f"{beyond}, and runs that in PyTorch, whose sums depend on how many tokens come at once"
    return lacking(layers, ABLE) or backends.cpu_library_problem()


def _beyond(layers: Sequence[LayerSpec]) -> str | None:
    """Why latent attention of some layers is none of the kernels', or None."""
    found = [layer.attention for layer in layers if isinstance(layer.attention, LatentAttention)]
    return next((why for one in found if (why := cpu_latent.unsupported(one.plain, one.rotated, one.rank))), None)


def _latent(spec: LatentSpec, layer: int, q: Tensor, kv: Tensor, step: Step) -> Tensor:
    """On the kernels, or in PyTorch where they do not have its sizes."""
    bound = latent_of(spec)
    if bound is None:
        return latent.attend(spec, layer, q, kv, step)
    return bound(q.contiguous(), kv.contiguous(), *step.angles(layer), step.memory(layer), step.batch.sequences)


def _project(linears: Readers, x: Activations) -> list[Tensor]:
    """One call, unless somebody listens to the single linears or one of them runs elsewhere."""
    bound = [linear.bound for linear in linears if isinstance(linear.bound, cpu.CpuLinear) and not linear.observed]
    if len(bound) == len(linears) and isinstance(x, Tensor):
        return cpu.linears(bound, x)
    return reference.project(linears, x)


def _attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    memory, sequences, factors = step.memory(layer), step.batch.sequences, step.factors(layer)
    return cpu_layer.attention(heads, q, k, v, *step.angles(layer), memory, sequences, factors)


def _norm(x: Tensor, spec: NormSpec, readers: Readers) -> Tensor:
    return cpu_layer.norm(x, spec) if spec.weight.dim() == 1 else _norm_of_heads(x, spec)


def _norm_of_heads(x: Tensor, spec: NormSpec) -> Tensor:
    """Each head ``[dim]`` of ``[T, heads * dim]`` normed, by weights of its own."""
    heads, dim = spec.weight.shape
    plain = cpu_layer.norm(x.view(-1, dim), replace(spec, weight=torch.ones(dim)))
    return (plain.view(-1, heads, dim) * spec.weight).flatten(1)


def _add_norm(x: Tensor, delta: Tensor, spec: NormSpec, readers: Readers) -> tuple[Tensor, Tensor]:
    return cpu_layer.add_norm(x, delta, spec)


def _gate(gate: Tensor, up: Tensor, activation: Activation, readers: Readers) -> Tensor:
    return cpu_layer.gate(gate, up, activation)


def _activate(x: Tensor, activation: Activation, readers: Readers) -> Tensor:
    return cpu_layer.activate(x, activation)


def _experts(parts: ExpertParts, x: Tensor, step: Step, residual: Tensor | None) -> Tensor:
    """Routed by the kernels; experts that run elsewhere are given the same routes."""
    if parts.entry.observed:
        parts.entry(x)
    listener = parts.middle if parts.middle.observed else None
    result = parts.bound(x, router_of(parts.routing)(x), listener)
    return result if residual is None else cpu_layer.add(residual, result)


def _project_gate(linears: Readers, x: Activations, activation: Activation, readers: Readers) -> Tensor:
    first, second = _project(linears, x)
    return _gate(first, second, activation, readers)


_OPS = LayerOps(
    "cpu", norm=_norm, add=cpu_layer.add, add_norm=_add_norm, gate=_gate, activate=_activate,
    project=_project, project_gate=_project_gate, attend=_attend, latent=_latent, experts=_experts,
    gate_by=cpu_layer.gate_by, stack=stack,
)  # fmt: skip
ROW = LayerRow("cpu", 10, accepts=_accepts, make=lambda place: _OPS)
