"""Scales of a quantized key-value cache, under all names that tools give them.

self_attn.k_scale, .v_scale, .q_scale       compressed-tensors
self_attn.attn.k_scale, .v_scale            vLLM's own
self_attn.k_proj.k_scale, v_proj.v_scale    ModelOpt (or qkv_proj.k_scale, .v_scale)
self_attn.k_proj.output_scale, v_proj...    Quark and early compressed-tensors
self_attn.kv_scale, attn.kv_scale           AutoFP8: one for both
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import PLAIN_DTYPES
from isobit.checkpoint.shown import listed
from isobit.errors import CheckpointError

_NAME = re.compile(
    r"model\.layers\.(?P<layer>\d{1,5})\.self_attn\."
    r"(?:(?:attn\.|qkv_proj\.)?(?P<plain>[qkv]|kv)_(?P<part>scale|zero_point)"
    r"|(?P<proj>[qkv])_proj\.(?:(?P=proj)|output)_(?P<proj_part>scale|zero_point))"
)


@dataclass(frozen=True)
class KvScales:
    """Of one layer: what to divide keys, values (and queries) by before they are rounded to the cache's format.

    Attributes:
        keys, values, queries: float32 ``[1]`` or ``[kv_heads]``; None where the checkpoint has none.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    queries: Tensor | None = None


NOTE = (
    "the checkpoint has scales for an FP8 key-value cache: isobit reads them and does not apply them. It keeps keys and"
    " values in the dtype of activations or, where --kv-cache asks for a narrower format, with a scale of its own for"
    " each token and head"
)


def kv_names(names: Iterable[str], layers: int) -> tuple[str, ...]:
    """The tensors among ``names`` that are scales or zero points of the cache of one of ``layers`` layers.

    quanto writes an ``output_scale`` beside every weight of its own, and MLC a ``q_scale``: these are none.
    """
    known = {*names}
    found = (name for name in known if (match := _NAME.fullmatch(name)) and int(match["layer"]) < layers)
    return tuple(sorted(name for name in found if not _is_weight(name.rpartition(".")[0], known)))


def _is_weight(module: str, names: set[str]) -> bool:
    return any(f"{module}.{part}" in names for part in ("weight._data", "weight._data._data", "q_weight"))


def read_kv_scales(ck: Checkpoint, names: Iterable[str], heads: Sequence[int]) -> dict[int, KvScales]:
    """Reads and checks them.

    Args:
        ck: the checkpoint, its tensors under a model's own names.
        names: what :func:`kv_names` found.
        heads: key-value heads of each layer.

    Returns:
        layer -> its scales.

    Raises:
        CheckpointError: a scale is no positive finite number (or one a head), two names give different ones, or a zero
            point is not zero.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        assert match is not None
        if "zero_point" in (match["part"], match["proj_part"]):
            _require_zero(ck, name)
            continue
        scale = _scale(ck, name, heads[int(match["layer"])])
        of_layer = found.setdefault(int(match["layer"]), {})
        for what in match["plain"] or match["proj"]:
            if what in of_layer and not torch.equal(of_layer[what], scale):
                raise CheckpointError("there is another scale for the same", file=ck.info(name).file, tensor=name)
            of_layer[what] = scale
    return {layer: KvScales(of.get("k"), of.get("v"), of.get("q")) for layer, of in found.items()}


def _scale(ck: Checkpoint, name: str, heads: int) -> Tensor:
    info = ck.info(name)
    if info.dtype not in PLAIN_DTYPES or info.numel not in (1, heads):
        raise CheckpointError(
            f"is {info.dtype} {listed(info.shape)}; a scale of the key-value cache is one number, or one for each"
            f" of {heads} heads, in {', '.join(PLAIN_DTYPES)}",
            file=info.file,
            tensor=name,
        )
    scale = ck.read(name).to(torch.float32).reshape(-1)
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CheckpointError("holds a scale that is no positive finite number", file=info.file, tensor=name)
    return scale


def _require_zero(ck: Checkpoint, name: str) -> None:
    info = ck.info(name)
    zero = ck.read(name)
    if bool((zero if zero.is_complex() else zero.float()).any()):
        raise CheckpointError("is not zero: isobit knows symmetric caches only", file=info.file, tensor=name)
