"""All layers of a decoder in one call of the CPU kernels, where all that they are made of runs there."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from isobit.kernels.cpu import stack as cpu_stack
from isobit.kernels.cpu.experts import CpuMixture, CpuRouter
from isobit.kernels.cpu.latent import CpuLatent, unsupported
from isobit.kernels.cpu.layer import ACTIVATIONS
from isobit.kernels.cpu.linear import CpuLinear
from isobit.kernels.grouped import Routing
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.latent import LatentSpec
from isobit.kernels.norm import NormSpec
from isobit.models.attention import Attention
from isobit.models.experts import ExpertsMLP
from isobit.models.latent import Latent
from isobit.models.layers import Layer
from isobit.models.linear import Linear
from isobit.models.mlp import MLP, GatedMLP
from isobit.models.norms import Norm
from isobit.models.step import Stack, Step

_ROUTERS: WeakKeyDictionary[Routing, CpuRouter] = WeakKeyDictionary()
_LATENTS: WeakKeyDictionary[LatentSpec, CpuLatent] = WeakKeyDictionary()


class _Elsewhere(Exception):
    """A part of a layer that is not of the one call; says which, and where it is."""


def router_of(routing: Routing) -> CpuRouter:
    """A router bound to the kernels, once."""
    if routing not in _ROUTERS:
        _ROUTERS[routing] = CpuRouter(routing)
    return _ROUTERS[routing]


def stack(layers: nn.ModuleList) -> Stack | str:
    """One call for all layers; or why there is none."""
    found = [layer for layer in layers if isinstance(layer, Layer)]
    if len({layer.spec.attention.kept for layer in found}) > 1:
        return "layers have caches of different shapes"
    kinds = [_kind(layer) for layer in found]
    first_of = [kinds.index(kind) for kind in dict.fromkeys(kinds)]  # a layer of each kind
    numbers = {kinds[layer]: number for number, layer in enumerate(first_of)}
    try:
        parts = [_parts(layer, numbers[kind]) for layer, kind in zip(found, kinds, strict=True)]
    except _Elsewhere as reason:
        return str(reason)
    whole = cpu_stack.CpuStack(parts)

    def run(x: Tensor, step: Step) -> Tensor:
        assert step.stride is not None
        places = [cpu_stack.Places(*step.angles(layer), step.factors(layer)) for layer in first_of]
        return whole.run(x, places, step.memory(0), step.batch.sequences, step.stride)

    return run


def _kind(layer: Layer) -> tuple[object, ...]:
    """What decides what a layer is told of positions."""
    attention = layer.spec.attention
    return attention.angles, getattr(attention, "query_scale", None)


def latent_of(spec: LatentSpec) -> CpuLatent | None:
    """Latent attention bound to the kernels, once; None where they do not run it."""
    if spec not in _LATENTS:
        if unsupported(spec.plain, spec.rotated, spec.rank) is not None:
            return None
        _LATENTS[spec] = CpuLatent(spec)
    return _LATENTS[spec]


@dataclass(frozen=True)
class _Mixing:
    """What comes in front of a layer's MLP."""

    linears: tuple[CpuLinear, CpuLinear, CpuLinear | None, CpuLinear]
    heads: AttentionSpec
    over_width: tuple[NormSpec, NormSpec] | None = None
    latent: CpuLatent | None = None


def _mixing(attention: nn.Module) -> _Mixing:
    if isinstance(attention, Latent):
        return _latent(attention)
    assert isinstance(attention, Attention)
    what = f"linears of layer {attention.layer} run elsewhere"
    q, k, v, o = (
        _bound(part, what) for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    return _Mixing((q, k, v, o), attention.heads, _over_width(attention))


def _latent(attention: Latent) -> _Mixing:
    spec, what = attention.spec, f"linears of layer {attention.layer} run elsewhere"
    bound = latent_of(spec)
    if bound is None:
        raise _Elsewhere(f"the latent attention of layer {attention.layer} runs in PyTorch")
    kv_a, o = (_bound(part, what) for part in (attention.kv_a_proj_with_mqa, attention.o_proj))
    if attention.q_b_proj is None:
        q = _bound(attention.q_proj, what)
    else:
        norm = attention.q_a_layernorm
        assert isinstance(norm, Norm)
        q, bound = _bound(attention.q_b_proj, what), bound.behind(_bound(attention.q_a_proj, what), norm.spec)
    heads = AttentionSpec(spec.heads, 1, spec.rank, scale=spec.scale, interleaved=spec.interleaved)
    return _Mixing((q, kv_a, None, o), heads, latent=bound)


def _parts(layer: Layer, places: int) -> cpu_stack.LayerParts:
    attention, mlp = layer.self_attn, layer.mlp
    number: int = attention.layer
    mixing = _mixing(attention)
    mixture, dense = (mlp, mlp.__dict__["shared"]) if isinstance(mlp, ExpertsMLP) else (None, mlp)
    specs = {role: norm.spec for role, norm in layer.norms.items()}
    return cpu_stack.LayerParts(
        mixing.linears, mixing.heads, None if dense is None else _mlp(dense, number),
        specs.get("before_attention"), specs.get("before_mlp"), specs.get("after_attention"), specs.get("after_mlp"),
        None if mixture is None else _mixture(mixture, number), mixing.over_width,
        layer.spec.residual_factor, layer.spec.parallel, places, mixing.latent,
    )  # fmt: skip


def _bound(part: object, what: str) -> CpuLinear:
    if not isinstance(part, Linear) or not isinstance(part.bound, CpuLinear):
        raise _Elsewhere(what)
    return part.bound


def _mlp(mlp: MLP, layer: int) -> cpu_stack.MlpParts:
    what = f"linears of layer {layer} run elsewhere"
    if mlp.activation not in ACTIVATIONS:
        raise _Elsewhere(f"layer {layer} has the activation {mlp.activation}, which runs in PyTorch")
    if isinstance(mlp, GatedMLP):
        up, down = _bound(mlp.up_proj, what), _bound(mlp.down_proj, what)
        return cpu_stack.MlpParts(up, down, _bound(mlp.gate_proj, what), mlp.activation)
    up, down = (_bound(mlp.get_submodule(name), what) for name in mlp.names)
    return cpu_stack.MlpParts(up, down, None, mlp.activation)


def _mixture(mixture: ExpertsMLP, layer: int) -> cpu_stack.MixtureParts:
    if not isinstance(mixture.bound, CpuMixture):
        raise _Elsewhere(f"the experts of layer {layer} run elsewhere")
    return cpu_stack.MixtureParts(router_of(mixture.routing), mixture.bound, mixture.shared_gate)


def _over_width(attention: Attention) -> tuple[NormSpec, NormSpec] | None:
    if not attention.over_width:
        return None
    queries, keys = attention.q_norm, attention.k_norm
    assert isinstance(queries, Norm) and isinstance(keys, Norm)
    if queries.weight.dim() > 1:
        raise _Elsewhere(f"layer {attention.layer} norms queries and keys by weights of each head")
    return queries.spec, keys.spec
