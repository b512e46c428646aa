"""Tensors of all experts of a layer together, as transformers 5 holds them and some checkpoints store them.

Each is read as the tensors of its experts, which are views of it: nothing is copied. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from isobit.checkpoint import views
from isobit.checkpoint.safetensors import DTYPES, TensorInfo
from isobit.models.blueprint import layer_prefix
from isobit.models.config import Experts, ModelConfig


def other_names(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, str]:
    """Stored name -> name, of tensors of mixtures that are called as transformers 5 calls them."""
    found: dict[str, str] = {}
    for number, layer in enumerate(config.layers):
        if not isinstance(layer.mlp, Experts) or not layer.mlp.names.also:
            continue
        prefix = layer_prefix(number)
        for theirs, ours in layer.mlp.names.also:
            found |= {f"{prefix}{theirs}": f"{prefix}{ours}"}
    if not found:
        return {}
    beginnings = tuple(found)
    renamed = {}
    for name in tensors:
        if not name.startswith(beginnings):
            continue
        longest = max((one for one in _beginnings(name) if one in found), key=len, default="")
        if longest:
            renamed[name] = found[longest] + name.removeprefix(longest)
    taken = {*tensors} - {*renamed}
    return {old: new for old, new in renamed.items() if new not in taken and old != new}


def _beginnings(name: str) -> Iterator[str]:
    """The name up to each of its points, and the whole."""
    at = name.find(".")
    while at >= 0:
        yield name[: at + 1]
        at = name.find(".", at + 1)
    yield name


def unstacked(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, list[TensorInfo]]:
    """Stored name -> the tensors of single experts that it is read as."""
    found: dict[str, list[TensorInfo]] = {}
    for number, layer in enumerate(config.layers):
        if isinstance(layer.mlp, Experts):
            found |= _of_layer(tensors, layer.mlp, f"{layer_prefix(number)}{layer.mlp_name}.")
    return found


def by_expert(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, TensorInfo]:
    """The tensors with those of all experts together as those of each, under the names that these have here."""
    names = other_names(tensors, config)
    renamed = {names.get(name, name): info for name, info in tensors.items()}
    parts = unstacked(renamed, config)
    found = {name: info for name, info in renamed.items() if name not in parts}
    for of_it in parts.values():
        found |= {part.name: part for part in of_it}
    return found


def _of_layer(tensors: Mapping[str, TensorInfo], part: Experts, prefix: str) -> dict[str, list[TensorInfo]]:
    names, stacked, size = part.names, part.names.stacked, part.expert.size
    found = {}
    for stored, parts in (
        (stacked.gate_up, (names.gate, names.up)),
        (stacked.down, (names.down,)),
    ):
        base = stored.removesuffix(".weight")
        for tensor, axes, suffix in ((stored, 3, ".weight"), (f"{base}_bias", 2, ".bias")):
            info = tensors.get(prefix + tensor)
            if info is None or len(info.shape) != axes or info.shape[0] != part.router.experts or not _whole(info):
                continue
            if stacked.transposed and axes == 3:
                info = views.transposed(info)
            if info.shape[1] != (len(parts) * size if len(parts) > 1 else info.shape[1]):
                continue
            halves = _halves(info, len(parts), size, stacked.interleaved)
            found[prefix + tensor] = [
                views.taken(half, f"{prefix}{names.experts}.{number}.{name}{suffix}", 0, number)
                for number in range(part.router.experts)
                for name, half in zip(parts, halves, strict=True)
            ]
    return found


def _halves(info: TensorInfo, count: int, size: int, interleaved: bool) -> list[TensorInfo]:
    """Gate and up, from the axis of outputs; the whole where there is one."""
    if count == 1:
        return [info]
    if interleaved:
        return [views.narrowed(info, 1, begin, size, 2) for begin in range(2)]
    return [views.narrowed(info, 1, begin, size) for begin in (0, size)]


def _whole(info: TensorInfo) -> bool:
    """Whether its elements are whole bytes."""
    return DTYPES[info.dtype][0] % 8 == 0
