"""What a checkpoint needs of the GPU kernels: every linear is bound and called, and so is every layer; launches are
recorded, not made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isobit.checkpoint.kvscales import KvScales
from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.checkpoint.linear import read_linear
from isobit.errors import UsageError
from isobit.formats.caches import AUTO, BLOCK, CacheFormat
from isobit.formats.qtensor import QTensor
from isobit.kernels.gpu.compile.request import Request
from isobit.kernels.gpu.layer_tiles import ONE_PART
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder, begins_aligned
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.norm import NormSpec
from isobit.kernels.widened import for_gpu
from isobit.models import pack_experts
from isobit.models.batch import Batch
from isobit.models.blueprint import HEAD, by_input, layer_modules, layer_prefix
from isobit.models.cache.memory import new_layers
from isobit.models.config import LayerSpec, ModelConfig
from isobit.models.contents import Contents, contents
from isobit.models.experts import ExpertsMLP
from isobit.models.feed_forward import Experts, GatedMlp
from isobit.models.joined import apart, bind_linears, join
from isobit.models.latent import Absorbed
from isobit.models.layers import Layer
from isobit.models.linear import Linear
from isobit.models.norms import Norm
from isobit.models.opening import runnable
from isobit.models.ops.gpu import GATES
from isobit.models.ops.table import choose
from isobit.models.parts import Vector
from isobit.models.place import Place
from isobit.models.roles import by_role
from isobit.models.step import Step
from isobit.targets.spec import Target

if TYPE_CHECKING:
    from isobit.kernels.gpu.bind import BoundLinear

# Numbers of tokens that the kernels tell apart (kernels/gpu/selection.py), with some to spare.
TOKENS = (1, 2, 4, 8, 12, 16, 17, 64, 65, 129, 1024)
# Multiprocessors of the cards there are, from a T4 to a B200 and an RTX PRO 6000: how far K is split depends on them,
# in powers of two, so that neighbours give the same kernels and a pack serves every card of its target.
_MULTIPROCESSORS = (16, 24, 40, 58, 72, 84, 108, 132, 148, 170, 188)
_TABLE = "model.embed_tokens"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def requests(
    source: Path | Contents, target: Target, dtype: str | None, stored: CacheFormat = AUTO
) -> tuple[dict[str, Request], str]:
    """Every kernel that a checkpoint's layers launch on a target, by name, and the dtype of the activations.

    Args:
        source: the checkpoint's folder, or its contents.
        target: where it is to run.
        dtype: dtype of the activations; None for the one in config.json.
        stored: the format of keys and values.

    Raises:
        CheckpointError: tensors are missing or wrong.
        Unsupported: no kernel takes these formats on the target; has every reason.
        UsageError: an unknown dtype.
    """
    from isobit.kernels.gpu.bind import bind

    held = contents(runnable(source)) if isinstance(source, Path) else source
    name = dtype or _stored_dtype(held.config)
    if name not in _DTYPES:
        raise UsageError(f"--dtype {name}: activations are in {', '.join(_DTYPES)}")
    stored.require(name)
    found: dict[str, Request] = {}
    for use in _uses(held, _DTYPES[name]):
        recorder, read = Recorder(), use.read
        machines = [Machine.imagined(target, count, recorder) for count in _MULTIPROCESSORS]
        bound = bind(read.weight, read.activations, read.input_scale, read.bias, machine=machines[0])
        for machine in machines:
            use.call(bound.on(machine), _DTYPES[name])
        found |= recorder.requests
    return found | _of_layers(held, target, _DTYPES[name], stored), name


# ---------------------------------------------------------------------- layers


def _of_layers(held: Contents, target: Target, dtype: torch.dtype, stored: CacheFormat) -> dict[str, Request]:
    """What layers launch, one of each kind, and the norm behind the last of them."""
    recorder, cpu = Recorder(), torch.device("cpu")
    where = Place("cuda", cpu, Machine.imagined(target, recorder=recorder), Workspace(cpu))
    config, ops = held.config, choose(dtype, where, held.config.layers, stored)
    head = _bound(held, _TABLE if config.tie_word_embeddings else HEAD, dtype, where)
    layers = list(_layers(held, dtype, where))
    for batch in _batches():
        x = torch.zeros(len(batch.positions), config.hidden_size, dtype=dtype)
        for layer in layers:
            angles = torch.zeros(len(x), layer.spec.attention.angles[1], dtype=dtype)
            (memory,) = new_layers([layer.spec.attention.kept], 1, batch.sequences.block, dtype, None, stored)
            factors = torch.ones(len(x)) if getattr(layer.spec.attention, "query_scale", None) else None
            layer(
                x,
                Step(ops, batch, lambda _, a=angles: (a, a), lambda _, m=memory: m, None,  # type: ignore[misc]
                     factors=lambda _, f=factors: f),  # type: ignore[misc]
            )  # fmt: skip
            if isinstance(layer.mlp, ExpertsMLP) and isinstance(layer.spec.mlp, Experts) and len(x) == 1:
                pack_experts.call(layer.mlp, layer.spec.mlp, dtype, _MULTIPROCESSORS, target)
        ops.norm(x, _norm(config, config.norms.bias, config.hidden_size).spec, (head,))
    return recorder.requests


def _batches() -> Iterator[Batch]:
    """Prompts of every number of tokens that kernels tell apart, and a token behind few others and behind very many:
    of one sequence, and of many, whose steps attention spreads differently, in a cache of blocks as engines have it."""
    for tokens in TOKENS:
        yield Batch.of([range(tokens)])
    one = Batch.of([range(1)])
    yield replace(one, sequences=replace(one.sequences, most=1 << 16))
    for count, most in ((1, 256), (1, ONE_PART + 1), (1, 2048), (64, 256), (64, 1 << 16)):
        step = Batch.of([range(1)] * count)
        table = torch.zeros(count, 16, dtype=torch.int32)
        yield replace(step, sequences=replace(step.sequences, table=table, block=BLOCK, most=most))


def _layers(held: Contents, dtype: torch.dtype, where: Place) -> Iterator[Layer]:
    """One layer of each kind."""
    config, seen = held.config, set()
    for number, spec in enumerate(config.layers):
        modules = layer_modules(spec, config.hidden_size)
        groups = by_input(pack_experts.beside(modules))
        linears = [[layer_prefix(number) + module.name for module in group] for group in groups]
        matrices = [one.name for one in pack_experts.alike(modules)]
        kind = spec, tuple(_kind(_read(held, layer_prefix(number) + name)) for name in matrices)
        if kind in seen:
            continue
        seen.add(kind)
        parts: dict[str, nn.Module] = {}
        for group, names in zip(groups, linears, strict=True):
            if group[0].kind == "norm":
                parts[group[0].role] = _norm(config, group[0].bias, *group[0].shape)
                continue
            if group[0].kind == "absorbed":
                parts[group[0].role] = Absorbed(torch.zeros(*group[0].shape, dtype=dtype))
                continue
            if group[0].kind == "vector":
                parts[group[0].role] = Vector(torch.ones(*group[0].shape))
                continue
            reads = by_role(group, [_computed(_read(held, name), dtype) for name in names])
            by_turns = any(role.endswith("gate") for role in reads)
            bound = bind_linears(
                [*reads.values()], by_turns=by_turns, keep_values=False, dtype=dtype, place=where
            )  # fmt: skip
            parts |= dict(zip(reads, bound, strict=True))
        if isinstance(spec.mlp, Experts):
            parts["experts"] = pack_experts.mixture(
                spec.mlp, modules, lambda one, n=number: _computed(_read(held, layer_prefix(n) + one.name), dtype),  # type: ignore[misc]
                parts, held.ck.path, where,
            )  # fmt: skip
        yield Layer(spec, number, parts, config.norm_eps, KvScales())


def _norm(config: ModelConfig, bias: bool, *shape: int) -> Norm:
    """A norm of the model; its numbers are nobody's."""
    ones = torch.ones(shape)
    return Norm(NormSpec(ones, config.norm_eps, ones if bias else None, config.norms.kind == "layer"))


