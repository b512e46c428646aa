"""What a checkpoint needs of the GPU kernels: every linear is bound and called, and launches are recorded, not made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import UsageError
from isobit.formats.qtensor import QTensor
from isobit.kernels.gpu.compile.request import Request
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.models.config import ModelConfig
from isobit.models.contents import Contents, contents
from isobit.targets.spec import Target

# Numbers of tokens that the kernels tell apart (kernels/gpu/selection.py), with some to spare.
TOKENS = (1, 2, 4, 8, 12, 16, 17, 64, 1024)
# Multiprocessors of the cards there are, from a T4 to a B200 and an RTX PRO 6000: how far K is split depends on them,
# in powers of two, so that neighbours give the same kernels and a pack serves every card of its target.
_MULTIPROCESSORS = (16, 24, 40, 58, 72, 84, 108, 132, 148, 170, 188)
_TABLE = "model.embed_tokens"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def requests(source: Path | Contents, target: Target, dtype: str | None) -> tuple[dict[str, Request], str]:
    """Every kernel that a checkpoint's linears launch on a target, by name, and the dtype of the activations.

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
    return found, name


def _stored_dtype(config: ModelConfig) -> str:
    return config.dtype if config.dtype in ("bfloat16", "float16") else "bfloat16"


def _kinds(found: Contents) -> Iterator[LinearWeight]:
    """One linear of each kind: those of one kind launch the same kernels."""
    seen = set()
    for module in _linears(found):
        read = read_linear(found.ck, module, mmap=True)
        if module == _TABLE:  # activations are rounded before an output projection of its own only
            read = replace(read, activations=None, input_scale=None)
        quantized = isinstance(read.weight, QTensor)
        formats = (read.weight.spec, read.weight.scale.dtype) if isinstance(read.weight, QTensor) else read.weight.dtype
        kind = (tuple(read.weight.shape), quantized, formats, read.activations, read.bias is None)
        if kind not in seen:
            seen.add(kind)
            yield read


def _linears(found: Contents) -> list[str]:
    """Modules that are multiplied by, the embedding too where it is the output projection."""
    matrices = [name.rpartition(".")[0] for name, shape in found.expected.items() if len(shape) == 2]
    return [name for name in matrices if name != _TABLE or found.config.tie_word_embeddings]
