"""What a mixture of experts of a checkpoint needs of the GPU kernels: bound as it will be, and called where launches
are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.kernels import mixtures
from isobit.kernels.grouped import Gating, Mixture
from isobit.models.blueprint import Module
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import Experts
from isobit.models.mlp import GatedMLP
from isobit.models.place import Place
from isobit.models.stacking import routing, stack
from isobit.targets.spec import Target


def beside(modules: Sequence[Module]) -> tuple[Module, ...]:
    """The modules of a layer that are not of one expert, nor choose experts."""
    return tuple(one for one in modules if one.expert is None and one.kind != "router")


def alike(modules: Sequence[Module]) -> tuple[Module, ...]:
    """Those that decide which kernels a layer launches: of experts, which are stored alike, the first."""
    return tuple(one for one in modules if one.expert in (None, 0) and one.kind in ("linear", "absorbed"))


def mixture(
    spec: Experts, modules: Sequence[Module], read: Callable[[Module], LinearWeight], parts: dict[str, nn.Module],
    file: Path, where: Place,
) -> ExpertsMLP:  # fmt: skip
    """The experts of a layer where nothing is launched; each has the numbers of the first.

    Args:
        spec: what they are.
        modules: of the layer.
        read: a linear as it is computed with.
        parts: the others of the layer, by role.
        file: where they lie, for messages.
        where: the place.
    """
    router = spec.router
    first = {one.role: read(one) for one in modules if one.expert == 0}
    gate, up, down = (
        stack((first[role] for _ in range(router.experts)), [role] * router.experts, file, where)
        for role in ("gate", "up", "down")
    )
    whole = Mixture(gate, up, down, Gating(spec.expert.activation, spec.expert.limit), router.on_input)
    bound = mixtures.bind(whole, device=where.device, **where.options)
    shared = None
    if spec.shared is not None:
        shared = GatedMLP(spec.shared, {role: parts[f"shared_{role}"] for role in ("gate", "up", "down")})
    hidden = first["gate"].weight.shape[1]
    weight = torch.zeros(router.experts, hidden)
    bias, correction = (torch.zeros(router.experts) if there else None for there in (router.bias, router.correction))
    return ExpertsMLP(
        routing(router, weight, bias, correction), bound, shared, torch.zeros(hidden) if spec.shared_gate else None,
        spec.names.shared,
    )  # fmt: skip


def call(made: ExpertsMLP, spec: Experts, dtype: torch.dtype, multiprocessors: Sequence[int], target: Target) -> None:
    """Calls router and experts with numbers of tokens in all of which other kernels run, as on each card of a target.

    Routers with weights that the dtype holds, and with others; and, once, the batch-invariant one.
    """
    from isobit.kernels.gpu.machine import Machine
    from isobit.kernels.gpu.mixture import GpuMixture
    from isobit.kernels.gpu.routing import GpuRouter
    from isobit.kernels.gpu.tiles import FEW

    bound, routing = made.bound, made.routing
    assert isinstance(bound, GpuMixture)
    wide = replace(routing, weight=torch.full_like(routing.weight, 1 + 2**-20))
    before = bound.machine
    router, alike = (GpuRouter(before, bound.workspace, alike=one) for one in (False, True))
    alone = alike.route(routing, torch.zeros(1, routing.weight.shape[1], dtype=dtype))
    alike.place(alone.ids.flatten(), routing.experts, FEW)
    for count in multiprocessors:
        bound.on(Machine.imagined(target, count, before.recorder))
        for tokens in _tokens(routing.experts, routing.active):
            x = torch.zeros(tokens, routing.weight.shape[1], dtype=dtype)
            for one in (routing, wide):
                bound(x, router.route(one, x, *bound.wants(x, routing.active)))
    bound.on(before)


def _tokens(experts: int, active: int) -> Iterator[int]:
    """Numbers of tokens, one for each width of tiles, and for each way to route."""
    from isobit.kernels.gpu.choosing_tiles import tile_of, tokens_at_once
    from isobit.kernels.gpu.expert_tiles import width_of

    seen = set()
    usual = (max(1, -(-each * experts // active)) for each in (1, 4, 5, 12, 13, 24, 25, 160, 161))
    for tokens in sorted({1, 8, 9, 16, 17, 64, 65, 512, 513, *usual}):
        at_once = tokens_at_once(tokens, experts)
        key = width_of(tokens, tokens * active, experts), tile_of(tokens), at_once, tokens <= at_once
        if key not in seen:
            seen.add(key)
            yield tokens