def _bound(held: Contents, module: str, dtype: torch.dtype, where: Place) -> Linear:
    """A linear of the checkpoint where nothing is launched."""
    read = _computed(_read(held, module), dtype)
    return Linear(
        read.weight,
        read.activations,
        read.input_scale,
        read.bias,
        dtype=dtype,
        place=where,
        order=read.order,
        factor=read.factor,
    )


# ---------------------------------------------------------------------- linears


def _stored_dtype(config: ModelConfig) -> str:
    return config.dtype if config.dtype in ("bfloat16", "float16") else "bfloat16"


@dataclass(frozen=True)
class _Use:
    """A linear, or several as one, and how it is called.

    Attributes:
        read: its weight.
        adds: whether a residual is added to what it gives.
        gates: the activation of its gates, if it has any.
    """

    read: LinearWeight
    adds: bool = False
    gates: str | None = None

    def call(self, bound: BoundLinear, dtype: torch.dtype) -> None:
        """Calls it with every number of tokens that kernels tell apart."""
        n, k = self.read.weight.shape
        for tokens in TOKENS:
            x = torch.zeros(tokens, k, dtype=dtype)
            bound(x)
            if self.adds:
                bound(x, torch.zeros(tokens, n, dtype=dtype))
            if self.gates:
                bound.gated(x, self.gates)


