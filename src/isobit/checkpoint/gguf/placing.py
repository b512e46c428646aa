"""The tensors of a GGUF file where Hugging Face's folders have them: names, rows in their order, experts one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from isobit.checkpoint.gguf.header import Entry
from isobit.checkpoint.gguf.names import OUTSIDE, Names
from isobit.errors import CheckpointError

# Tensors that are read where the configuration is made, and are none of the model's.
CONSUMED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_PART = re.compile(
    r"blk\.(?P<layer>\d{1,5})\.(?P<part>[a-z_]+)(?:\.(?P<expert>\d{1,5}))?\.(?P<end>weight|bias|scale|input_scale)"
)
_BEHIND = re.compile(r"blk\.(?P<layer>\d{1,5})\.(?P<rest>.+)")
_STACKED = "_exps"
# What a matrix in NVFP4 is multiplied by, one number for each expert; and one that only what rounds activations uses.
_SCALE, _INPUT_SCALE = "scale", "input_scale"
OVER = "gguf_scale"  # what the former is called here
_AXES = {"weight": 3, "bias": 2, _SCALE: 1}
_MOST_EXPERTS = 4096
_QKV, _GATE_UP = "attn_qkv", "ffn_gate_up_exps"
_KEYS, _VALUES = "attn_k_b", "attn_v_b"


@dataclass(frozen=True)
class Shape:
    """What the order of rows depends on.

    Attributes:
        heads, kv_heads: of the attention.
        layers: without those that guess further tokens.
    """

    heads: int
    kv_heads: int
    layers: int


@dataclass(frozen=True)
class Placed:
    """A tensor of a model, or one expert's part of what a file holds as one tensor.

    Attributes:
        name: in Hugging Face's folders.
        entry: the tensor of the file.
        shape: of this part.
        skip: bytes of the file's tensor in front of it.
        heads: of how many heads the rows are to be put into another order; 0 where they stay.
        offset: what is to be taken off its numbers.
        beside: a tensor of values ``[heads, v, latent]``, where the file's is that of keys, ``[heads, latent, k]``, and
            this one is both: of each head k rows, and then v.
    """

    name: str
    entry: Entry
    shape: tuple[int, ...]
    skip: int = 0
    heads: int = 0
    offset: float = 0.0
    beside: Entry | None = None


def placed(tensors: Mapping[str, Entry], names: Names, shape: Shape) -> Iterator[Placed]:
    """The tensors of a model by Hugging Face's names; what no family has keeps its own.

    Args:
        tensors: those of the file.
        names: how the family calls them.
        shape: of the model.

    Raises:
        CheckpointError: matrices that are one in a folder do not fit together.
    """
    for entry in tensors.values():
        if entry.name in CONSUMED:
            continue
        module, _, end = entry.name.rpartition(".")
        if module in OUTSIDE and end in ("weight", "bias", _SCALE):
            offset = names.offset if (module, end) == ("output_norm", "weight") else 0.0
            yield Placed(f"{OUTSIDE[module]}.{OVER if end == _SCALE else end}", entry, entry.shape, offset=offset)
            continue
        found, behind = _PART.fullmatch(entry.name), _BEHIND.fullmatch(entry.name)
        if behind is not None and int(behind["layer"]) >= shape.layers:
            yield Placed(f"model.layers.{int(behind['layer'])}.{behind['rest']}", entry, entry.shape)
        elif found is None:
            yield Placed(entry.name, entry, entry.shape)
        elif found["end"] == _INPUT_SCALE:
            continue
        elif names.latent and found["part"] in (_KEYS, _VALUES):
            yield from _latent(entry, tensors, found, shape)
        else:
            yield from _of_layer(entry, names, found, shape)


def _of_layer(entry: Entry, names: Names, found: re.Match[str], shape: Shape) -> Iterator[Placed]:
    part, end, prefix = found["part"], found["end"], f"model.layers.{int(found['layer'])}."
    stacked = names.experts.get(part.removesuffix(_STACKED)) if part.endswith(_STACKED) else None
    axes, called = _AXES[end], OVER if end == _SCALE else end
    if stacked is not None and len(entry.shape) == axes and entry.shape[0] <= _MOST_EXPERTS and found["expert"] is None:
        count, size = entry.shape[0], entry.nbytes // entry.shape[0]
        for expert in range(count):
            name = f"{prefix}{stacked.format(expert)}.{called}"
            yield Placed(name, entry, entry.shape[1:] or (1,), expert * size)
    elif (
        part == _GATE_UP
        and end != _SCALE
        and found["expert"] is None
        and "ffn_gate" in names.experts
        and len(entry.shape) == axes
    ):
        yield from _halves(entry, names, end, prefix)
    elif found["expert"] is not None and part in names.experts:
        yield Placed(f"{prefix}{names.experts[part].format(int(found['expert']))}.{called}", entry, entry.shape)
    elif found["expert"] is None and part == _QKV and _QKV not in names.layer and not names.latent and end != _SCALE:
        yield from _thirds(entry, names, end, prefix, shape)
    elif found["expert"] is None and part in (names.layer.keys() | names.whole.keys()):
        turned = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(part, 0) if part in names.pairs else 0
        turned = 0 if end == _SCALE else turned
        offset = names.offset if part.endswith("norm") and end == "weight" else 0.0
        row = part in names.rows and len(entry.shape) == 1
        name = f"{prefix}{names.whole[part]}" if part in names.whole else f"{prefix}{names.layer[part]}.{called}"
        yield Placed(name, entry, (1, *entry.shape) if row else entry.shape, heads=turned, offset=offset)
    else:
        yield Placed(entry.name, entry, entry.shape)


def _halves(entry: Entry, names: Names, end: str, prefix: str) -> Iterator[Placed]:
    """Rows of gate and up of each expert, which lie behind each other (``--fuse-gate-up-exps``), as two."""
    count, rows = entry.shape[0], entry.shape[1]
    if rows % 2 or not 0 < count <= _MOST_EXPERTS:
        message = f"is {list(entry.shape)}: expected rows of gates, and as many of ups, for each expert"
        raise CheckpointError(message, file=entry.file, tensor=entry.name)
    half = entry.nbytes // (2 * count)
    for expert in range(count):
        for number, role in enumerate(("ffn_gate", "ffn_up")):
            name = f"{prefix}{names.experts[role].format(expert)}.{end}"
            yield Placed(name, entry, (rows // 2, *entry.shape[2:]), (2 * expert + number) * half)


def _thirds(entry: Entry, names: Names, end: str, prefix: str, shape: Shape) -> Iterator[Placed]:
    """Rows of q, k and v, which lie behind each other (``--fuse-qkv``), as three."""
    rows = entry.shape[0] if entry.shape else 0
    width, left = divmod(rows, shape.heads + 2 * shape.kv_heads)
    if left:
        message = f"has {rows} rows, which are not those of {shape.heads} + 2 x {shape.kv_heads} heads"
        raise CheckpointError(message, file=entry.file, tensor=entry.name)
    begin = 0
    for part, heads in (("attn_q", shape.heads), ("attn_k", shape.kv_heads), ("attn_v", shape.kv_heads)):
        inner, turned = (heads * width, *entry.shape[1:]), heads if part in names.pairs else 0
        yield Placed(f"{prefix}{names.layer[part]}.{end}", entry, inner, begin * (entry.nbytes // rows), heads=turned)
        begin += heads * width


def _latent(entry: Entry, tensors: Mapping[str, Entry], found: re.Match[str], shape: Shape) -> Iterator[Placed]:
    """What makes keys and values of a latent: one matrix in a folder, and two in a file, that of keys transposed."""
    block = entry.name.removesuffix(f"{found['part']}.{found['end']}")
    keys, values = (tensors.get(f"{block}{part}.weight") for part in (_KEYS, _VALUES))
    if keys is None or values is None or found["end"] != "weight":
        yield Placed(entry.name, entry, entry.shape)
        return
    fit = len(keys.shape) == len(values.shape) == 3 and keys.shape[:2] == (values.shape[0], values.shape[2])
    if not fit or keys.shape[0] != shape.heads:
        message = (
            f"is {list(keys.shape)} and {values.name} is {list(values.shape)}: expected [{shape.heads}, latent, k] and"
            f" [{shape.heads}, v, latent]"
        )
        raise CheckpointError(message, file=keys.file, tensor=keys.name)
    if entry is keys:
        (heads, latent, width), rows = keys.shape, values.shape[1]
        name = f"model.layers.{int(found['layer'])}.self_attn.kv_b_proj.weight"
        yield Placed(name, keys, (heads * (width + rows), latent), beside=values)
