"""The weights of a tower: a module of transformers, built without memory and filled from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from isobit.checkpoint import methods
from isobit.checkpoint.layouts import table as layouts
from isobit.checkpoint.layouts.parts import Parts
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.small import read_vector
from isobit.errors import CheckpointError


def filled(
    build: Callable[[], nn.Module],
    ck: Checkpoint,
    name: Callable[[str], str],
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> nn.Module:
    """A module with its weights, ready to compute.

    A linear or a table may be stored in any format that isobit reads, each in its own, as its tensors say, whatever the
    configuration says of it; it is computed with as plain numbers, and its inputs are not rounded. All else is stored
    as plain numbers.

    Args:
        build: makes the module; it is called with ``meta`` as the default device.
        ck: the checkpoint.
        name: what the checkpoint calls a tensor, by its name in the module.
        dtype, device: of the weights. Buffers that no checkpoint has are left on ``meta``, for the caller.

    Raises:
        CheckpointError: a tensor is missing, or of another shape than the module's, or holds NaN or infinite numbers.
    """
    with torch.device("meta"):
        module = build()
    linears = {inner: part for inner, part in module.named_modules() if isinstance(part, nn.Linear | nn.Embedding)}
    own = by_tensors(ck, [name(f"{inner}.weight").removesuffix(".weight") for inner in linears])
    read: dict[str, Tensor] = {}
    for inner, part in linears.items():
        for key, tensor in _linear(own, name(f"{inner}.weight"), inner, part):
            read[key] = tensor.to(device, dtype)
    for key, empty in module.state_dict().items():
        if key not in read:
            read[key] = read_vector(ck, name(key), *empty.shape).to(device, dtype)
    module.load_state_dict(read, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def by_tensors(ck: Checkpoint, modules: list[str]) -> Checkpoint:
    """The same checkpoint, whose configuration says of these modules what their tensors say."""
    said = methods.parse(ck.config)
    groups = []
    for module in modules:
        infos = layouts.infos_of(ck.tensors, module)
        if any(module + mark in ck.tensors for mark in layouts.MARKS) and (row := layouts.layout_of(infos)) is not None:
            group = None if said is None else replace(said, ignore=()).group_for(module)
            if group is None or group.weights is None:
                spec = row.describes(Parts(module, infos, None, ck.config)).spec
                group = Group((), spec, None)
            groups.append(group._replace(targets=(module,)))
    method, form = ("", "") if said is None else (said.method, said.format)
    twin = copy.copy(ck)
    twin.__dict__["quantization"] = Quantization(tuple(groups), (), method, form)
    return twin


def _linear(ck: Checkpoint, stored: str, inner: str, part: nn.Linear | nn.Embedding) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a linear, by their names in the module."""
    module = stored.removesuffix(".weight")
    found = read_linear(ck, module, mmap=True)
    numbers, wanted = found.numbers(), tuple(part.weight.shape)
    if tuple(numbers.shape) != wanted:
        raise CheckpointError(
            f"has shape {list(numbers.shape)}, but config.json makes it {list(wanted)}", file=ck.path, tensor=stored
        )
    if not bool(torch.isfinite(numbers).all()):
        raise CheckpointError("holds NaN or infinite numbers", file=ck.path, tensor=stored)
    yield f"{inner}.weight", numbers
    biased = getattr(part, "bias", None) is not None
    if biased != (found.bias is not None):
        state = "missing" if biased else "surplus"
        raise CheckpointError(f"is {state} according to config.json", file=ck.path, tensor=f"{module}.bias")
    if found.bias is not None:
        yield f"{inner}.bias", found.bias
