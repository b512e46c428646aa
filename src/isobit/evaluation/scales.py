"""Weight scales that are unusual: other tools write zeros (empty rows) and negative ones; both compute as they are."""

from __future__ import annotations

import torch

from isobit.checkpoint.layouts.parts import OPEN_SCALES, SCALE_DTYPES
from isobit.checkpoint.layouts.table import SCALES
from isobit.checkpoint.reader import Checkpoint


def odd_scales(checkpoint: Checkpoint) -> list[str]:
    """A sentence for each kind of unusual scale: how many there are, and where the first of them is."""
    counts = {"zero": 0, "negative": 0, "NaN or infinite": 0}
    first: dict[str, str] = {}
    for name, info in checkpoint.tensors.items():
        if not name.endswith(SCALES) or SCALE_DTYPES.get(info.dtype) not in OPEN_SCALES:
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
