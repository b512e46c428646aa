"""A model's configuration as the planner's workload: from `config.json` alone, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isobit.checkpoint import ctreview, methods
from isobit.checkpoint.safetensors import DTYPES, PLAIN_DTYPES
from isobit.errors import CheckpointError
from isobit.legalize.workload import Attention, Stored, Tensor, Workload
from isobit.models.archs import is_within, model_config
from isobit.models.blueprint import classifier, expected_tensors, is_matrix, layer_modules, layer_prefix
from isobit.models.config import LatentAttention, ModelConfig, SelfAttention
from isobit.models.feed_forward import Experts, Mlp

_NUMBERED = re.compile(r"\.(layers|experts)\.\d+(?=\.)")


def workload(
    config: Mapping[str, Any],
    folder: Path | None = None,
    dtypes: Mapping[str, str] = MappingProxyType({}),
    *,
    untied: bool = False,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Workload:
    """The workload of a Hugging Face ``config.json``.

    Args:
        config: its contents.
        folder: where the model lies, if it does: other tools say in other files that weights are quantized.
        dtypes: its tensors with their dtypes (nothing where unknown), as far as they are known; they tell, too.
        untied: its output projection is a matrix of its own, whatever the configuration says.
        renamed: modules that have other names in its files, with those; where nothing is known of them, and the model
            sees or hears, those that transformers writes.

    Raises:
        ModelError: the architecture is unknown, or a key is missing, wrong, or asks for what is not implemented.
        CheckpointError: its quantization config is malformed.
        Unsupported: its quantization is one that isobit cannot run.
    """
    methods.refuse_unread(config, folder, dtypes)
    methods.parse(config)  # what is wrong with it is said before what is wrong with the model
    model = model_config(config, dtypes)
    if untied:
        model = replace(model, tie_word_embeddings=False)
    matrices = {name: shape for name, shape in expected_tensors(model).items() if is_matrix(name, shape)}
    widths = {name.rpartition(".")[0]: shape[1] for name, shape in matrices.items()}
    in_files = renamed or _in_files(config, widths)
    quantization = ctreview.read(config, widths, folder=folder, tensors=dtypes, stored=in_files)

    choices = _choices(model)

    def stored(module: str) -> Stored:
        assert quantization is not None
        if quantization.plain_experts and module in choices:
            return None, None
        group = quantization.group_for(module)
        return (None, None) if group is None else group.stored(widths.get(module, 0))

    if quantization is not None:
        _require_alike(model, stored)
    wide = _in_float32(model, stored if quantization is not None else None, dtypes, in_files)
    tensors = _tensors(model, stored if quantization is not None else None, wide)
    size = sum(_numbers(tensor) for tensor in tensors)
    active = sum(_numbers(one) * (one.active if one.experts else 1) // (one.experts or 1) for one in tensors)
    chosen = "" if active == size else f", {counted(active)} of them for a token"
    return Workload(
        title=f"{model.family}, {counted(size)} parameters{chosen}, {model.num_layers} layers",
        dtype=model.dtype,
        tensors=tensors,
        attentions=tuple(
            Attention(part.heads, part.kept.heads, _width(part), part.window, (part.kept.first, part.kept.second))
            for part in (layer.attention for layer in model.layers)
        ),
        hidden=model.hidden_size,
        intermediate=max((_between(layer.mlp) for layer in model.layers), default=0),
        vocab=model.vocab_size,
        max_context=model.max_context,
        tied=model.tie_word_embeddings,
        stored=stored if quantization is not None else None,
        dtypes=_dtypes(model, dtypes, in_files) if quantization is None else (),
        in_float32=wide if quantization is None else wide | quantization.in_float32,
        scales={} if quantization is None else quantization.scales,
        notes=(*model.notes, *_left_out(model), *(quantization.notes if quantization is not None else ())),
    )


def _in_float32(
    model: ModelConfig,
    stored: Callable[[str], Stored] | None,
    dtypes: Mapping[str, str],
    in_files: Mapping[str, str],
) -> frozenset[str]:
    """Modules that are not quantized and lie in float32: by the tensors, or where those are not known, by config.json.

    Routers, norms and vectors alone are no reason to tell modules apart: in memory these are float32 however they lie.
    """
    classify = classifier(model)
    found: set[str] = set()
    besides: set[str] = set()
    for name in expected_tensors(model):
        module, _, part = name.rpartition(".")
        kind = classify(name)
        if kind not in ("norm", "vector") and stored is not None and stored(module) != (None, None):
            continue
        dtype = dtypes.get(name) or dtypes.get(f"{in_files.get(module, module)}.{part}")
        if dtype == "F32" or (not dtype and model.dtype == "float32"):
            (found if kind not in ("router", "norm", "vector") else besides).add(module)
    return frozenset(found | besides if found else ())


def _dtypes(model: ModelConfig, dtypes: Mapping[str, str], in_files: Mapping[str, str]) -> tuple[str, ...]:
    """The dtypes that the matrices of a model that is not quantized lie in, routers apart; config.json's if unknown."""
    classify = classifier(model)
    found: set[str] = set()
    for name, shape in expected_tensors(model).items():
        if is_matrix(name, shape) and classify(name) != "router":
            module, _, part = name.rpartition(".")
            dtype = dtypes.get(name) or dtypes.get(f"{in_files.get(module, module)}.{part}")
            found.add((DTYPES[dtype][1] if dtype in PLAIN_DTYPES else None) or model.dtype)
    return tuple(sorted(found))


