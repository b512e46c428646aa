"""What a checkpoint needs of the GPU kernels: every linear is bound and called, and so is every layer; launches are
recorded, not made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from isobit.checkpoint.kvscales import KvScales
from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import UsageError
from isobit.formats.qtensor import QTensor
from isobit.kernels.gpu.compile.request import Request
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.workspace import Workspace
from isobit.models.batch import Batch
from isobit.models.blueprint import HEAD, layer_modules, layer_prefix
from isobit.models.config import ModelConfig
from isobit.models.contents import Contents, contents
from isobit.models.layers import Layer, RMSNorm
from isobit.models.linear import Linear
from isobit.models.ops.table import choose
from isobit.models.place import Place
from isobit.models.step import Step
from isobit.targets.spec import Target

# Numbers of tokens that the kernels tell apart (kernels/gpu/selection.py), with some to spare.
TOKENS = (1, 2, 4, 8, 12, 16, 17, 64, 1024)
# Multiprocessors of the cards there are, from a T4 to a B200 and an RTX PRO 6000: how far K is split depends on them,
# in powers of two, so that neighbours give the same kernels and a pack serves every card of its target.
_MULTIPROCESSORS = (16, 24, 40, 58, 72, 84, 108, 132, 148, 170, 188)
_TABLE = "model.embed_tokens"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def requests(source: Path | Contents, target: Target, dtype: str | None) -> tuple[dict[str, Request], str]:
    """Every kernel that a checkpoint's layers launch on a target, by name, and the dtype of the activations.

    Args:
        source: the checkpoint's folder, or its contents.
        target: where it is to run.
        dtype: dtype of the activations; None for the one in config.json.

    Raises:
        CheckpointError: tensors are missing or wrong.
        Unsupported: no kernel takes these formats on the target; has every reason.
        UsageError: an unknown dtype.
    """
    from isobit.kernels.gpu.bind import bind

    held = contents(Checkpoint.open(source)) if isinstance(source, Path) else source
    name = dtype or _stored_dtype(held.config)
    if name not in _DTYPES:
        raise UsageError(f"--dtype {name}: activations are in {', '.join(_DTYPES)}")
    found: dict[str, Request] = {}
    for read in _kinds(held):
        weight = read.weight.with_float_scales() if isinstance(read.weight, QTensor) else read.weight.to(_DTYPES[name])
        bias = None if read.bias is None else read.bias.to(_DTYPES[name])
        recorder = Recorder()
        machines = [Machine.imagined(target, count, recorder) for count in _MULTIPROCESSORS]
        bound = bind(weight, read.activations, read.input_scale, bias, machine=machines[0])
        for machine in machines:
            bound.on(machine)
            for tokens in TOKENS:
                bound(torch.zeros(tokens, weight.shape[1], dtype=_DTYPES[name]))
        found |= recorder.requests
    return found | _of_layers(held, target, _DTYPES[name]), name


# ---------------------------------------------------------------------- layers


def _of_layers(held: Contents, target: Target, dtype: torch.dtype) -> dict[str, Request]:
    """What layers launch, one of each kind, and the norm behind the last of them."""
    recorder, cpu = Recorder(), torch.device("cpu")
    where = Place("cuda", cpu, Machine.imagined(target, recorder=recorder), Workspace(cpu))
    config, ops = held.config, choose(dtype, where, held.config.layers)
    head = _bound(held, _TABLE if config.tie_word_embeddings else HEAD, dtype, where)
    layers = list(_layers(held, dtype, where))
    for batch in _batches():
        x = torch.zeros(len(batch.positions), config.hidden_size, dtype=dtype)
        for layer in layers:
            heads = layer.spec.attention
            angles = torch.zeros(len(x), heads.dim, dtype=dtype)
            shape = (1, heads.kv_heads, batch.sequences.block, heads.dim)
            memory = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
            layer(x, Step(ops, batch, lambda _, a=angles: (a, a), lambda _, m=memory: m, None))  # type: ignore[misc]
        ops.norm(x, torch.ones(config.hidden_size), config.norm_eps, (head,))
    return recorder.requests


def _batches() -> Iterator[Batch]:
    """Prompts of every number of tokens that kernels tell apart, and a token behind few others and behind very many."""
    for tokens in TOKENS:
        yield Batch.of([range(tokens)])
    one = Batch.of([range(1)])
    yield replace(one, sequences=replace(one.sequences, most=1 << 16))


def _layers(held: Contents, dtype: torch.dtype, where: Place) -> Iterator[Layer]:
    """One layer of each kind."""
    config, seen = held.config, set()
    for number, spec in enumerate(config.layers):
        modules = layer_modules(spec, config.hidden_size)
        names = {module.role: layer_prefix(number) + module.name for module in modules if module.kind != "norm"}
        kind = spec, tuple(_kind(read_linear(held.ck, name, mmap=True)) for name in names.values())
        if kind in seen:
            continue
        seen.add(kind)
        parts: dict[str, nn.Module] = {role: _bound(held, name, dtype, where) for role, name in names.items()}
        parts |= {
            module.role: RMSNorm(torch.ones(*module.shape), config.norm_eps)
            for module in modules if module.kind == "norm"
        }  # fmt: skip
        yield Layer(spec, number, parts, config.norm_eps, KvScales())


def _bound(held: Contents, module: str, dtype: torch.dtype, where: Place) -> Linear:
    """A linear of the checkpoint where nothing is launched."""
    read = _read(held, module)
    weight = read.weight.with_float_scales() if isinstance(read.weight, QTensor) else read.weight.to(dtype)
    return Linear(weight, read.activations, read.input_scale, read.bias, dtype=dtype, place=where)


# ---------------------------------------------------------------------- linears


def _stored_dtype(config: ModelConfig) -> str:
    return config.dtype if config.dtype in ("bfloat16", "float16") else "bfloat16"


def _kinds(found: Contents) -> Iterator[LinearWeight]:
    """One linear of each kind: those of one kind launch the same kernels."""
    seen = set()
    for module in _linears(found):
        read = _read(found, module)
        kind = _kind(read)
        if kind not in seen:
            seen.add(kind)
            yield read


def _read(found: Contents, module: str) -> LinearWeight:
    read = read_linear(found.ck, module, mmap=True)
    if module == _TABLE:  # activations are rounded before an output projection of its own only
        return replace(read, activations=None, input_scale=None)
    return read


def _kind(read: LinearWeight) -> tuple[object, ...]:
    """What decides the kernels of a linear."""
    quantized = isinstance(read.weight, QTensor)
    formats = (read.weight.spec, read.weight.scale.dtype) if isinstance(read.weight, QTensor) else read.weight.dtype
    return tuple(read.weight.shape), quantized, formats, read.activations, read.bias is None


def _linears(found: Contents) -> list[str]:
    """Modules that are multiplied by, the embedding too where it is the output projection."""
    matrices = [name.rpartition(".")[0] for name, shape in found.expected.items() if len(shape) == 2]
    return [name for name in matrices if name != _TABLE or found.config.tie_word_embeddings]
