"""The modules of a checkpoint, from names, dtypes and shapes of its tensors: what each holds and in which scheme.

Tensors are grouped by the module they belong to; its layout says what they hold. Nothing is loaded; the two numbers of
a ``weight_shape`` tensor are the only data read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

from isobit.checkpoint.layouts import table
from isobit.checkpoint.layouts.parts import COMMON, Parts
from isobit.checkpoint.layouts.plain import DTYPE_NAMES
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import DTYPES, TensorInfo
from isobit.checkpoint.small import read_weight_shape
from isobit.errors import CheckpointError
from isobit.formats.schemes import name_of


@dataclass(frozen=True)
class Module:
    """One weight of the model with all that belongs to it.

    Attributes:
        name: the module, e.g. ``model.layers.0.mlp.up_proj``; a tensor's own name where it is no module's weight.
        kind: ``linear``, ``lm_head``, ``embedding``, ``tower`` (all of what stands beside a decoder) or ``other``.
        scheme: the scheme's name, or the dtype's where it isn't quantized.
        weights: how many numbers it stands for.
        nbytes: bytes it takes.
    """

    name: str
    kind: str
    scheme: str
    weights: int
    nbytes: int


def find_modules(
    checkpoint: Checkpoint, quantization: Quantization | None, beside: Collection[str] = ()
) -> list[Module]:
    """Every weight of a checkpoint, each tensor counted once.

    Args:
        checkpoint: the opened checkpoint.
        quantization: what its configuration says, where that could be read: names the rounding of activations.
        beside: tensors that stand beside the decoder.
    """
    towers = set(beside)
    groups: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in checkpoint.tensors.items():
        prefix, part = table.split(name)
        groups[prefix][part] = info
    found: list[Module] = []
    for prefix, parts in groups.items():
        made = _modules_of(prefix, parts, checkpoint, quantization)
        tower = any(info.name in towers for info in parts.values())
        found += [replace(module, kind="tower") for module in made] if tower else made
    return found


def _modules_of(
    prefix: str, infos: dict[str, TensorInfo], checkpoint: Checkpoint, quantization: Quantization | None
) -> list[Module]:
    row = table.layout_of(infos)
    owned = set() if row is None else {info.name for info in row.owned(infos)}
    others = (
        info.name in owned for part, info in infos.items() if row is not None and part not in (row.codes, *COMMON)
    )
    # Types of GGUF have their scales within, and codes by other names may have none.
    bare = row is not None and row.codes == "weight" and infos[row.codes].dtype in DTYPES and not any(others)
    if row is None or bare:
        return [_plain(prefix, part, info) for part, info in infos.items()]
    group = None if quantization is None else quantization.group_for(prefix)
    parts = Parts(prefix, infos, group, checkpoint.config, numbers=lambda part: _numbers(checkpoint, infos[part].name))
    found, nbytes = row.describe(parts)
    scheme = found.label if found.spec is None else name_of(found.spec, found.activations)
    weight = Module(prefix, _kind(prefix, 2), scheme, found.weights, nbytes)
    return [weight, *(_plain(prefix, part, info) for part, info in infos.items() if info.name not in owned)]


def _numbers(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    try:
        return read_weight_shape(checkpoint, name)
    except CheckpointError:
        return None


def _plain(prefix: str, part: str, info: TensorInfo) -> Module:
    name = prefix if part == "weight" and prefix else info.name
    kind = _kind(prefix, len(info.shape)) if part == "weight" else "other"
    dtype = DTYPE_NAMES.get(info.dtype, info.dtype.lower())
    return Module(name, kind, dtype, math.prod(info.shape), info.nbytes)


def _kind(module: str, dimensions: int) -> str:
    """What a weight is, by its module's name, for any architecture."""
    last = module.rpartition(".")[2]
    if dimensions < 2:
        return "other"
    if last in ("lm_head", "embed_out") or (last == "output" and "layers" not in module):
        return "lm_head"
    if "embed" in last or last in ("wte", "wpe"):
        return "embedding"
    return "linear"
