"""isobit's own kernels on the CPU, in float32.

Attention in blocks, without a matrix of scores; residual and norm in one pass; linears of one input in one call; and
all layers in one where they can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isobit.formats.caches import CacheFormat
from isobit.kernels import backends
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu import stack as cpu_stack
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.models.config import Activation, LayerSpec, SelfAttention
from isobit.models.experts import ExpertsMLP
from isobit.models.latent import Latent
from isobit.models.layers import Layer
from isobit.models.mlp import GatedMLP
from isobit.models.ops import latent, reference
from isobit.models.ops.limits import lacking
from isobit.models.place import Place
from isobit.models.step import Activations, LayerOps, LayerRow, Readers, Stack, Step

ABLE: frozenset[str] = frozenset()  # of limits.FEATURES


def _accepts(dtype: torch.dtype, place: Place, layers: Sequence[LayerSpec], stored: CacheFormat) -> str | None:
    if place.device != "cpu" or dtype != torch.float32:
        return f"computes in float32 on the CPU, not in {str(dtype).removeprefix('torch.')} on {place.device}"
    widest = max((layer.attention.dim for layer in layers if isinstance(layer.attention, SelfAttention)), default=0)
    if widest > cpu_layer.LARGEST_HEAD:
        return f"has heads of up to {cpu_layer.LARGEST_HEAD} dimensions, not {widest}"
    return lacking(layers, ABLE) or backends.cpu_library_problem()


def _project(linears: Readers, x: Activations) -> list[Tensor]:
    """One call, unless somebody listens to the single linears or one of them runs elsewhere."""
    bound = [linear.bound for linear in linears if isinstance(linear.bound, cpu.CpuLinear) and not linear.observed]
    if len(bound) == len(linears) and isinstance(x, Tensor):
        return cpu.linears(bound, x)
    return reference.project(linears, x)


def _attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
    return cpu_layer.attention(heads, q, k, v, *step.angles(layer), step.memory(layer), step.batch.sequences)


def _stack(layers: nn.ModuleList) -> Stack | str:
    """One call for all layers, unless one of their linears runs elsewhere."""
    parts = [_parts(layer) for layer in layers if isinstance(layer, Layer)]
    attentions = [layer.spec.attention for layer in layers if isinstance(layer, Layer)]
    if len({part.rope for part in attentions}) > 1:
        return "layers rotate queries and keys by different angles"
    if len({part.kept for part in attentions}) > 1:
        return "layers have caches of different shapes"
    found = [part for part in parts if isinstance(part, cpu_stack.LayerParts)]
    if len(found) < len(parts):
        return next(part for part in parts if isinstance(part, str))
    stack = cpu_stack.CpuStack(found)

    def run(x: Tensor, step: Step) -> Tensor:
        assert step.stride is not None
        return stack.run(x, *step.angles(0), step.memory(0), step.batch.sequences, step.stride)

    return run


def _parts(layer: Layer) -> cpu_stack.LayerParts | str:
    """A layer as the CPU kernels run it whole; or why they cannot."""
    attention, mlp, norms = layer.self_attn, layer.mlp, layer.norms
    if isinstance(attention, Latent):
        return f"the latent attention of layer {attention.layer} runs in PyTorch"
    if reason := _differs(layer):
        return f"layer {attention.layer} {reason}"
    assert isinstance(mlp, GatedMLP)
    modules = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    modules = *modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj  # type: ignore[assignment]
    if attention.over_width:
        return f"layer {attention.layer} norms queries and keys over all heads together"
    bound = tuple(part.bound for part in modules if isinstance(part.bound, cpu.CpuLinear))
    if len(bound) < len(modules):
        return f"linears of layer {attention.layer} run elsewhere"
    if "before_attention" not in norms or "before_mlp" not in norms:
        return f"layer {attention.layer} has no norm in front of its attention or MLP"
    before, behind, eps = norms["before_attention"], norms["before_mlp"], norms["before_mlp"].spec.eps
    mixed, out = (norms[role].weight if role in norms else None for role in ("after_attention", "after_mlp"))
    return cpu_stack.LayerParts(bound, before.weight, behind.weight, attention.heads, eps, mixed, out, mlp.activation)


def _differs(layer: Layer) -> str | None:
    """What the stack has no words for in a layer; None where it has them for all."""
    spec, mlp = layer.spec, layer.mlp
    if not all(norm.spec.plain for norm in layer.norms.values()):
        return "has norms that are no RMS norms without bias"
    if isinstance(mlp, ExpertsMLP):
        return "is a mixture of experts"
    if not isinstance(mlp, GatedMLP):
        return "has an MLP without a gate"
    if mlp.activation not in cpu_layer.ACTIVATIONS:
        return f"has the activation {mlp.activation}"
    if spec.parallel:
        return "has attention and MLP side by side"
    if spec.residual_factor != 1:
        return "multiplies what it adds to the residual stream"
    return None


def _norm(x: Tensor, spec: NormSpec, readers: Readers) -> Tensor:
    return cpu_layer.norm(x, spec.weight, spec.eps) if spec.plain else reference.norm(x, spec)


def _add_norm(x: Tensor, delta: Tensor, spec: NormSpec, readers: Readers) -> tuple[Tensor, Tensor]:
    if not spec.plain:
        return reference.add_norm(x, delta, spec)
    return cpu_layer.add_norm(x, delta, spec.weight, spec.eps)


def _gate(gate: Tensor, up: Tensor, activation: Activation, readers: Readers) -> Tensor:
    if activation not in cpu_layer.ACTIVATIONS:
        return reference.gate(gate, up, activation, readers)
    return cpu_layer.gate(gate, up, activation)


def _project_gate(linears: Readers, x: Activations, activation: Activation, readers: Readers) -> Tensor:
    first, second = _project(linears, x)
    return _gate(first, second, activation, readers)


_OPS = LayerOps(
    "cpu", norm=_norm, add=cpu_layer.add, add_norm=_add_norm, gate=_gate, activate=reference.activate,
    project=_project, project_gate=_project_gate, attend=_attend, latent=latent.attend, experts=reference.experts,
    gate_by=reference.gate_by, stack=_stack,
)  # fmt: skip
ROW = LayerRow("cpu", 10, accepts=_accepts, make=lambda place: _OPS)
