"""Weight scales that are unusual, and numbers that are none.

Other tools write scales of zero (empty rows) and negative ones; both compute as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from isobit.checkpoint.finite import LOOKED_AT, look, of_blocks, of_numbers
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.gguf.model import opened
from isobit.checkpoint.layouts.parts import OPEN_SCALES, SCALE_DTYPES
from isobit.checkpoint.layouts.table import SCALES
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import TensorInfo


def odd_scales(checkpoint: Checkpoint) -> list[str]:
    """A sentence for each kind of unusual scale: how many there are, and where the first of them is."""
    counts = {"zero": 0, "negative": 0, "NaN or infinite": 0}
    first: dict[str, str] = {}
    for name, info in checkpoint.tensors.items():
        if not _is_open(info):
            continue
        scale = checkpoint.read(name).to(torch.float32)
        finite = scale.isfinite()
        kinds = {"zero": scale == 0, "negative": finite & (scale < 0), "NaN or infinite": ~finite}
        for kind, where in kinds.items():
            if count := int(where.sum()):
                counts[kind] += count
                first.setdefault(kind, name)
    what = {"NaN or infinite": "isobit refuses them"}
    return [
        f"{count} weight scale{'s are' if count > 1 else ' is'} {kind}"
        f" ({first[kind]}{' and others' if count > 1 else ''}): {what.get(kind, 'they are used as they are')}"
        for kind, count in counts.items()
        if count
    ]


def not_numbers(checkpoint: Checkpoint, unneeded: Iterable[str]) -> tuple[str, ...]:
    """What there is to say of NaN and infinity among all other numbers: weights, and scales within blocks.

    Args:
        checkpoint: what is described.
        unneeded: tensors that no model needs.
    """
    if is_gguf(checkpoint.path):
        return look(map(of_blocks, opened(checkpoint.path).tensors.values()), LOOKED_AT).said("weights")
    left_out = {*unneeded}
    infos = (info for info in checkpoint.tensors.values() if info.name not in left_out and not _is_open(info))
    return look((of_numbers(info) for info in infos if info.strides is None), LOOKED_AT).said("weights")


def _is_open(info: TensorInfo) -> bool:
    """Whether these are scales whose numbers are looked at one by one."""
    return info.name.endswith(SCALES) and SCALE_DTYPES.get(info.dtype) in OPEN_SCALES