def _left_out(model: ModelConfig) -> tuple[str, ...]:
    """That layers behind the last are not counted; where tensors are known, they say so themselves."""
    if not model.predicted_layers:
        return ()
    return (
        f"layers behind the last that guess further tokens ({model.predicted_layers} by config.json) are left out:"
        " isobit decodes one token after the other",
    )


def _in_files(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, str]:
    """What modules are called in the files of a model that also sees or hears; a configuration may use these names."""
    if not is_within(config):
        return {}
    inner = (module for module in modules if module.startswith("model."))
    return {module: f"model.language_model.{module.removeprefix('model.')}" for module in inner}


def _require_alike(model: ModelConfig, stored: Callable[[str], Stored]) -> None:
    """That the experts of a layer have one format in each role, as loading asks for."""
    for number, layer in enumerate(model.layers):
        if not isinstance(layer.mlp, Experts):
            continue
        first: dict[str, str] = {}
        for part in layer_modules(layer, model.hidden_size):
            if part.expert is None:
                continue
            name = layer_prefix(number) + part.name
            one = first.setdefault(part.role, name)
            if stored(name) != stored(one):
                raise CheckpointError(
                    f"its experts are stored in different ways: {name} has another format than {one}; isobit runs the"
                    " experts of a layer in one format"
                )


def _width(part: SelfAttention | LatentAttention) -> int:
    """Width of a head's query."""
    return part.query if isinstance(part, LatentAttention) else part.dim


def _between(mlp: Mlp) -> int:
    """Numbers between gate and down that a token has at once; those of several experts lie beside each other."""
    if not isinstance(mlp, Experts):
        return mlp.size
    return max(mlp.router.active * mlp.expert.size, 0 if mlp.shared is None else mlp.shared.size)


def counted(size: int) -> str:
    """Numbers for people."""
    return f"{size / 1e9:.2f} billion" if size >= 1e9 else f"{size / 1e6:.1f} million"


def _numbers(tensor: Tensor) -> int:
    size = tensor.count
    for length in tensor.shape:
        size *= length
    return size


def _choices(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Modules of experts -> how many experts their layer has, and how many a token goes to."""
    found: dict[str, tuple[int, int]] = {}
    for number, layer in enumerate(model.layers):
        if isinstance(layer.mlp, Experts):
            both = layer.mlp.router.experts, layer.mlp.router.active
            modules = layer_modules(layer, model.hidden_size)
            found |= {layer_prefix(number) + part.name: both for part in modules if part.expert is not None}
    return found


def _tensors(
    model: ModelConfig, stored: Callable[[str], Stored] | None, wide: frozenset[str]
) -> tuple[Tensor, ...]:  # fmt: skip
    """Every tensor, those of all layers that agree in name, shape and the way they are stored as one."""
    alike: dict[tuple[str, tuple[int, ...], Stored, bool], list[str]] = {}
    classify, choices = classifier(model), _choices(model)
    for name, shape in expected_tensors(model).items():
        module = name.rpartition(".")[0]
        formats = stored(module) if stored is not None else (None, None)
        alike.setdefault((_NUMBERED.sub(r".\1.*", name), shape, formats, module in wide), []).append(name)
    found = []
    for (name, shape, *_), members in alike.items():
        module, _, part = name.rpartition(".")
        first = members[0].rpartition(".")[0]
        experts, active = choices.get(first, (0, 0))
        found.append(Tensor(module, part, classify(members[0]), shape, len(members), first, experts, active))
    return tuple(found)
