"""The tensors of a checkpoint held against its configuration, by headers: missing, misshapen, surplus. No torch."""

from __future__ import annotations

from collections.abc import Container, Mapping

from isobit.checkpoint.layouts import fitting
from isobit.checkpoint.layouts import table as layouts
from isobit.checkpoint.layouts.parts import Parts
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo, unreadable
from isobit.checkpoint.shown import listed
from isobit.models.blueprint import Shapes, is_behind, is_matrix
from isobit.models.config import ModelConfig
from isobit.models.stacks import misfits

# Leftovers of old checkpoints that are derived from the configuration, and so are not needed.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")

Problem = tuple[str, str]  # a tensor, what is wrong with it


def problems(
    tensors: Mapping[str, TensorInfo],
    config: ModelConfig,
    expected: Shapes,
    quantization: Quantization | None,
    known: Container[str] = (),
) -> list[Problem]:
    """What is wrong with the tensors of a model, those that are missing first.

    Args:
        tensors: by a model's own names.
        config: what the model is.
        expected: every tensor of the unquantized model with its shape.
        quantization: what the configuration says about it.
        known: more tensors that may be there.
    """
    wrong = misfits(tensors, config)
    if wrong:  # what is missing then is a part of these
        return wrong
    found: list[Problem] = []
    mine = {*expected}
    for name, shape in expected.items():
        if not is_matrix(name, shape):
            found += _of_vector(tensors, name, shape)
            continue
        module = name.removesuffix(".weight")
        infos = layouts.infos_of(tensors, module)
        mine |= {info.name for part, info in infos.items() if part != "bias" or f"{module}.bias" in expected}
        found += _of_matrix(module, infos, (shape[0], shape[1]), quantization)
    surplus = (name for name in tensors if name not in mine and name not in known and not _idle(name, config))
    return found + [(name, "is surplus: it is not a part of this model") for name in surplus]


def _idle(name: str, config: ModelConfig) -> bool:
    """Whether a tensor is of no consequence: a buffer, or of a layer that guesses further tokens."""
    return name.endswith(IGNORED_SUFFIXES) or is_behind(name, config)


def _of_vector(tensors: Mapping[str, TensorInfo], name: str, shape: tuple[int, ...]) -> list[Problem]:
    info = tensors.get(name)
    if info is None:
        return [(name, "is missing")]
    if info.shape != shape:
        return [(name, f"has shape {listed(info.shape)}, config.json asks for {[*shape]}")]
    return [] if info.dtype in PLAIN_DTYPES else [(name, unreadable(info.dtype))]


def _of_matrix(
    module: str, infos: Mapping[str, TensorInfo], shape: tuple[int, int], quantization: Quantization | None
) -> list[Problem]:
    """The same of a module with a matrix, by part."""
    row = layouts.layout_of(infos)
    if row is None:
        return [(f"{module}.{layouts.absent(infos)}", "is missing")]
    codes, sizes = infos[row.codes], row.describes(Parts("", infos)).shape
    fits = [size in (-1, wanted) for size, wanted in zip(sizes, shape, strict=False)] if len(sizes) == 2 else [False]
    if row.codes == "weight" and not all(fits):
        return [(codes.name, f"has shape {listed(codes.shape)}, config.json asks for {[*shape]}")]
    if row.dtypes and codes.dtype not in row.dtypes:
        return [(codes.name, unreadable(codes.dtype))]
    found = fitting.misfits(module, infos, shape, quantization)
    if not found and not fits[0]:
        return [(codes.name, f"has shape {listed(codes.shape)} (packed), config.json asks for {shape[0]} rows")]
    return found
