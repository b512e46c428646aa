"""Tensors of all experts of a layer together, as transformers 5 holds them and some checkpoints store them.

Each is read as the tensors of its experts, which are views of it: nothing is copied. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from isobit.checkpoint import views
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.mxfp4 import GROUP
from isobit.checkpoint.safetensors import DTYPES, TensorInfo
from isobit.models.blueprint import GATED, layer_prefix
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts


def other_names(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, str]:
    """Stored name -> name, of tensors of layers that are called otherwise, as those of mixtures in transformers 5."""
    found: dict[str, str] = {}
    for number, layer in enumerate(config.layers):
        prefix = layer_prefix(number)
        for theirs, ours in (*layer.also, *(layer.mlp.names.also if isinstance(layer.mlp, Experts) else ())):
            found |= {f"{prefix}{theirs}": f"{prefix}{ours}"}
    usual = _usual_names(config)
    if not found and not usual:
        return {}
    beginnings = tuple({*found, *usual})
    renamed = {}
    for name in tensors:
        if not name.startswith(beginnings):
            continue
        longest = max((one for one in _beginnings(name) if one in found), key=len, default="")
        new = found[longest] + name.removeprefix(longest) if longest else name
        renamed[name] = _own_expert(new, usual)
    taken = {*tensors} - {*renamed}
    return {old: new for old, new in renamed.items() if new not in taken and old != new}


def _usual_names(config: ModelConfig) -> dict[str, dict[str, str]]:
    """Beginning of the names of a layer's experts -> usual names of their linears (llm-compressor's) and their own."""
    found = {}
    for number, layer in enumerate(config.layers):
        if isinstance(layer.mlp, Experts):
            names = layer.mlp.names
            own = dict(zip(GATED, (names.gate, names.up, names.down), strict=True))
            if own != dict(zip(GATED, GATED, strict=True)):
                found[f"{layer_prefix(number)}{layer.mlp_name}.{names.experts}."] = own
    return found


def _own_expert(name: str, usual: Mapping[str, Mapping[str, str]]) -> str:
    """The name of a part of an expert with its linear's own name."""
    begin = next((one for one in _beginnings(name) if one in usual), None)
    if begin is None:
        return name
    expert, _, rest = name.removeprefix(begin).partition(".")
    linear, dot, part = rest.partition(".")
    return f"{begin}{expert}.{usual[begin][linear]}{dot}{part}" if linear in usual[begin] else name


def _beginnings(name: str) -> Iterator[str]:
    """The name up to each of its points, and the whole."""
    at = name.find(".")
    while at >= 0:
        yield name[: at + 1]
        at = name.find(".", at + 1)
    yield name


def unstacked(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, list[TensorInfo]]:
    """Stored name -> the tensors of single experts that it is read as."""
    return {
        info.name: _singles(info, stack, part, prefix, config.hidden_size)
        for stack, part, prefix, info in _stacks(tensors, config)
        if stack.misfit(info, part, config.hidden_size) is None
    }


def misfits(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> list[tuple[str, str]]:
    """(stored name, what is wrong with it) of tensors of all experts that are not what the configuration asks for."""
    found = (
        (info.name, stack.misfit(info, part, config.hidden_size)) for stack, part, _, info in _stacks(tensors, config)
    )
    return [(name, why) for name, why in found if why is not None]


def by_expert(tensors: Mapping[str, TensorInfo], config: ModelConfig) -> dict[str, TensorInfo]:
    """The tensors with those of all experts together as those of each, under the names that these have here."""
    names = other_names(tensors, config)
    renamed = {new: replace(info, name=new) for name, info in tensors.items() for new in (names.get(name, name),)}
    parts = unstacked(renamed, config)
    found = {name: info for name, info in renamed.items() if name not in parts}
    for of_it in parts.values():
        found |= {part.name: part for part in of_it}
    return found


@dataclass(frozen=True)
class _Stack:
    """A tensor of all experts of a layer.

    Attributes:
        linears: which of an expert's it holds: gate and up, or down.
        part: what it is of those: ``weight``, ``bias``, or a part of MXFP4's.
    """

    linears: tuple[str, ...]
    part: Literal["weight", "bias", "weight_packed", "weight_scale"]

    def shapes(self, part: Experts, hidden: int) -> tuple[tuple[int, ...], ...]:
        """What it may be."""
        experts, (n, k) = part.router.experts, (hidden, part.expert.size)
        if len(self.linears) > 1:
            n, k = 2 * k, n
        if self.part == "weight":
            usual, other = (experts, n, k), (experts, k, n)
            names = part.names.stacked
            return (other,) if names.transposed else (usual, other) if names.either else (usual,)
        groups = (experts, n, k // GROUP)
        return {"bias": ((experts, n),), "weight_scale": (groups,)}.get(
            self.part, ((*groups, GROUP // 2), (experts, n, k // 2))
        )

    def misfit(self, info: TensorInfo, part: Experts, hidden: int) -> str | None:
        """Why it is not what the configuration asks for; None if it is."""
        shapes = self.shapes(part, hidden)
        if info.shape not in shapes:
            return (
                f"has shape {short([*info.shape])}, config.json asks for {' or '.join(str([*one]) for one in shapes)}"
            )
        if self.part.startswith("weight_") and info.dtype != "U8":
            return f"is {info.dtype}; codes and scales of MXFP4 are U8"
        if DTYPES[info.dtype][0] % 8 or (len(info.shape) == 4 and info.strides is not None):
            return f"is {info.dtype} in an order that is not read"
        return None


def _stacks(
    tensors: Mapping[str, TensorInfo], config: ModelConfig
) -> Iterator[tuple[_Stack, Experts, str, TensorInfo]]:
    """The tensors of all experts that are there, with their mixture and what the names of its layer begin with."""
    for number, layer in enumerate(config.layers):
        part, prefix = layer.mlp, f"{layer_prefix(number)}{layer.mlp_name}."
        if not isinstance(part, Experts):
            continue
        names = part.names
        for stored, linears in ((names.stacked.gate_up, (names.gate, names.up)), (names.stacked.down, (names.down,))):
            base = prefix + stored.removesuffix(".weight")
            for name, what in (
                (prefix + stored, "weight"), (f"{base}_bias", "bias"),
                (f"{base}_blocks", "weight_packed"), (f"{base}_scales", "weight_scale"),
            ):  # fmt: skip
                if name in tensors:
                    yield _Stack(linears, what), part, prefix, tensors[name]  # type: ignore[arg-type]


def _singles(info: TensorInfo, stack: _Stack, part: Experts, prefix: str, hidden: int) -> list[TensorInfo]:
    """The tensors of single experts."""
    if len(info.shape) == 4:
        info = views.joined(info)
    elif stack.part == "weight" and (part.names.stacked.transposed or info.shape != stack.shapes(part, hidden)[0]):
        info = views.transposed(info)
    halves = _halves(info, len(stack.linears), part.expert.size, part.names.stacked.interleaved)
    return [
        views.taken(half, f"{prefix}{part.names.experts}.{number}.{name}.{stack.part}", 0, number)
        for number in range(part.router.experts)
        for name, half in zip(stack.linears, halves, strict=True)
    ]


def _halves(info: TensorInfo, count: int, size: int, interleaved: bool) -> list[TensorInfo]:
    """Gate and up, from the axis of outputs; the whole where there is one."""
    if count == 1:
        return [info]
    if interleaved:
        return [views.narrowed(info, 1, begin, size, 2) for begin in range(2)]
    return [views.narrowed(info, 1, begin, size) for begin in (0, size)]
