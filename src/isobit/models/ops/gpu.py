"""isobit's own kernels on GPUs (``kernels/gpu/layer.py``): lengths are read on the device, and activations are rounded
where they are made, for linears that want them rounded alike."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.formats.caches import AUTO, CacheFormat
from isobit.kernels import rounded
from isobit.kernels.gpu.bind import BoundLinear
from isobit.kernels.gpu.grouped_tiles import unread
from isobit.kernels.gpu.joined import Part, by_turns, whole_of
from isobit.kernels.gpu.latent import GpuLatent
from isobit.kernels.gpu.latent_tiles import unsupported
from isobit.kernels.gpu.layer import ACTIVATIONS, GpuLayer
from isobit.kernels.gpu.layer_tiles import LARGEST_HEAD, POINTERS
from isobit.kernels.gpu.mixture import GpuMixture
from isobit.kernels.gpu.rounding import Preparing
from isobit.kernels.gpu.routing import GpuRouter
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.latent import LatentSpec
from isobit.kernels.norm import NormSpec
from isobit.models.config import LatentAttention, LayerSpec, SelfAttention
from isobit.models.feed_forward import Activation
from isobit.models.linear import Linear
from isobit.models.ops import latent, reference
from isobit.models.ops.limits import FEATURES, lacking
from isobit.models.place import Place
from isobit.models.step import Activations, ExpertParts, LayerOps, LayerRow, Readers, Step

GATES = ACTIVATIONS  # of gates that linears of few tokens apply to their own results
# New tokens of a sequence from which keys and values are made of its latents, by PyTorch, in steps that no graph holds.
# Not measured: it is more than a graph holds, so that a prompt takes one way.
EXPANDED_FROM = 2049
ABLE = frozenset(row.name for row in FEATURES)


def _accepts(dtype: torch.dtype, place: Place, layers: Sequence[LayerSpec], stored: CacheFormat) -> str | None:
    if place.device != "cuda":
        return f"the Triton kernels run on GPUs, not on {place.device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'isobit[triton]'"
    name = str(dtype).removeprefix("torch.")
    if name not in POINTERS:
        return f"computes in {', '.join(POINTERS)}, not in {name}"
    if not stored.element and stored.stored(name) != name:
        return f"reads keys and values in {name} or in 8-bit codes, not in {stored.name}"
    if why := lacking_latents(dtype, place, layers, stored) or _lacking_groups(place, layers, stored):
        return why
    widest = max((layer.attention.dim for layer in layers if isinstance(layer.attention, SelfAttention)), default=0)
    if widest > LARGEST_HEAD:
        return f"has heads of up to {LARGEST_HEAD} dimensions, not {widest}"
    return lacking(layers, ABLE)


def lacking_latents(
    dtype: torch.dtype, place: Place, layers: Sequence[LayerSpec], stored: CacheFormat = AUTO
) -> str | None:
    """Why the kernels do not run the latent attention of some layers, as a row's reason; None where they do."""
    assert place.target is not None
    found = dict.fromkeys(layer.attention for layer in layers if isinstance(layer.attention, LatentAttention))
    name = str(dtype).removeprefix("torch.")
    whys = (unsupported(one.rotated, one.rank, name, place.target, stored.kv) for one in found)
    return next(filter(None, whys), None)


def _lacking_groups(place: Place, layers: Sequence[LayerSpec], stored: CacheFormat) -> str | None:
    """The same of keys and values in a format whose groups share a scale."""
    assert place.target is not None
    widths = dict.fromkeys(layer.attention.dim for layer in layers if isinstance(layer.attention, SelfAttention))
    return next(filter(None, (unread(stored.kv, dim, place.target) for dim in widths)), None)