def _uses(found: Contents, dtype: torch.dtype) -> Iterator[_Use]:
    """One linear of each kind: those of one kind launch the same kernels."""
    seen: set[object] = set()
    for number, spec in enumerate(found.config.layers):
        for group in by_input(pack_experts.beside(layer_modules(spec, found.config.hidden_size))):
            if group[0].kind in ("norm", "absorbed", "vector"):
                continue
            roles = by_role(group, [_read(found, layer_prefix(number) + module.name) for module in group])
            reads = [*roles.values()]
            gates = _gates(spec, roles)
            adds = group[0].split == "columns"
            kind = tuple(_kind(read) for read in reads), apart(reads), adds, gates
            if kind not in seen:
                seen.add(kind)
                yield from _used(reads, adds, gates, dtype)
    table = _TABLE if found.config.tie_word_embeddings else HEAD
    yield _Use(_computed(_read(found, table), dtype))


def _gates(spec: LayerSpec, roles: Mapping[str, LinearWeight]) -> str | None:
    """The activation of gates that one kernel computes with the linears of these roles; None where there is none."""
    part = spec.mlp.shared if isinstance(spec.mlp, Experts) else spec.mlp
    gated = isinstance(part, GatedMlp) and any(role.endswith("gate") for role in roles) and part.activation in GATES
    return part.activation if gated and isinstance(part, GatedMlp) else None


def _used(reads: list[LinearWeight], adds: bool, gates: str | None, dtype: torch.dtype) -> Iterator[_Use]:
    """Linears of one input: one use where they are one matrix."""
    computed = [_computed(read, dtype) for read in reads]
    if apart(reads) is not None:
        for read in computed:
            yield _Use(read, adds)
    else:
        whole, rows = join(computed, gates is not None)
        yield _Use(whole, adds, gates if rows[0].step else None)


def _computed(read: LinearWeight, dtype: torch.dtype) -> LinearWeight:
    """A linear as it is computed with."""
    weight = for_gpu(read.weight, read.activations) if isinstance(read.weight, QTensor) else read.weight.to(dtype)
    return replace(read, weight=weight, bias=None if read.bias is None else read.bias.to(dtype))


def _read(found: Contents, module: str) -> LinearWeight:
    read = _by_itself(read_linear(found.ck, module, mmap=True))
    if module == _TABLE:  # activations are rounded before an output projection of its own only
        return replace(read, activations=None, input_scale=None)
    return read


def _by_itself(read: LinearWeight) -> LinearWeight:
    """A weight whose tensors begin where memory does, as on a card: in a file they begin anywhere."""
    weight = read.weight
    if isinstance(weight, QTensor):
        zero = None if weight.zero is None else _begins(weight.zero)
        weight = replace(weight, codes=_begins(weight.codes), scale=_begins(weight.scale), zero=zero)
    else:
        weight = _begins(weight)
    return replace(read, weight=weight, bias=None if read.bias is None else _begins(read.bias))


def _begins(tensor: Tensor) -> Tensor:
    return tensor if begins_aligned(tensor) else tensor.clone()


def _kind(read: LinearWeight) -> tuple[object, ...]:
    """What decides the kernels of a linear."""
    quantized = isinstance(read.weight, QTensor)
    formats = (read.weight.spec, read.weight.scale.dtype) if isinstance(read.weight, QTensor) else read.weight.dtype
    return tuple(read.weight.shape), quantized, formats, read.activations, read.bias is None
