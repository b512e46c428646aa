"""Tensors of the small models of a pipeline: read without running anything, and held to the shapes they must have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from isobit.checkpoint.folder import WeightFiles
from isobit.checkpoint.legacy import read_bin_header
from isobit.checkpoint.store import FileStore, Store, opened
from isobit.errors import CheckpointError

Weights = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
_SHOWN = 4


def read_pt(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of one of torch's own files, in float32.

    Args:
        path: of a file that holds a dictionary of tensors, or one under ``model``.
        prefix: what the names begin with; it is taken off, and tensors without it are left out.

    Raises:
        CheckpointError: the file is damaged, or holds anything that unpickling would run.
    """
    return _read(FileStore(path.parent, (path,), read_bin_header(path, "model")), prefix)


def read_safetensors(folder: Path, weights: WeightFiles, prefix: str = "") -> dict[str, Tensor]:
    """The same of safetensors files."""
    return _read(opened(folder, weights), prefix)


def _read(store: Store, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): store.read(name).to(torch.float32)
        for name in store.tensors
        if name.startswith(prefix)
    }


def kept(found: Weights, shapes: Shapes, path: Path, what: str, idle: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors that a model needs, none missing, of another shape, or beyond them.

    Args:
        found: tensors by name.
        shapes: what there must be.
        path: of their file.
        what: the model, in messages.
        idle: ends of the names of tensors that may be there and change nothing.

    Raises:
        CheckpointError: names what is wrong.
    """
    missing = [name for name in shapes if name not in found]
    if missing:
        raise CheckpointError(f"is no {what} that isobit knows: it has no {_some(missing)}", file=path)
    wrong = [name for name, shape in shapes.items() if tuple(found[name].shape) != shape]
    if wrong:
        name = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        reason = f"has the shape {[*found[name].shape]}, and {what} of this size has {[*shapes[name]]}{more}"
        raise CheckpointError(reason, file=path, tensor=name)
    strange = [name for name in found if name not in shapes and not name.endswith(idle or ("\0",))]
    if strange:
        raise CheckpointError(f"is no {what} that isobit knows: it has also {_some(strange)}", file=path)
    bad = next((name for name in shapes if not bool(found[name].isfinite().all())), None)
    if bad is not None:
        raise CheckpointError("holds numbers that are NaN or infinite", file=path, tensor=bad)
    return {name: found[name] for name in shapes}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def size(found: Weights, name: str, axis: int, path: Path, what: str) -> int:
    """How long an axis of a tensor is, which sizes of others follow from.

    Raises:
        CheckpointError: there is no such tensor, or no such axis.
    """
    if name not in found or found[name].dim() <= axis:
        raise CheckpointError(f"is no {what} that isobit knows: it has no {name} with {axis + 1} axes", file=path)
    return int(found[name].shape[axis])


def counted(found: Weights, prefix: str) -> int:
    """How many layers there are: names that begin with ``prefix`` and a number, from 0 on."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in found if name.startswith(prefix)}
    count = 0
    while str(count) in numbers:
        count += 1
    return count


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """``x @ weight.T + bias``."""
    return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def on(weights: Weights, device: torch.device) -> dict[str, Tensor]:
    """The same on a device."""
    return {name: tensor.to(device) for name, tensor in weights.items()}