def make(place: Place) -> LayerOps:
    """The kernels of the GPU at a place, which share the workspace of its linears."""
    assert place.machine is not None and place.workspace is not None
    kernels = GpuLayer(place.machine, place.workspace, alike=place.alike)
    latents = GpuLatent(place.machine, place.workspace, alike=place.alike)
    router = GpuRouter(place.machine, place.workspace, alike=place.alike)

    def norm(x: Tensor, spec: NormSpec, readers: Readers) -> Activations:
        return kernels.norm(x, spec.weight, spec.eps, _rounding(readers, x), bias=spec.bias, centred=spec.centred)

    def add_norm(x: Tensor, delta: Tensor, spec: NormSpec, readers: Readers) -> tuple[Tensor, Activations]:
        rounding = _rounding(readers, x)
        return kernels.add_norm(x, delta, spec.weight, spec.eps, rounding, bias=spec.bias, centred=spec.centred)

    def activate(x: Tensor, activation: Activation, readers: Readers) -> Activations:
        return kernels.gate(x, None, activation, _rounding(readers, x))

    def gate(gate: Tensor, up: Tensor, activation: Activation, readers: Readers) -> Activations:
        return kernels.gate(gate, up, activation, _rounding(readers, gate))

    def project_gate(linears: Readers, x: Activations, activation: Activation, readers: Readers) -> Activations:
        whole = whole_of(_bound(linears))
        if whole is None or not by_turns(linears[0].bound):
            first, second = _project(linears, x)
            return gate(first, second, activation, readers)
        made = whole.gated(x, activation)
        if made is None:
            both = whole(x)
            return gate(both[:, ::2], both[:, 1::2], activation, readers)
        rounding = _rounding(readers, made)
        return made if rounding is None else kernels.round(made, rounding)

    def project_add(linear: Linear, x: Activations, residual: Tensor) -> Tensor:
        (bound,) = _bound((linear,)) or (None,)
        if bound is None:
            return residual + reference.project((linear,), x)[0]
        if isinstance(x, Tensor) and (rounding := _rounding((linear,), x)) is not None:
            x = kernels.round(x, rounding)
        return bound(x, residual)

    def adds(linear: Linear, x: Tensor) -> bool:
        (bound,) = _bound((linear,)) or (None,)
        return isinstance(bound, BoundLinear) and len(x) > 0 and bound.finishes(len(x), x.dtype, "add")

    def attend(heads: AttentionSpec, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        factors, sequences = step.factors(layer), step.batch.sequences
        return kernels.attention(heads, q, k, v, *step.angles(layer), step.memory(layer), sequences, factors)

    def attend_latent(spec: LatentSpec, layer: int, q: Tensor, kv: Tensor, step: Step) -> Tensor:
        if not place.alike and _expands(spec, step):
            return latent.attend(spec, layer, q, kv, step)
        return latents.latent(spec, q, kv, *step.angles(layer), step.memory(layer), step.batch.sequences)

    def reserve(of: AttentionSpec | LatentSpec, sequences: int, most_new: int, most: int) -> None:
        if isinstance(of, LatentSpec):
            latents.reserve_latent(of, sequences, most)
        else:
            kernels.reserve(of, sequences, most_new, most)

    def experts(parts: ExpertParts, x: Tensor, step: Step, residual: Tensor | None) -> Tensor:
        if parts.entry.observed:
            parts.entry(x)
        listener, bound, routing = parts.middle if parts.middle.observed else None, parts.bound, parts.routing
        if isinstance(bound, GpuMixture):
            return bound(x, router.route(routing, x, *bound.wants(x, routing.active)), listener, residual)
        result = bound(x, router.route(routing, x), listener)
        return result if residual is None else residual + result

    return LayerOps(
        "triton", norm=norm, add=torch.add, add_norm=add_norm, gate=gate, activate=activate, project=_project,
        project_gate=project_gate, project_add=project_add, adds=adds, attend=attend, latent=attend_latent,
        experts=experts, gate_by=router.gate_by, reserve=reserve, recordable=True,
    )  # fmt: skip


def _expands(spec: LatentSpec, step: Step) -> bool:
    """Whether PyTorch makes keys and values for the tokens of a step: very many, whose places the host knows."""
    return step.batch.sequences.most_new >= EXPANDED_FROM and bool(step.batch.spans)


def _bound(linears: Readers) -> list[BoundLinear | Part]:
    """The kernels of linears, where all have one that takes rounded activations and nobody listens to them."""
    found = [one.bound for one in linears if isinstance(one.bound, (BoundLinear, Part)) and not one.observed]
    return found if len(found) == len(linears) else []


def _rounding(readers: Readers, x: Tensor) -> Preparing | None:
    """How activations like ``x`` are rounded for all of their readers; None where they are not, or not alike."""
    bound = _bound(readers)
    asked = rounded.shared(bound, len(x), x.dtype) if bound and len(x) else None
    return asked if isinstance(asked, Preparing) else None


def _project(linears: Readers, x: Activations) -> list[Tensor]:
    bound = _bound(linears)
    if not bound:
        return reference.project(linears, x)
    whole = whole_of(bound)
    if whole is None:
        return rounded.project(bound, x)
    result = whole(x)
    return [result[..., part.rows] for part in bound if isinstance(part, Part)]


ROW = LayerRow("triton", 20, accepts=_accepts, make=make)
